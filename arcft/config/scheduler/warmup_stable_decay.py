"""Warm-up, a constant rate, and a straight line down to the floor at the end of the run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Literal

from arcft.config.scheduler.base import SchedulerConfig, check_floor, check_step


@dataclasses.dataclass(kw_only=True)
class WarmupStableDecayConfig(SchedulerConfig):
    """Stays at the peak and falls to the floor in the last steps."""

    name: Literal["warmup_stable_decay"] = "warmup_stable_decay"

    decay_ratio: float
    """Share of the run, at its end, in which the rate falls from the peak to the floor."""

    def factor(self, step: int, total_steps: int) -> float:
        return warmup_stable_decay_factor(
            step,
            total_steps=total_steps,
            decay_ratio=self.decay_ratio,
            warmup_ratio=self.warmup_ratio,
            min_lr_ratio=self.min_lr_ratio,
        )

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if not 0 < self.decay_ratio <= 1:
            yield f"scheduler.decay_ratio={self.decay_ratio}: a share of the steps, above 0, at most 1"
        elif 0 <= self.warmup_ratio < 1 < self.warmup_ratio + self.decay_ratio:
            yield (
                f"scheduler.decay_ratio={self.decay_ratio}: with scheduler.warmup_ratio={self.warmup_ratio} more than "
                "the whole run; lower one of the two"
            )

    def warnings(self, total_steps: int) -> list[str]:
        found = super().warnings(total_steps)
        if round(self.decay_ratio * total_steps) == 0:
            found.append(
                f"scheduler.decay_ratio={self.decay_ratio}: the decay of the run ({total_steps} steps) rounds to none"
            )
        return found


def warmup_stable_decay_factor(
    step: int, *, total_steps: int, decay_ratio: float, warmup_ratio: float, min_lr_ratio: float
) -> float:
    """Warm-up, a stable peak, and decay (WSD; MiniCPM, Hu et al. 2024, arXiv 2404.06395): from the floor up to 1, where
    it stays until the last round(decay_ratio * total_steps) steps, which fall to the floor in a straight line.

    It stays at the floor once `step` has reached `total_steps`. Raises ValueError for values outside their ranges.
    """
    check_step(step, total_steps, warmup_ratio)
    check_floor(min_lr_ratio)
    if not (decay_ratio > 0 and warmup_ratio + decay_ratio <= 1):
        raise ValueError(f"decay_ratio={decay_ratio}: above 0, and at most 1 together with warmup_ratio")
    warmup = round(warmup_ratio * total_steps)
    # Where both shares are rounded up, the warm-up is kept whole.
    stable_until = max(warmup, total_steps - round(decay_ratio * total_steps))
    if step < warmup:
        return min_lr_ratio + (1 - min_lr_ratio) * step / warmup
    if step <= stable_until and step < total_steps:
        return 1.0
    left = max(0, total_steps - step)
    return min_lr_ratio + (1 - min_lr_ratio) * left / max(1, total_steps - stable_until)
