"""What every learning-rate schedule is: a pure function of the step, as a factor of the peak rate."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Iterator


@dataclasses.dataclass(kw_only=True)
class SchedulerConfig(abc.ABC):
    """A factor of training.learning_rate for every optimizer step.

    It climbs from the floor to its peak during the warm-up and never goes below the floor.
    """

    name: str

    warmup_ratio: float
    """Share of the run (of each cycle, with restarts) in which the rate climbs from the floor to the peak."""

    min_lr_ratio: float
    """The floor, as a fraction of the learning rate."""

    @abc.abstractmethod
    def factor(self, step: int, total_steps: int) -> float:
        """The factor at `step`, from 0; defined after the last step, `total_steps`, too. Raise ValueError for values
        outside their ranges."""

    def factors(self, total_steps: int) -> Callable[[int], float]:
        """`factor` for a run of `total_steps`; values outside their ranges raise ValueError here already."""
        self.factor(0, total_steps)
        return lambda step: self.factor(step, total_steps)

    def problems(self) -> Iterator[str]:
        if not 0 <= self.warmup_ratio < 1:
            yield f"scheduler.warmup_ratio={self.warmup_ratio}: a share of the steps, from 0 to below 1"
        if not 0 <= self.min_lr_ratio <= 1:
            yield f"scheduler.min_lr_ratio={self.min_lr_ratio}: a fraction from 0 to 1"

    def warnings(self, total_steps: int) -> list[str]:
        """What is allowed but hardly meant in a run of `total_steps`, a line each."""
        return self._warmup_warnings("the run", total_steps)

    def _warmup_warnings(self, period: str, length: int) -> list[str]:
        """About a warm-up that fills all `length` steps of `period`, or none of them."""
        warmup = round(self.warmup_ratio * length)
        key = f"scheduler.warmup_ratio={self.warmup_ratio}"
        if warmup >= length:
            return [f"{key}: {period} ({length} steps) ends in its warm-up and never reaches its peak"]
        if self.warmup_ratio > 0 and warmup == 0:
            return [f"{key}: the warm-up of {period} ({length} steps) rounds to none"]
        return []


def check_step(step: int, total_steps: int, warmup_ratio: float) -> None:
    """Raise ValueError for values outside the ranges that all schedules share."""
    if step < 0:
        raise ValueError(f"step={step}: at least 0")
    if total_steps < 1:
        raise ValueError(f"total_steps={total_steps}: at least 1")
    if not 0 <= warmup_ratio < 1:
        raise ValueError(f"warmup_ratio={warmup_ratio}: from 0 to below 1")


def check_floor(min_lr_ratio: float) -> None:
    """Raise ValueError for a floor that is no fraction of a peak of 1."""
    if not 0 <= min_lr_ratio <= 1:
        raise ValueError(f"min_lr_ratio={min_lr_ratio}: from 0 to 1")
