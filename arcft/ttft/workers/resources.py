"""The share of a machine or cluster that each worker gets."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

CORES_EACH = 4
"""Cores per worker without GPUs: each worker holds the base model, and a pass keeps a few cores busy."""


@dataclasses.dataclass(frozen=True)
class Node:
    """A machine."""

    cores: int
    gpus: int


@dataclasses.dataclass(frozen=True)
class WorkerResources:
    """What each of `count` workers gets."""

    count: int
    cores: int
    """Cores on one machine; 0 if there are fewer cores than workers."""

    gpus: float
    """1, or a fraction if there are fewer GPUs than workers; 0 without GPUs."""

    @property
    def threads(self) -> int:
        return max(1, self.cores)


def share(nodes: Sequence[Node], count: int | None) -> WorkerResources:
    """Divide `nodes` among `count` workers; by default one per GPU or, without GPUs, one per CORES_EACH cores."""
    gpus = sum(node.gpus for node in nodes)
    if count is None:
        count = gpus or max(1, sum(node.cores // CORES_EACH for node in nodes))
    # Ray rounds fractions of a GPU to 1/10,000.
    gpus_each = math.floor(10_000 / math.ceil(count / gpus)) / 10_000 if gpus else 0.0
    cores = max(node.cores for node in nodes) if nodes else 0
    while cores and sum(_places(node, cores, gpus_each) for node in nodes) < count:
        cores -= 1
    return WorkerResources(count, cores, gpus_each)


def _places(node: Node, cores: int, gpus: float) -> int:
    """How many workers fit on a machine."""
    by_cores = node.cores // cores
    return min(by_cores, int(node.gpus / gpus)) if gpus else by_cores
