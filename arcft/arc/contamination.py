"""`python -m arcft.arc.contamination` of version 0.1: says what to type instead."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    print("moved: use `arcft contamination A B [--fail] [--json]`", file=sys.stderr)
    sys.exit(2)
