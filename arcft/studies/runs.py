"""A run as a study sees it: its config, how it ended, and its scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

State = Literal["finished", "unfinished", "running", "failed", "damaged", "not started", "not evaluated"]

LOSSES = ("eval_loss", "loss")
"""Figures of a run beside its metrics, the lower the better."""

COSTS = ("seconds", "evaluation_seconds", "tokens_per_second", "peak_bytes", "trainable_parameters")
"""What training took (see `arcft.studies.costs`), and `evaluation_seconds`, what predicting did."""


@dataclasses.dataclass(frozen=True)
class Scores:
    """Metrics of single tasks, from 0 to 1."""

    tasks: tuple[str, ...]
    """Ids, sorted."""

    metrics: tuple[str, ...]
    values: NDArray[np.float32]
    """[tasks, metrics]"""

    by_test: Mapping[str, Mapping[str, str]]
    """By metric and task, a 0 or 1 for each test; empty where it is not known."""

    is_exact: bool = True
    """Whether `by_test` says which test of a task was solved; a file of version 0.1.0 holds only how many were."""

    def of(self, metric: str) -> NDArray[np.float64]:
        """[tasks]"""
        return self.values[:, self.metrics.index(metric)].astype(np.float64)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One run folder."""

    folder: Path
    job: str
    kind: str = "arc"
    """Its kind of problem, as `data.kind` names it."""

    state: State
    reason: str = ""
    """Where it is not finished, why or how far it came."""

    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Values by dotted key; those of the training run where a checkpoint was evaluated."""

    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Means over tasks, and the LOSSES."""

    scores: Scores | None = None
    costs: Mapping[str, float] = dataclasses.field(default_factory=dict)
    trained_in: Path | None = None
    """Of the evaluation of a checkpoint: the folder of its training run."""

    step: int | None = None
    """Of the weights that its figures belong to, where that is known."""

    finished_at: float = 0.0
    """Seconds since 1970."""


@dataclasses.dataclass(frozen=True)
class Missing:
    """A run that a sweep lacks, or that is not finished."""

    name: str
    """Its overrides, or its folder."""

    state: State
    reason: str
    command: str
    """What completes it; empty for one that is running."""
