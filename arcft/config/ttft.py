"""Test-time fine-tuning: the model learns each task from its own demonstrations. Options: conf/ttft/*.yaml."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Literal

from arcft.config.duration import DurationError, parse_duration
from arcft.config.scheduler import SchedulerConfig
from arcft.config.schema import options


@dataclasses.dataclass(kw_only=True)
class TtftConfig:
    name: Literal["none", "per_task", "whole_set", "split"]
    """An adapter for each task, one for all tasks together, or one for each of `splits` groups of tasks."""

    max_steps: int | None
    """Optimizer steps of an adapter; null for what the model recommends for one task, with ttft=per_task."""

    batch_size: int
    """Examples in a step."""

    scheduler: Literal["linear", "cosine", "constant"]
    warmup_ratio: float
    """The learning rate's course over the steps of an adapter, as in the scheduler group."""

    max_grad_norm: float
    """Each adapter's gradient is scaled down to this norm."""

    start: Literal["trained", "fresh"]
    """`trained` goes on from the checkpoint's adapter; `fresh` begins a new one on the base model, as the lora group
    says. A model without an adapter always gets a fresh one."""

    seed: int
    """Seed of examples and fresh adapters; each task draws from (seed, task id)."""

    predict_before: int
    """Predictions a test with the model as it was, made first: a submission from the first minutes on, what a failed
    task falls back on, and the scores to compare with; 0 for none."""

    workers: Literal["local", "processes", "ray"]
    """In this process, in several on this machine, or on a Ray cluster."""

    keep_adapters: bool
    """Keep the adapters, in `adapters/`."""

    learning_rate: float | None = None
    """Peak rate; null for what the model recommends."""

    splits: int | None = None
    """For ttft=split: number of groups."""

    patience: int | None = None
    """Hold one demonstration back, and end a task when its loss has not fallen for so many steps; null for never."""

    slots: int | Literal["auto"] | None = None
    """Adapters that are trained together in one pass; `auto` measures how many pay; null for 1 on a CPU, auto on a
    GPU."""

    num_workers: int | None = None
    """For processes and ray: how many; null for one a GPU."""

    budget: str | None = None
    """Time for the whole run, e.g. 11h30m; steps and predictions are fitted to it."""

    def schedule(self) -> SchedulerConfig:
        """The learning rate's course over the steps of an adapter."""
        return options(SchedulerConfig)[self.scheduler](warmup_ratio=self.warmup_ratio, min_lr_ratio=0.0)

    def problems(self) -> Iterator[str]:
        for name in ("max_steps", "batch_size", "splits", "patience", "num_workers"):
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
        if self.max_steps is None and self.name in ("whole_set", "split"):
            yield f"ttft.max_steps is null: ttft={self.name} needs a number, for it depends on the number of tasks"
        if self.name == "split" and self.splits is None:
            yield "ttft.splits is null: ttft=split needs the number of groups"
        if self.name != "split" and self.splits is not None:
            yield f"ttft.splits={self.splits} has no effect with ttft={self.name}; use ttft=split"
        if self.workers == "local" and self.num_workers is not None:
            yield f"ttft.num_workers={self.num_workers} has no effect with ttft.workers=local; use processes or ray"
        if self.budget is not None:
            try:
                parse_duration(self.budget)
            except DurationError as error:
                yield f"ttft.budget={self.budget}: {error}"
