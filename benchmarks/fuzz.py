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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fuzzing.command_lines import CommandLines
from fuzzing.core import Part, Tally, run_cases
from fuzzing.damage import Damage
from fuzzing.task_files import TaskFiles
from fuzzing.texts import Texts

PARTS: dict[str, tuple[int, int, Callable[[Path], Part]]] = {
    "texts": (1_000_000, 3000, lambda folder: Texts()),
    "files": (10_000, 300, TaskFiles),
    "lines": (1000, 15, CommandLines),
    "damage": (1000, 40, Damage),
}
"""By name: the cases of a whole run and of a quick one, and what makes the part, given an empty folder of its own."""


OUTCOMES = ("accepted", "refused", "skipped")


def main() -> None:
    arguments = parse()
    tallies = [run_part(name, arguments) for name in arguments.parts]
    show(tallies)
    goal_met = not any(tally.failures for tally in tallies)
    result = {
        "benchmark": "fuzz",
        "quick": arguments.quick,
        "seed": arguments.seed,
        "parts": {tally.name: row(tally) for tally in tallies},
        "goal_met": goal_met,
    }
    print(json.dumps(result))
    if not goal_met:
        raise SystemExit(1)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small share of the cases, in less than 30 seconds")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=[*PARTS], help="which inputs (default: all)")
    parser.add_argument("--cases", type=int, metavar="N", help="number of cases of each part")
    parser.add_argument("--only", type=int, metavar="NUMBER", help="one case alone, by its number")
    parser.add_argument("--seed", type=int, default=0, help="seed of all cases (default 0)")
    return parser.parse_args()


def run_part(name: str, arguments: argparse.Namespace) -> Tally:
    """Run the cases that `arguments` asks for, and print each failure with what repeats it."""
    cases, quick_cases, make = PARTS[name]
    numbers = range(arguments.cases or (quick_cases if arguments.quick else cases))

    def show_failure(number: int, message: str) -> None:
        again = f"python benchmarks/fuzz.py --parts {name} --seed {arguments.seed} --only {number}"
        print(f"{name}, case {number}: {message}\n    {again}", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        part = make(Path(folder).resolve())
        chosen = numbers if arguments.only is None else [arguments.only]
        return run_cases(name, part, chosen, arguments.seed, show_failure)


def row(tally: Tally) -> dict[str, Any]:
    return {
        "cases": tally.cases,
        **{name: tally.outcomes[name] for name in OUTCOMES},
        "failures": tally.failures,
        "slowest_case_seconds": round(tally.slowest, 3),
        "seconds": round(tally.seconds, 1),
    }


def show(tallies: Sequence[Tally]) -> None:
    rows = {tally.name: row(tally) for tally in tallies}
    columns = [*next(iter(rows.values()))]
    print("\n" + " ".join(["part    ", *(f"{column.replace('_', ' '):>11}" for column in columns)]))
    for name, values in rows.items():
        print(" ".join([f"{name:8}", *(f"{values[column]:>{max(11, len(column))},}" for column in columns)]))


if __name__ == "__main__":
    main()
