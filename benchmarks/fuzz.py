"""Feed broken input to every reader: texts, task files, command lines, damaged checkpoints and ledgers.

    python benchmarks/fuzz.py --quick
    python benchmarks/fuzz.py
    python benchmarks/fuzz.py --parts texts files --seed 7
    python benchmarks/fuzz.py --parts texts --seed 7 --only 1234

Each case must end in a right result or in the error that is declared for it: no other exception, nothing wrong
accepted, no file left behind or changed, no input that takes long. Every failure is shown with the command that repeats
it, and the exit code is 1 if there is any.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

from fuzzing.command_lines import CommandLines
from fuzzing.core import MOST_SHOWN, Part, Tally, run_cases
from fuzzing.damage import Damage
from fuzzing.task_files import TaskFiles
from fuzzing.texts import Texts

PARTS: dict[str, tuple[int, int, Callable[[Path], Part]]] = {
    "texts": (1_000_000, 3000, lambda folder: Texts()),
    "files": (10_000, 300, TaskFiles),
    "lines": (1000, 20, CommandLines),
    "damage": (1000, 100, Damage),
}
"""By name: the cases of a whole run and of a quick one, and what makes the part, given an empty folder of its own."""


def main() -> None:
    arguments = parse()
    tallies = []
    for name in arguments.parts:
        cases, quick_cases, make = PARTS[name]
        numbers = range(arguments.cases or (quick_cases if arguments.quick else cases))
        with tempfile.TemporaryDirectory() as folder:
            part = make(Path(folder).resolve())
            tally = run_cases(name, part, numbers if arguments.only is None else [arguments.only], arguments.seed)
        show(tally, arguments.seed)
        tallies.append(tally)
    result = {
        "benchmark": "fuzz",
        "quick": arguments.quick,
        "seed": arguments.seed,
        "parts": {
            tally.name: {
                "cases": tally.cases,
                **tally.outcomes,
                "failures": len(tally.failures),
                "slowest_case_seconds": round(tally.slowest, 3),
                "seconds": round(tally.seconds, 1),
            }
            for tally in tallies
        },
        "goal_met": not any(tally.failures for tally in tallies),
    }
    print(json.dumps(result))
    if not result["goal_met"]:
        raise SystemExit(1)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small share of the cases, in less than 30 seconds")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=[*PARTS], help="which inputs (default: all)")
    parser.add_argument("--cases", type=int, metavar="N", help="number of cases of each part")
    parser.add_argument("--only", type=int, metavar="NUMBER", help="one case alone, by its number")
    parser.add_argument("--seed", type=int, default=0, help="seed of all cases (default 0)")
    return parser.parse_args()


def show(tally: Tally, seed: int) -> None:
    outcomes = ", ".join(f"{count:,} {name}" for name, count in sorted(tally.outcomes.items()))
    print(
        f"{tally.name}: {tally.cases:,} cases in {tally.seconds:.0f} s, the slowest in {tally.slowest:.2f} s: "
        f"{outcomes or 'none ended well'}, {len(tally.failures)} failures",
        flush=True,
    )
    for number, message in tally.failures[:MOST_SHOWN]:
        print(f"  {message}\n    python benchmarks/fuzz.py --parts {tally.name} --seed {seed} --only {number}")
    if len(tally.failures) > MOST_SHOWN:
        print(f"  and {len(tally.failures) - MOST_SHOWN} more")


if __name__ == "__main__":
    main()
