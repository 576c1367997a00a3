"""Common prefixes of token sequences, so that their keys and values are computed once."""

from __future__ import annotations

import bisect
from collections.abc import Sequence

import numpy as np

MIN_SHARED_TOKENS = 32
"""Shorter prefixes are not worth copying: the extra forward pass costs more than it saves."""


class Prefixes:
    """The common prefixes of token sequences. Sequences of different owners share none."""

    def __init__(self, sequences: Sequence[Sequence[int]], owners: Sequence[int] | None = None) -> None:
        """`owners` has an entry for each of `sequences`; None: all have the same."""
        owners = [0] * len(sequences) if owners is None else owners
        # With the owner in front, sequences of different owners differ at their first entry.
        keys = [[owner, *sequence] for owner, sequence in zip(owners, sequences, strict=True)]
        self._order = sorted(range(len(keys)), key=keys.__getitem__)
        self.rank = [0] * len(keys)
        """Rank of each sequence in lexical order. Neighbours share the longest prefixes."""
        for rank, number in enumerate(self._order):
            self.rank[number] = rank
        self._keys = [np.array(key) for key in keys]

    def common(self, one: int, other: int) -> int:
        """Length in tokens of the common prefix of sequences `one` and `other`, given by index."""
        first, second = self._keys[one], self._keys[other]
        length = min(len(first), len(second))
        differs = first[:length] != second[:length]
        return max(0, (int(differs.argmax()) if differs.any() else length) - 1)

    def nearest(self, number: int, others: Sequence[int]) -> tuple[int, int]:
        """The one of `others` (sorted by rank) that shares the longest prefix with `number`, and its length in tokens;
        (-1, 0) if there are none."""
        place = bisect.bisect_left(others, self.rank[number], key=self.rank.__getitem__)
        around = [(self.common(number, other), -other) for other in others[max(0, place - 1) : place + 1]]
        length, negative = max(around, default=(0, 1))
        return -negative, length

    def families(self) -> list[list[int]]:
        """Indices of all sequences in groups whose members share at least half of their length with their neighbour;
        the group with the longest sequence first."""
        groups: list[list[int]] = []
        for number in self._order:
            half = len(self._keys[number]) / 2
            if groups and self.common(groups[-1][-1], number) >= half:
                groups[-1].append(number)
            else:
                groups.append([number])
        return sorted(groups, key=lambda group: -max(len(self._keys[number]) for number in group))
