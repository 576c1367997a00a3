"""`arcft contamination A B`: the problems that two sets share."""

from __future__ import annotations

import sys

from arcft.runs.contamination import main as compare


def main() -> None:
    """Print what the two sets share; exit with 1 for a set that can't be read, or with --fail if anything is shared."""
    sys.exit(compare(sys.argv[1:]))
