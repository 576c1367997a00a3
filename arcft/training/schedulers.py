"""Learning-rate schedules: pure functions of the step, as factors of the peak rate.

Every schedule climbs from the floor to its peak during the warm-up, a share of the run or, with restarts, of each
cycle, and never goes below the floor.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

from arcft.config.scheduler import SchedulerConfig


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
    _check(step, total_steps, warmup_ratio)
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


def linear_factor(step: int, *, total_steps: int, warmup_ratio: float, min_lr_ratio: float) -> float:
    """From the floor up to 1 during the warm-up, then down to the floor in a straight line, where it stays."""
    _check(step, total_steps, warmup_ratio)
    _check_floor(min_lr_ratio)
    warmup = round(warmup_ratio * total_steps)
    if step < warmup:
        return min_lr_ratio + (1 - min_lr_ratio) * step / warmup
    if step >= total_steps:
        return min_lr_ratio
    return min_lr_ratio + (1 - min_lr_ratio) * (total_steps - step) / (total_steps - warmup)


def constant_factor(step: int, *, total_steps: int, warmup_ratio: float, min_lr_ratio: float) -> float:
    """From the floor up to 1 during the warm-up, where it stays, also after `total_steps`."""
    _check(step, total_steps, warmup_ratio)
    _check_floor(min_lr_ratio)
    warmup = round(warmup_ratio * total_steps)
    return min_lr_ratio + (1 - min_lr_ratio) * step / warmup if step < warmup else 1.0


def warmup_stable_decay_factor(
    step: int, *, total_steps: int, decay_ratio: float, warmup_ratio: float, min_lr_ratio: float
) -> float:
    """Warm-up, a stable peak, and decay (WSD; MiniCPM, Hu et al. 2024, arXiv 2404.06395): from the floor up to 1, where
    it stays until the last round(decay_ratio * total_steps) steps, which fall to the floor in a straight line.

    It stays at the floor once `step` has reached `total_steps`. Raises ValueError for values outside their ranges.
    """
    _check(step, total_steps, warmup_ratio)
    _check_floor(min_lr_ratio)
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


def make_factor(config: SchedulerConfig, total_steps: int) -> Callable[[int], float]:
    """The configured schedule as a function of the step alone."""

    def factor(step: int) -> float:
        ends = {"warmup_ratio": config.warmup_ratio, "min_lr_ratio": config.min_lr_ratio}
        if config.name == "cosine_with_restarts":
            if config.num_cycles is None or config.decay is None:
                raise ValueError("cosine_with_restarts needs num_cycles and decay")
            return cosine_with_restarts_factor(
                step, total_steps=total_steps, num_cycles=config.num_cycles, decay=config.decay, **ends
            )
        if config.name == "warmup_stable_decay":
            if config.decay_ratio is None:
                raise ValueError("warmup_stable_decay needs decay_ratio")
            return warmup_stable_decay_factor(step, total_steps=total_steps, decay_ratio=config.decay_ratio, **ends)
        one_cycle = {"linear": linear_factor, "cosine": cosine_factor, "constant": constant_factor}[config.name]
        return one_cycle(step, total_steps=total_steps, **ends)

    factor(0)
    return factor


def schedule_warnings(config: SchedulerConfig, total_steps: int) -> list[str]:
    """What is allowed, and hardly meant: a line for each cycle without steps, without warm-up or without its peak, and
    for a decay without steps."""
    warnings = []
    num_cycles = config.num_cycles or 1
    bounds = _boundaries(total_steps, num_cycles)
    for number, (start, end) in enumerate(itertools.pairwise(bounds), start=1):
        length = end - start
        warmup = round(config.warmup_ratio * length)
        which = f"cycle {number} of {num_cycles}" if num_cycles > 1 else "the run"
        if length == 0:
            warnings.append(
                f"scheduler.num_cycles={num_cycles}: {which} has no step in training.max_steps={total_steps}"
            )
        elif warmup >= length:
            warnings.append(
                f"scheduler.warmup_ratio={config.warmup_ratio}: {which} ({length} steps) ends in its warm-up and never "
                "reaches its peak"
            )
        elif config.warmup_ratio > 0 and warmup == 0:
            warnings.append(
                f"scheduler.warmup_ratio={config.warmup_ratio}: the warm-up of {which} ({length} steps) rounds to none"
            )
    if config.decay_ratio is not None and round(config.decay_ratio * total_steps) == 0:
        warnings.append(
            f"scheduler.decay_ratio={config.decay_ratio}: the decay of the run ({total_steps} steps) rounds to none"
        )
    return warnings


def _boundaries(total_steps: int, num_cycles: int) -> list[int]:
    return [round(cycle * total_steps / num_cycles) for cycle in range(num_cycles + 1)]


def _cycle_of(step: int, total_steps: int, num_cycles: int) -> tuple[int, int, int]:
    bounds = _boundaries(total_steps, num_cycles)
    # The last cycle that has begun; where cycles are shorter than a step, those without one are passed over.
    cycle = max(k for k in range(num_cycles) if bounds[k] <= step)
    return cycle, bounds[cycle], bounds[cycle + 1]


def _check(step: int, total_steps: int, warmup_ratio: float) -> None:
    if step < 0:
        raise ValueError(f"step={step}: at least 0")
    if total_steps < 1:
        raise ValueError(f"total_steps={total_steps}: at least 1")
    if not 0 <= warmup_ratio < 1:
        raise ValueError(f"warmup_ratio={warmup_ratio}: from 0 to below 1")


def _check_floor(min_lr_ratio: float) -> None:
    if not 0 <= min_lr_ratio <= 1:
        raise ValueError(f"min_lr_ratio={min_lr_ratio}: from 0 to 1")
