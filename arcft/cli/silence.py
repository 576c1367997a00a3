"""Ranks other than 0 print nothing but errors that rank 0 has not reported."""

from __future__ import annotations

import os
import sys

from arcft import ranks
from arcft.console import complain
from arcft.names import visible

_own_errors: int | None = None
"""The file descriptor of standard error as it was before this rank was silenced."""


def be_silent() -> None:
    """Redirect stdout and stderr, also of libraries, to /dev/null."""
    global _own_errors
    sys.stdout.flush()
    sys.stderr.flush()
    _own_errors = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)


def say_error(text: str) -> None:
    """Print to standard error, also of a silenced rank: each line with its number then."""
    if _own_errors is None:
        complain(text)
        return
    lines = visible(text).splitlines()
    os.write(_own_errors, "".join(f"rank {ranks.rank()}: {line}\n" for line in lines).encode())
