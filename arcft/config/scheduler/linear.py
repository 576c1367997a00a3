"""Warm-up, then a straight line down to the floor."""

from __future__ import annotations

import dataclasses
from typing import Literal

from arcft.config.scheduler.base import SchedulerConfig, check_floor, check_step


@dataclasses.dataclass(kw_only=True)
class LinearConfig(SchedulerConfig):
    """Falls to the floor over the whole run."""

    name: Literal["linear"] = "linear"

    def factor(self, step: int, total_steps: int) -> float:
        return linear_factor(
            step, total_steps=total_steps, warmup_ratio=self.warmup_ratio, min_lr_ratio=self.min_lr_ratio
        )


def linear_factor(step: int, *, total_steps: int, warmup_ratio: float, min_lr_ratio: float) -> float:
    """From the floor up to 1 during the warm-up, then in a straight line down to the floor, where it stays."""
    check_step(step, total_steps, warmup_ratio)
    check_floor(min_lr_ratio)
    warmup = round(warmup_ratio * total_steps)
    if step < warmup:
        return min_lr_ratio + (1 - min_lr_ratio) * step / warmup
    if step >= total_steps:
        return min_lr_ratio
    return min_lr_ratio + (1 - min_lr_ratio) * (total_steps - step) / (total_steps - warmup)
