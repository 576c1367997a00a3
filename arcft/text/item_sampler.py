"""The order in which training draws from its sources."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from arcft.protocols import Item, ProblemError

_STREAM = 0x7A5C
"""Opens every seed of ItemSampler. NumPy's seeds [s, k] and [s, k, 0] are the same, so without it a caller who seeds
augmentations with (seed, k, attempt) would draw them in step with the items."""


class ItemSampler:
    """An endless sequence of items from weighted sources, in which item k is a pure function of (seed, k).

    A single source is passed through again and again, each time in a new order. Of several, one is drawn by weight for
    each item, and then an item from it.
    """

    def __init__(self, sources: Sequence[tuple[float, Sequence[Item]]], *, seed: int) -> None:
        if not sources or not all(len(items) for _, items in sources):
            raise ProblemError("no task to draw from; a source of tasks is empty after selection")
        weights = np.array([weight for weight, _ in sources], dtype=np.float64)
        if not (np.isfinite(weights).all() and (weights > 0).all()):
            raise ProblemError(f"weights of sources {weights.tolist()}: each must be above 0")
        self._sources = [list(items) for _, items in sources]
        self._shares = weights / weights.sum()
        self._seed = seed

    def item(self, k: int) -> Item:
        """Item k, counted from 0."""
        if len(self._sources) == 1:
            (items,) = self._sources
            number, position = divmod(k, len(items))
            return items[_order_of_pass(self._seed, number, len(items))[position]]
        rng = np.random.default_rng([_STREAM, self._seed, k])
        items = self._sources[rng.choice(len(self._sources), p=self._shares)]
        return items[int(rng.integers(len(items)))]


@functools.lru_cache(maxsize=4)
def _order_of_pass(seed: int, number: int, length: int) -> list[int]:
    order: list[int] = np.random.default_rng([_STREAM, seed, number]).permutation(length).tolist()
    return order
