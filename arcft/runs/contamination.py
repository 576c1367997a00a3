"""`arcft contamination A B`: list what two sets of problems share."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from typing import NoReturn

from arcft.console import complain
from arcft.errors import ArcftError
from arcft.names import visible
from arcft.protocols import Overlap
from arcft.runs.setup.kinds import KINDS

SHOWN = 8
"""Pairs of ids that are listed per comparison."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        super().error(visible(message))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what two sets share; return the exit code."""
    parser = _Parser(
        prog="arcft contamination",
        description="Find problems that two sets share.",
        epilog="; ".join(f"{name}: a set is {make().set_help}" for name, make in KINDS.items()),
    )
    parser.add_argument("sets", nargs=2, metavar="SET", help="what to compare (see below)")
    parser.add_argument("kind", nargs="?", default="kind=arc", help="kind=NAME, the kind of problem; arc by default")
    parser.add_argument("--fail", action="store_true", help="exit with code 1 if anything is shared")
    parser.add_argument("--json", action="store_true", help="print every pair of ids, as one JSON object")
    arguments = sys.argv[1:] if arguments is None else arguments
    # As in the other commands, `kind=` may stand anywhere.
    options = parser.parse_intermixed_args(sorted(arguments, key=lambda word: word.startswith("kind=")))
    key, _, name = options.kind.partition("=")
    if key != "kind" or name not in KINDS:
        parser.error(f"{options.kind}: write kind=NAME with one of {', '.join(KINDS)}")
    kind = KINDS[name]()
    try:
        sets = [kind.load_set(name) for name in options.sets]
    except ArcftError as error:
        complain(str(error))
        return 1
    overlap = kind.overlap(*sets)
    if options.json:
        print(json.dumps({comparison.key: comparison.found for comparison in overlap.comparisons()}))
    else:
        for letter, path, items in zip("ab", options.sets, sets, strict=True):
            print(visible(f"{letter}: {path} ({kind.describe(items)})"))
        print(visible("\n".join(_table(overlap))))
    return 1 if options.fail and overlap.found else 0


def _table(overlap: Overlap) -> Iterable[str]:
    yield f"{'':50}{'in a':>6}{'in b':>6}"
    last: object = ()
    for comparison in overlap.comparisons():
        found = comparison.found
        # Few sets contain pools; without a shared type, the row would only confuse.
        if comparison.key == "types" and not found:
            continue
        yield f"{comparison.title:50}{len({a_id for a_id, _ in found}):6}{len({b_id for _, b_id in found}):6}"
        if found and found != last:
            names = " ".join(a_id if a_id == b_id else f"{a_id}={b_id}" for a_id, b_id in found[:SHOWN])
            yield f"    {names}" + (f" and {len(found) - SHOWN} more (--json lists all)" if len(found) > SHOWN else "")
        last = found
