"""Warm-up, then constant."""

from __future__ import annotations

import dataclasses
from typing import Literal

from arcft.config.scheduler.base import SchedulerConfig, check_floor, check_step


@dataclasses.dataclass(kw_only=True)
class ConstantConfig(SchedulerConfig):
    """Stays at the peak."""

    name: Literal["constant"] = "constant"

    def factor(self, step: int, total_steps: int) -> float:
        return constant_factor(
            step, total_steps=total_steps, warmup_ratio=self.warmup_ratio, min_lr_ratio=self.min_lr_ratio
        )


def constant_factor(step: int, *, total_steps: int, warmup_ratio: float, min_lr_ratio: float) -> float:
    """From the floor up to 1 during the warm-up, where it stays, also after `total_steps`."""
    check_step(step, total_steps, warmup_ratio)
    check_floor(min_lr_ratio)
    warmup = round(warmup_ratio * total_steps)
    return min_lr_ratio + (1 - min_lr_ratio) * step / warmup if step < warmup else 1.0
