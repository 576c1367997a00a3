"""Read JSON that was written elsewhere; what can't be read is named for what it is."""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from arcft.errors import ArcftError
from arcft.names import visible

_PACKED = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip",
    b"PK\x05\x06": "zip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"7z\xbc\xaf\x27\x1c": "7z",
}


class JsonError(ArcftError):
    """A file that holds no text, or a text that is no JSON; the message starts with the file."""


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, UTF-16 or UTF-32, with or without a byte order mark.

    Raises JsonError, also where it is packed.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise JsonError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise JsonError(f"{path}: can't be read: {reason}") from None
    packed = next((name for magic, name in _PACKED.items() if content.startswith(magic)), None)
    if packed:
        raise JsonError(f"{path}: is packed with {packed}; unpack it, and name the JSON file that was in it")
    encoding = json.detect_encoding(content)
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise JsonError(
            f"{path}: is no text in {encoding.removesuffix('-sig').upper()} (byte {error.start + 1:,}); "
            "save it as UTF-8, or copy it again if it was cut off"
        ) from None


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file of JSON lines that is written as a program goes; lines that a crash has cut off are left
    out, and a file that isn't there has none."""
    with contextlib.suppress(OSError):
        for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError, RecursionError):
                line = json.loads(text)
                if isinstance(line, dict):
                    yield line


def parse_json(text: str, where: str, entry: str = "") -> Any:
    """The content of `text`; numbers too long to be computed with become infinity.

    Raises JsonError, which starts with `where`, if it is no JSON, or if an object has a key twice; then the message
    names the entry of the outermost object, which is called an `entry`.
    """
    try:
        return _loads(text, where, entry)
    except json.JSONDecodeError as error:
        ends_early = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string")
        cut = "; the file ends too early, was it cut off?" if ends_early else ""
        raise JsonError(
            f"{where}: not valid JSON at line {error.lineno}, column {error.colno}: {error.msg}{cut}"
        ) from None
    except RecursionError:
        raise JsonError(f"{where}: not valid JSON: its lists or objects are nested too deep") from None


def _loads(text: str, where: str, entry: str) -> Any:
    repeated: list[_Repeated] = []

    def unique(items: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(items)
        if len(values) < len(items):
            repeated.append(_Repeated(values, _first_repeated(items)))
            return repeated[-1]
        return values

    try:
        values = json.loads(text, object_pairs_hook=unique)
    except (json.JSONDecodeError, RecursionError):
        raise
    except ValueError:  # a number of more digits than Python converts
        repeated.clear()
        values = json.loads(text, object_pairs_hook=unique, parse_int=_number)
    if repeated:
        outer = _key_that_holds(values, repeated[0])
        place = "" if outer is None else f": {entry} {visible(outer)}".replace(":  ", ": ")
        raise JsonError(
            f"{where}{place}: {_shortened(repeated[0].key)} is there twice; task ids and keys must be unique, remove "
            "or rename one"
        )
    return values


class _Repeated(dict[str, Any]):
    """An object in which `key` is there twice."""

    def __init__(self, values: dict[str, Any], key: str) -> None:
        super().__init__(values)
        self.key = key


def _first_repeated(items: list[tuple[str, Any]]) -> str:
    seen: set[str] = set()
    for key, _ in items:
        if key in seen:
            return key
        seen.add(key)
    raise AssertionError("no key is there twice")


def _key_that_holds(values: Any, wanted: _Repeated) -> str | None:
    """The key of the outermost object under which `wanted` is; None where it is that object itself."""
    if values is wanted or not isinstance(values, dict):
        return None
    for key, value in values.items():
        pending = [value]
        while pending:
            item = pending.pop()
            if item is wanted:
                return str(key)
            pending.extend(item.values() if isinstance(item, dict) else item if isinstance(item, list) else ())
    return None


def _number(digits: str) -> int | float:
    limit = sys.get_int_max_str_digits()
    return int(digits) if not limit or len(digits) <= limit else math.inf


def _shortened(key: str, limit: int = 60) -> str:
    return repr(key if len(key) <= limit else key[:limit] + "…")
