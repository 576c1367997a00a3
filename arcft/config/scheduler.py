"""The learning-rate schedule. Options: conf/scheduler/*.yaml."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Literal


@dataclasses.dataclass(kw_only=True)
class SchedulerConfig:
    """A factor of training.learning_rate for every optimizer step."""

    name: Literal["linear", "cosine", "constant", "cosine_with_restarts", "warmup_stable_decay"]
    """cosine_with_restarts falls to the floor in each cycle, and each cycle's peak is `decay` times the last one's;
    warmup_stable_decay stays at the peak and falls to the floor at the end of the run."""

    warmup_ratio: float
    """Share of the run (of each cycle, with restarts) in which the rate climbs from the floor to the peak."""

    min_lr_ratio: float
    """The floor, as a fraction of the learning rate."""

    num_cycles: int | None = None
    """For cosine_with_restarts: number of cycles."""

    decay: float | None = None
    """For cosine_with_restarts: peak of a cycle relative to the one before."""

    decay_ratio: float | None = None
    """For warmup_stable_decay: share of the run, at its end, in which the rate falls from the peak to the floor."""

    def problems(self) -> Iterator[str]:
        if not 0 <= self.warmup_ratio < 1:
            yield f"scheduler.warmup_ratio={self.warmup_ratio}: a share of the steps, from 0 to below 1"
        restarts = self.name == "cosine_with_restarts"
        owners = {"num_cycles": "cosine_with_restarts", "decay": "cosine_with_restarts"}
        for name, owner in (owners | {"decay_ratio": "warmup_stable_decay"}).items():
            value = getattr(self, name)
            if self.name == owner and value is None:
                yield f"scheduler.{name} is null: scheduler={owner} needs it"
            if self.name != owner and value is not None:
                yield f"scheduler.{name}={value} has no effect with scheduler={self.name}; use scheduler={owner}"
        if self.decay_ratio is not None:
            if not 0 < self.decay_ratio <= 1:
                yield f"scheduler.decay_ratio={self.decay_ratio}: a share of the steps, above 0, at most 1"
            elif 0 <= self.warmup_ratio < 1 < self.warmup_ratio + self.decay_ratio:
                yield (
                    f"scheduler.decay_ratio={self.decay_ratio}: with scheduler.warmup_ratio={self.warmup_ratio} more "
                    "than the whole run; lower one of the two"
                )
        if self.num_cycles is not None and self.num_cycles < 1:
            yield f"scheduler.num_cycles={self.num_cycles}: at least 1"
        if self.decay is not None and not 0 < self.decay <= 1:
            yield f"scheduler.decay={self.decay}: above 0, at most 1"
        elif restarts and self.decay is not None and self.num_cycles is not None and self.num_cycles >= 1:
            lowest_peak = self.decay ** (self.num_cycles - 1)
            if not 0 <= self.min_lr_ratio <= lowest_peak:
                yield (
                    f"scheduler.min_lr_ratio={self.min_lr_ratio}: from 0 to {lowest_peak:.4g}, the last cycle's peak "
                    "(decay ** (num_cycles - 1))"
                )
            return
        if not 0 <= self.min_lr_ratio <= 1:
            yield f"scheduler.min_lr_ratio={self.min_lr_ratio}: a fraction from 0 to 1"
