"""Which sequences begin alike, so that what a model makes of their beginning is computed once."""

from __future__ import annotations

import bisect
from collections.abc import Sequence

import numpy as np

SHORTEST = 32
"""Tokens that are worth copying: below, a pass of its own for the first one costs more than it saves."""


class Prefixes:
    """The common beginnings of `sequences`; those of different `owners` have none."""

    def __init__(self, sequences: Sequence[Sequence[int]], owners: Sequence[int] | None = None) -> None:
        owners = [0] * len(sequences) if owners is None else owners
        keys = [[owner, *sequence] for owner, sequence in zip(owners, sequences, strict=True)]
        self._order = sorted(range(len(keys)), key=keys.__getitem__)
        self.rank = [0] * len(keys)
        """Where each sequence stands in their lexical order: the nearest ones share most."""
        for rank, number in enumerate(self._order):
            self.rank[number] = rank
        self._keys = [np.array(key) for key in keys]

    def common(self, one: int, other: int) -> int:
        """How many tokens the sequences `one` and `other` have in common at their beginning."""
        first, second = self._keys[one], self._keys[other]
        length = min(len(first), len(second))
        differs = first[:length] != second[:length]
        return max(0, (int(differs.argmax()) if differs.any() else length) - 1)

    def nearest(self, number: int, others: Sequence[int]) -> tuple[int, int]:
        """Which of `others`, given in the order of their ranks, has most in common with sequence `number`, and how many
        tokens: (-1, 0) if there are none."""
        place = bisect.bisect_left(others, self.rank[number], key=self.rank.__getitem__)
        around = [(self.common(number, other), -other) for other in others[max(0, place - 1) : place + 1]]
        length, negative = max(around, default=(0, 1))
        return -negative, length

    def families(self) -> list[list[int]]:
        """All sequences in groups that have at least half of their length in common, those of the longest first."""
        groups: list[list[int]] = []
        for number in self._order:
            half = len(self._keys[number]) / 2
            if groups and self.common(groups[-1][-1], number) >= half:
                groups[-1].append(number)
            else:
                groups.append([number])
        return sorted(groups, key=lambda group: -max(len(self._keys[number]) for number in group))
