"""The results of a finished training run: metrics.json, a picture and a table of metrics."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from arcft.config.run import TrainConfig
from arcft.console import say, show
from arcft.files import write_json
from arcft.memory import peak_bytes
from arcft.models.lora import trainable_parameters
from arcft.reporting.pictures.problems import predictions_picture
from arcft.reporting.previews import metrics_table
from arcft.reporting.words import count
from arcft.runs.common.extras import extra
from arcft.runs.evaluation.results import METRICS_FILE
from arcft.runs.training.callbacks import GenerationMetrics
from arcft.studies.costs import training_costs
from arcft.tracking import Tracker
from arcft.training.trainer import ArcftTrainer

PICTURE = "preview.png"
SHOWN_TESTS = 8
SHOWN_TASKS = 2
CHARTS_OF_LOSSES = {"loss": "train/loss", "eval_loss": "eval/loss"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingResults:
    """The results of a run that made all its steps."""

    kept: str
    """The checkpoints with the last and the best weights, in words."""

    metrics: Mapping[str, float]
    """The last losses and metrics by tracker name."""


def write_results(
    config: TrainConfig, folder: Path, generation: GenerationMetrics, trainer: ArcftTrainer, tracker: Tracker
) -> TrainingResults:
    """Write metrics.json and a picture of predicted against true answers, and show the table of metrics."""
    step, best = trainer.state.global_step, trainer.best_step
    history = trainer.state.log_history
    losses = {name: entry[name] for entry in history for name in ("loss", "eval_loss") if name in entry}
    metrics = generation.scores.metrics
    content: dict[str, Any] = {"step": step, "best_step": best} | losses | {"metrics": metrics}
    if metrics:
        content |= {"tasks": generation.scores.problems, "by_test": generation.scores.by_test}
    write_json(folder / METRICS_FILE, content | {"costs": _costs(trainer)})
    tracker.summary({"best_step": best, **{f"final/{name}": value for name, value in (losses | metrics).items()}})
    if metrics:
        _show_generation(folder, generation, f"step {step}", tracker)
    say(", ".join(f"{name} {value:.3f}" for name, value in losses.items()))
    if tracker.where:
        say(f"W&B: {tracker.where}")
    best_words = f"best {config.training.best_metric}" if metrics else "lowest eval_loss"
    kept = f"checkpoint-{step}" + (f", {best_words} in checkpoint-{best}" if best else "")
    charts = {CHARTS_OF_LOSSES[name]: value for name, value in losses.items()}
    return TrainingResults(kept=kept, metrics=charts | {f"eval/{name}": value for name, value in metrics.items()})


def _costs(trainer: ArcftTrainer) -> dict[str, float | int]:
    """What the run took: its times from its whole history, memory since it was last started."""
    assert isinstance(trainer.model, nn.Module)
    return training_costs(trainer.state.log_history) | {
        "peak_bytes": peak_bytes(trainer.args.device),
        "trainable_parameters": trainable_parameters(trainer.model),
    }


def _show_generation(folder: Path, generation: GenerationMetrics, title: str, tracker: Tracker) -> None:
    kind = generation.kind
    for task in generation.tasks[:SHOWN_TASKS]:
        attempts = generation.attempts.get((task.id, 0), ())
        shown = [("input", kind.card.question(task, 0)), ("true", task.answers[0])]
        say(f"\n{task.id}")
        show(kind.card.terminal([*shown, ("predicted", attempts[0] if attempts else None)]))
    metrics = generation.scores.metrics
    show(metrics_table({title: metrics}, kind.metrics, title=count(len(generation.tasks), "held-out task")))
    with extra("the picture of predictions"):
        predictions_picture(
            folder / PICTURE,
            generation.tasks,
            generation.attempts,
            kind.card,
            shown=kind.metrics.attempts,
            count=SHOWN_TESTS,
        )
        say(f"predicted and true {kind.card.noun}s: {folder / PICTURE}")
        tracker.picture("preview", folder / PICTURE)
    rows = [[task, *values.values()] for task, values in generation.scores.problems.items()]
    tracker.table("tasks", ["task", *metrics], rows)
