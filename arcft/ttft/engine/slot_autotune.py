"""How many adapters to train in one pass: measured on units as they come, with steps that count."""

from __future__ import annotations

import statistics
from typing import Literal

MOST = 8
"""As many as are tried."""

PAIRS = 5
WAITING = 3
"""Passes without enough units that it puts up with: a queue may hold them back until it knows what steps cost."""
GAIN = 1.05
"""Twice as many must be so much faster, or fewer are kept: they take less memory, and finish sooner."""


def resolve_slots(slots: int | Literal["auto"] | None, device_type: str) -> int | Literal["auto"]:
    """What ttft.slots stands for on a device: null is 1 on a CPU, which one task keeps busy, and else auto."""
    if slots is not None:
        return slots
    return 1 if device_type == "cpu" else "auto"


class SlotSearch:
    """Compares passes of `level` and of twice as many adapters in turn, and goes on from there while that pays.

    Pairs of passes that follow each other see the same machine, so a median of their ratios stands what one average
    of each would not: a neighbour's load, a clock that drops. The first pair of a level warms up and is not counted.
    """

    def __init__(self, level: int = 1) -> None:
        self.level = level
        self.choice: int | None = None
        self.gains: dict[int, float] = {}
        """By the number of adapters: how many times as many tokens a second as with half of them."""
        self._pair = -1
        self._ratios: list[float] = []
        self._last: float | None = None
        self._waited = 0

    @property
    def wanted(self) -> int:
        """How many units have to be at hand for the next pass."""
        return self.choice or 2 * self.level

    def next(self) -> tuple[int, int]:
        """The first slot and the number of slots of the next pass; in turn, so that all slots advance."""
        if self._last is None:
            return 0, 2 * self.level
        return (self._pair % 2) * self.level, self.level

    def record(self, tokens: int, seconds: float) -> None:
        """Tell what the pass that `next` asked for has done."""
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
        """Tell that there are too few units for the next pass, which is then another; once too often, it stops."""
        self._last = None
        self._waited += 1
        if self._waited > WAITING:
            self.stop()

    def stop(self, *, at_most: int | None = None) -> None:
        """Decide by what is known: there are no more units to measure with, or no memory for more."""
        more = 2 * self.level if len(self._ratios) * 2 > PAIRS and self._pays() else self.level
        self.choice = more if at_most is None else min(more, at_most)

    def words(self) -> str:
        """For example `2 are 1.52 times as fast as 1, 4 are 1.01 times as fast as 2`."""
        return ", ".join(f"{count} are {gain:.2f} times as fast as {count // 2}" for count, gain in self.gains.items())

    def _pays(self) -> bool:
        return self.gains[2 * self.level] > GAIN
