"""What test-time fine-tuning did: one line a task, the scores before and after, and how these are shown."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from rich.table import Table

from arcft.arc.task import Task
from arcft.scoring.metrics import METRICS, Scores, mean_and_error
from arcft.scoring.predictions import Prediction
from arcft.scoring.voting import Attempts, vote


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskRow:
    """How the adaptation to one task went."""

    task_id: str
    state: Literal["done", "failed"]
    reason: str = ""
    """Why it failed; its un-adapted predictions stand then."""

    solved: bool | None = None
    """Every test by one of the two attempts handed in; None where an answer is not known."""

    votes: str = ""
    """How often each grid was predicted, e.g. `5, 2, 1`; see `votes_in_words`."""

    loss_first: float | None = None
    loss_last: float | None = None
    """Mean of the first and of the last few steps, in nats per supervised token; None without any step."""

    steps: int = 0
    attempts: int = 0
    """Tries that failed: 0 where the first one went well."""

    adapt_seconds: float | None = None
    predict_seconds: float | None = None
    finished_at: float | None = None
    """Seconds that the run had worked when the task was done or given up, over all its processes."""

    notes: tuple[str, ...] = ()
    unit: str = ""
    """Name of the adapter where several tasks share one: their losses, steps and seconds are those of the adapter."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adaptation:
    """What an evaluation with test-time fine-tuning knows beyond its predictions."""

    rows: Sequence[TaskRow]
    """One for each task."""

    before: Scores | None
    after: Scores | None
    """Scores of the model as it was and of what is handed in; None where no answer is known, or nothing was predicted
    before."""

    predictions_before: int
    predictions_after: int
    """Predictions a test, for those that have most."""

    log: Sequence[str] = ()
    """What the user should know about the run as a whole, in order: a lowered recipe, the slots that were chosen."""


def votes_in_words(groups: Sequence[Sequence[Prediction]]) -> str:
    """How often each grid was predicted, the attempts first, e.g. `5, 2, 1`; tests of a task stand between semicolons."""
    raise NotImplementedError


def before_after_table(adaptation: Adaptation, *, title: str | None = None) -> Table:
    """Metrics before and after, side by side in percent with their change, for a rich console of 80 columns.

    Raises ValueError where one of the two is not known.
    """
    raise NotImplementedError


def rows_table(adaptation: Adaptation) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows for `Tracker.table`; each cell of a column is of one kind, or None."""
    raise NotImplementedError


def adaptation_png(path: Path | str, adaptation: Adaptation) -> None:
    """Write the charts as a PNG: tasks solved against time, and losses before and after."""
    raise NotImplementedError


def task_picture(path: Path | str, task: Task, attempts: Attempts) -> None:
    """Write a PNG of one task: its demonstrations, and for each test input, true output if known, and two attempts."""
    raise NotImplementedError
