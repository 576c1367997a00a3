"""Warm-up, then half a cosine down to the floor."""

from __future__ import annotations

import dataclasses
from typing import Literal

from arcft.config.scheduler.base import SchedulerConfig
from arcft.config.scheduler.cosine_with_restarts import cosine_with_restarts_factor


@dataclasses.dataclass(kw_only=True)
class CosineConfig(SchedulerConfig):
    """Falls to the floor over the whole run."""

    name: Literal["cosine"] = "cosine"

    def factor(self, step: int, total_steps: int) -> float:
        return cosine_factor(
            step, total_steps=total_steps, warmup_ratio=self.warmup_ratio, min_lr_ratio=self.min_lr_ratio
        )


def cosine_factor(step: int, *, total_steps: int, warmup_ratio: float, min_lr_ratio: float) -> float:
    """One cycle of cosine_with_restarts_factor."""
    return cosine_with_restarts_factor(
        step,
        total_steps=total_steps,
        num_cycles=1,
        decay=1.0,
        warmup_ratio=warmup_ratio,
        min_lr_ratio=min_lr_ratio,
    )
