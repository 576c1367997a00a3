"""Cycles of warm-up and half a cosine, with peaks that decay."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from typing import Literal

from arcft.config.scheduler.base import SchedulerConfig, check_step


@dataclasses.dataclass(kw_only=True)
class CosineWithRestartsConfig(SchedulerConfig):
    """Falls to the floor in each cycle; each cycle's peak is `decay` times the one before."""

    name: Literal["cosine_with_restarts"] = "cosine_with_restarts"

    num_cycles: int
    """Number of cycles in the run."""

    decay: float
    """Peak of a cycle relative to the one before."""

    def factor(self, step: int, total_steps: int) -> float:
        return cosine_with_restarts_factor(
            step,
            total_steps=total_steps,
            num_cycles=self.num_cycles,
            decay=self.decay,
            warmup_ratio=self.warmup_ratio,
            min_lr_ratio=self.min_lr_ratio,
        )

    def problems(self) -> Iterator[str]:
        if self.num_cycles < 1:
            yield f"scheduler.num_cycles={self.num_cycles}: at least 1"
        if not 0 < self.decay <= 1:
            yield f"scheduler.decay={self.decay}: above 0, at most 1"
        elif self.num_cycles >= 1 and 0 <= self.min_lr_ratio <= 1:
            lowest_peak = self.decay ** (self.num_cycles - 1)
            if self.min_lr_ratio > lowest_peak:
                yield (
                    f"scheduler.min_lr_ratio={self.min_lr_ratio}: from 0 to {lowest_peak:.4g}, the last cycle's peak "
                    "(decay ** (num_cycles - 1))"
                )
        yield from super().problems()

    def warnings(self, total_steps: int) -> list[str]:
        found = []
        for number, (start, end) in enumerate(itertools.pairwise(_boundaries(total_steps, self.num_cycles)), start=1):
            cycle = f"cycle {number} of {self.num_cycles}" if self.num_cycles > 1 else "the run"
            if end == start:
                found.append(
                    f"scheduler.num_cycles={self.num_cycles}: {cycle} has no step in training.max_steps={total_steps}"
                )
            else:
                found += self._warmup_warnings(cycle, end - start)
        return found


def cosine_with_restarts_factor(
    step: int,
    *,
    total_steps: int,
    num_cycles: int,
    decay: float,
    warmup_ratio: float,
    min_lr_ratio: float,
) -> float:
    """Cosine annealing with warm restarts (Loshchilov and Hutter 2016) whose peaks decay: cycle k, from 0, climbs to
    `decay ** k` and falls to `min_lr_ratio`, where the factor stays once `step` has reached `total_steps`.

    Cycle k begins at step round(k * total_steps / num_cycles). Raises ValueError for values outside their ranges.
    """
    check_step(step, total_steps, warmup_ratio)
    if num_cycles < 1:
        raise ValueError(f"num_cycles={num_cycles}: at least 1")
    if not 0 < decay <= 1:
        raise ValueError(f"decay={decay}: above 0, at most 1")
    if not 0 <= min_lr_ratio <= decay ** (num_cycles - 1):
        raise ValueError(f"min_lr_ratio={min_lr_ratio}: from 0 to the last cycle's peak, decay ** (num_cycles - 1)")
    if step >= total_steps:
        return min_lr_ratio
    cycle, start, end = _cycle_of(step, total_steps, num_cycles)
    peak = decay**cycle
    warmup, since = round(warmup_ratio * (end - start)), step - start
    if since < warmup:
        return min_lr_ratio + (peak - min_lr_ratio) * since / warmup
    fallen = math.pi * (since - warmup) / (end - start - warmup)
    return min_lr_ratio + (peak - min_lr_ratio) * (1 + math.cos(fallen)) / 2


def _boundaries(total_steps: int, num_cycles: int) -> list[int]:
    return [round(cycle * total_steps / num_cycles) for cycle in range(num_cycles + 1)]


def _cycle_of(step: int, total_steps: int, num_cycles: int) -> tuple[int, int, int]:
    bounds = _boundaries(total_steps, num_cycles)
    # The last cycle that has begun; where cycles are shorter than a step, those without one are passed over.
    cycle = max(k for k in range(num_cycles) if bounds[k] <= step)
    return cycle, bounds[cycle], bounds[cycle + 1]
