"""A run's time: what steps and predictions cost, learned from those done, and what of them each unit can have."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

from arcft.ttft.units import Event, Unit


class Costs:
    """Seconds of steps and predictions, learned from events, in proportion to a unit's length."""

    def observe(self, event: Event, unit: Unit) -> None: ...


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a unit is given."""

    steps: int
    predictions: int
    deadline: float
    """Seconds since the epoch."""


class Budget:
    """`total_seconds` for a run of which `used` are gone (`Ledger.elapsed`), worked on by `workers` at a time."""

    def __init__(
        self,
        total_seconds: float,
        used: float = 0.0,
        clock: Callable[[], float] = time.time,
        *,
        workers: int = 1,
        slots: int = 1,
    ) -> None:
        """`slots`: units that a worker has in hand at a time, at most."""
