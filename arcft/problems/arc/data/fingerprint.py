"""A digest of tasks and pools, to tell whether two runs used the same data."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from arcft.problems.arc.data.pair_cache import PackedPairs
from arcft.problems.arc.data.sources import PairPool
from arcft.problems.arc.task import Grid, Pair, Task


def data_fingerprint(items: Iterable[Task | PairPool]) -> str:
    """sha256 over ids and grids, in order: equal fingerprints mean equal tasks."""
    digest = hashlib.sha256()
    for item in items:
        pairs = item.pairs if isinstance(item, PairPool) else (*item.train, *item.test)
        digest.update(repr((item.id, len(pairs))).encode())
        for pair in map(pairs.grids, range(len(pairs))) if isinstance(pairs, PackedPairs) else map(_grids, pairs):
            for grid in pair:
                digest.update(b"-" if grid is None else repr(grid.shape).encode() + grid.tobytes())
    return digest.hexdigest()


def _grids(pair: Pair) -> tuple[Grid, Grid | None]:
    return pair.input, pair.output
