"""Test-time fine-tuning: the model learns each task from its own demonstrations. Options: conf/ttft/*.yaml."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Literal

from arcft.config.duration import DurationError, parse_duration
from arcft.config.scheduler import SchedulerConfig
from arcft.config.schema import options


@dataclasses.dataclass(kw_only=True)
class TtftChoice:
    """A choice: a way to divide the tasks among adapters, or none."""

    name: str


@dataclasses.dataclass(kw_only=True)
class NoTtftConfig(TtftChoice):
    """Predict without adapting."""

    name: Literal["none"] = "none"


@dataclasses.dataclass(kw_only=True)
class TtftConfig(TtftChoice):
    """What all ways of adapting share."""

    max_steps: int | None
    """Optimizer steps of an adapter; null for what the model recommends for one task, with ttft=per_task."""

    batch_size: int
    """Examples per step."""

    scheduler: Literal["linear", "cosine", "constant"]
    warmup_ratio: float
    """The learning-rate schedule over the steps of an adapter, as in the scheduler group."""

    max_grad_norm: float
    """Each adapter's gradient is scaled down to this norm."""

    start: Literal["trained", "fresh"]
    """`trained` continues from the checkpoint's adapter; `fresh` starts a new one on the base model, as the lora group
    says. A model without an adapter always gets a fresh one."""

    seed: int
    """Seed of examples and fresh adapters; each task draws from (seed, task id)."""

    predict_before: int
    """Predictions per test with the model before it is adapted: an early submission, what a failed task falls back on,
    and the scores to compare with; 0 for none."""

    workers: Literal["local", "processes", "ray"]
    """In this process, in several on this machine, or on a Ray cluster."""

    keep_adapters: bool
    """Save the adapters in `adapters/`."""

    learning_rate: float | None = None
    """Peak rate; null for what the model recommends."""

    patience: int | None = None
    """Hold one demonstration back, and end a task when its loss has not fallen for this many steps; null for never."""

    slots: int | Literal["auto"] | None = None
    """Adapters trained together in one pass; `auto` measures how many are best; null for 1 on a CPU, auto on a GPU."""

    num_workers: int | None = None
    """For processes and ray: how many; null for one per GPU."""

    budget: str | None = None
    """Time for the whole run, e.g. 11h30m; steps and predictions are fitted to it."""

    def schedule(self) -> SchedulerConfig:
        """The learning-rate schedule over the steps of an adapter."""
        return options(SchedulerConfig)[self.scheduler](warmup_ratio=self.warmup_ratio, min_lr_ratio=0.0)

    def problems(self) -> Iterator[str]:
        for name in ("max_steps", "batch_size", "patience", "num_workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                yield f"ttft.{name}={value}: at least 1"
        if isinstance(self.slots, int) and self.slots < 1:
            yield f"ttft.slots={self.slots}: at least 1, or auto"
        for name in ("seed", "predict_before"):
            if getattr(self, name) < 0:
                yield f"ttft.{name}={getattr(self, name)}: at least 0"
        for name in ("learning_rate", "max_grad_norm"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                yield f"ttft.{name}={value}: above 0"
        if not 0 <= self.warmup_ratio < 1:
            yield f"ttft.warmup_ratio={self.warmup_ratio}: a share of the steps, from 0 to below 1"
        if self.workers == "local" and self.num_workers is not None:
            yield f"ttft.num_workers={self.num_workers} has no effect with ttft.workers=local; use processes or ray"
        if self.budget is not None:
            try:
                parse_duration(self.budget)
            except DurationError as error:
                yield f"ttft.budget={self.budget}: {error}"


@dataclasses.dataclass(kw_only=True)
class PerTaskConfig(TtftConfig):
    """An adapter for each task."""

    name: Literal["per_task"] = "per_task"


@dataclasses.dataclass(kw_only=True)
class WholeSetConfig(TtftConfig):
    """One adapter for all tasks together."""

    name: Literal["whole_set"] = "whole_set"

    max_steps: int


@dataclasses.dataclass(kw_only=True)
class SplitConfig(TtftConfig):
    """An adapter for each group of tasks."""

    name: Literal["split"] = "split"

    max_steps: int

    splits: int
    """Number of groups, to which tasks are dealt in turn."""

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.splits < 1:
            yield f"ttft.splits={self.splits}: at least 1"
