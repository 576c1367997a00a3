"""Ids and other text from outside: which ids are refused, how an id names a file, and text that is safe to print."""

from __future__ import annotations

import hashlib
import re

_PLAIN = re.compile(r"[a-z0-9_-][a-z0-9_.-]{0,79}")
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?")
"""Names that Windows keeps for devices, with any extension."""

_SURROGATE = re.compile("[\ud800-\udfff]")

# Marks that change the direction of all that follows, so that a line reads differently from what it says.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def fault_of_id(identifier: str) -> str | None:
    """Why `identifier` can't be the id of a problem: it is blank, or can't be stored as UTF-8; None where it can."""
    if not identifier.strip():
        return "is blank"
    half = _SURROGATE.search(identifier)
    return None if half is None else f"has half of a surrogate pair (U+{ord(half[0]):04X}), which can't be stored"


def file_name(identifier: str) -> str:
    """The name of the file or folder for any id: different ids have different names, also where case is ignored.

    An id of up to 80 lower-case letters, digits, `_`, `-` and `.` is its own name, unless it starts or ends with a dot
    or is reserved on Windows. Any other is named by those of its characters and, after an `@`, its digest.
    """
    if _PLAIN.fullmatch(identifier) and not identifier.endswith(".") and not _RESERVED.fullmatch(identifier):
        return identifier
    readable = re.sub(r"[^a-z0-9_-]+", "-", identifier.lower())[:40].strip("-")
    return f"{readable}@{hashlib.sha256(identifier.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"


def visible(text: str) -> str:
    """`text` with what a terminal would obey written as an escape such as `\\x1b`; line ends and tabs stay."""
    return _UNSAFE.sub(lambda match: match[0].encode("unicode_escape", "surrogatepass").decode("ascii"), text)
