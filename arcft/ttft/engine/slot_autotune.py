"""Choose the number of adapters per pass, by timing real training steps."""

from __future__ import annotations

import statistics
from typing import Literal

from arcft.models.adapter_config import LoraError

MOST = 8
"""The largest number that is tried."""

PAIRS = 5
"""Timed pairs of passes per comparison."""

WAITING = 3
"""Passes without enough units before the search stops: the queue may hold units back until step costs are known."""

GAIN = 1.05
"""Required speedup of twice as many slots; otherwise fewer are kept, which need less memory and finish sooner."""


def resolve_slots(
    slots: int | Literal["auto"] | None, device_type: str, *, can_share: bool = True
) -> int | Literal["auto"]:
    """Resolve ttft.slots for a device: null means 1 on a CPU, which one task keeps busy, and auto elsewhere.

    Where the adapters of several tasks can't share a pass, it is 1; raises LoraError if `slots` asks for more.
    """
    if not can_share:
        if slots in (None, 1, "auto"):
            return 1
        raise LoraError(
            f"ttft.slots={slots}: the adapters change fused experts, which serve all rows of a batch at once, so they "
            "can't share a pass; use ttft.slots=1, or leave the experts out of lora.target_modules"
        )
    if slots is not None:
        return slots
    return 1 if device_type == "cpu" else "auto"


class SlotSearch:
    """Alternates passes of `level` and of twice as many adapters, and doubles `level` while that is faster.

    Two consecutive passes see the same machine, so the median of their ratios is robust against changes that averages
    of each are not: other load, a dropping clock rate. The first pair of a level is a warm-up and is not counted.
    """

    def __init__(self, level: int = 1) -> None:
        self.level = level
        self.choice: int | None = None
        self.gains: dict[int, float] = {}
        """By number of adapters, the speedup in tokens/s over half as many."""
        self._pair = -1
        self._ratios: list[float] = []
        self._last: float | None = None
        self._waited = 0

    @property
    def units_needed(self) -> int:
        """The number of units that the next pass needs."""
        return self.choice or 2 * self.level

    def next(self) -> tuple[int, int]:
        """First slot and number of slots of the next pass; alternating, so that all slots advance."""
        if self._last is None:
            return 0, 2 * self.level
        return (self._pair % 2) * self.level, self.level

    def record(self, tokens: int, seconds: float) -> None:
        """Record the throughput of the pass that `next` returned."""
        self._waited = 0
        rate = tokens / max(seconds, 1e-9)
        if self._last is None:
            self._last = rate
            return
        if self._pair >= 0:
            self._ratios.append(self._last / rate)
            self.gains[2 * self.level] = statistics.median(self._ratios)
        self._last = None
        self._pair += 1
        if self._pair < PAIRS:
            return
        if not self._pays():
            self.choice = self.level
            return
        self.level *= 2
        self._pair, self._ratios = -1, []
        if self.level == MOST:
            self.choice = self.level

    def wait(self) -> None:
        """Note that there are too few units for the next pass; after WAITING times the search stops."""
        self._last = None
        self._waited += 1
        if self._waited > WAITING:
            self.stop()

    def stop(self, *, at_most: int | None = None) -> None:
        """Decide on the measurements so far, because there are no more units, or no memory for more slots."""
        more = 2 * self.level if len(self._ratios) * 2 > PAIRS and self._pays() else self.level
        self.choice = more if at_most is None else min(more, at_most)

    def words(self) -> str:
        """For example `2 are 1.52 times as fast as 1, 4 are 1.01 times as fast as 2`."""
        return ", ".join(f"{count} are {gain:.2f} times as fast as {count // 2}" for count, gain in self.gains.items())

    def _pays(self) -> bool:
        return self.gains[2 * self.level] > GAIN
