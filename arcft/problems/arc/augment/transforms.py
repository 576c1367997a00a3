"""Transforms of a task into another valid task: symmetries, colours, orders, swaps, compositions.

A transform is a frozen value. `apply` transforms a task, `invert` maps an output predicted for the transformed task
back. The selection of transforms, and the finding that composition helps, come from the arc24 project
(https://github.com/ironbar/arc24).
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from arcft.problems.arc.augment.operations import (
    MAX_PADDING,
    MAX_UPSCALE,
    MIRROR_DIRECTIONS,
    GridOperation,
    Mirror,
    Named,
    Padding,
    Upscale,
    require_permutation,
    require_range,
)
from arcft.problems.arc.task import MAX_SIDE, NUM_COLORS, Grid, Pair, Task, TaskError, as_grid


class Transform(Named):
    """A pure function from tasks to tasks; `to_dict` serialises it."""

    @abc.abstractmethod
    def apply(self, task: Task) -> Task:
        """The transformed task, with the same id. Raises TaskError where the transform doesn't fit the task."""

    def invert(self, grid: Grid) -> Grid:
        """The output in the original task that `grid` stands for in the transformed one."""
        return grid


@dataclasses.dataclass(frozen=True)
class Identity(Transform):
    """Changes nothing."""

    name = "identity"

    def apply(self, task: Task) -> Task:
        return task


@dataclasses.dataclass(frozen=True)
class Geometric(Transform, GridOperation):
    """One of the 8 symmetries of the square: left and right flipped first, then quarter turns counter-clockwise."""

    flip: bool
    quarter_turns: int

    name = "geometric"

    def __post_init__(self) -> None:
        if not isinstance(self.flip, bool):
            raise TaskError(f"geometric.flip={self.flip!r}: true or false")
        require_range(self, "quarter_turns", 0, 3)

    def on_grid(self, grid: Grid) -> NDArray[np.int8]:
        # np.fliplr and np.rot90 give the same but take ten times as long, which is noticeable in the data pipeline.
        start = grid[:, ::-1] if self.flip else grid
        turned = start.T if self.quarter_turns % 2 else start
        return turned[:: -1 if self.quarter_turns in (1, 2) else 1, :: -1 if self.quarter_turns in (2, 3) else 1]

    def apply(self, task: Task) -> Task:
        return _map_grids(task, self.on_grid)

    def invert(self, grid: Grid) -> Grid:
        turned_back = np.rot90(grid, -self.quarter_turns)
        return as_grid(np.fliplr(turned_back) if self.flip else turned_back)


SYMMETRIES: tuple[Geometric, ...] = tuple(Geometric(flip, turns) for flip in (False, True) for turns in range(4))
"""The 8 symmetries of the square, the identity first."""


@dataclasses.dataclass(frozen=True)
class ColorPermutation(Transform):
    """Colour c becomes mapping[c] in every grid."""

    mapping: tuple[int, ...]

    name = "colors"

    def __post_init__(self) -> None:
        require_permutation(self, "mapping", NUM_COLORS)

    def apply(self, task: Task) -> Task:
        table = np.array(self.mapping, dtype=np.int8)
        return _map_grids(task, lambda grid: table[grid])

    def invert(self, grid: Grid) -> Grid:
        return as_grid(np.argsort(self.mapping)[grid])


@dataclasses.dataclass(frozen=True)
class PairOrder(Transform):
    """Demonstration k of the new task is demonstration order[k] of the old one."""

    order: tuple[int, ...]

    name = "pair_order"

    def __post_init__(self) -> None:
        require_permutation(self, "order")

    def apply(self, task: Task) -> Task:
        _require_length(self, self.order, len(task.train), f"task {task.id} has", "demonstrations")
        return dataclasses.replace(task, train=tuple(task.train[index] for index in self.order))


@dataclasses.dataclass(frozen=True)
class SwapTrainTest(Transform):
    """Pool demonstrations and test pairs, put them in `order`, and refill both with as many as there were.

    Every pair can become a test, because `order` ranges over all permutations of the whole pool.
    """

    order: tuple[int, ...]

    name = "swap_train_test"

    def __post_init__(self) -> None:
        require_permutation(self, "order")

    def apply(self, task: Task) -> Task:
        pool = task.train + task.test
        _require_length(self, self.order, len(pool), f"task {task.id} has", "pairs")
        if not task.has_answers:
            raise TaskError(f"task {task.id}: a test output is not known; swap_train_test needs every one")
        pairs = tuple(pool[index] for index in self.order)
        return dataclasses.replace(task, train=pairs[: len(task.train)], test=pairs[len(task.train) :])


@dataclasses.dataclass(frozen=True)
class Composition(Transform):
    """A new task: `operation` applied to all inputs, or to all outputs, of the old one. For training only."""

    side: Literal["input", "output"]
    operation: GridOperation

    name = "composition"

    def __post_init__(self) -> None:
        if self.side not in ("input", "output"):
            raise TaskError(f"composition.side={self.side!r}: one of input, output")
        if not isinstance(self.operation, GridOperation):
            raise TaskError(f"composition.operation={self.operation!r}: geometric, padding, upscale or mirror")

    def apply(self, task: Task) -> Task:
        if self.side == "input":
            return _map_pairs(task, lambda pair: Pair(self.operation.on_grid(pair.input), pair.output))
        return _map_pairs(task, lambda pair: Pair(pair.input, _on_known(self.operation.on_grid, pair.output)))

    def invert(self, grid: Grid) -> Grid:
        raise TaskError("composition makes another puzzle, whose answers can't be turned back; it is for training only")


@dataclasses.dataclass(frozen=True)
class Chain(Transform):
    """Transforms applied one after another; `invert` undoes them in reverse order."""

    transforms: tuple[Transform, ...]

    name = "chain"

    def __post_init__(self) -> None:
        object.__setattr__(self, "transforms", tuple(self.transforms))
        for transform in self.transforms:
            if not isinstance(transform, Transform):
                raise TaskError(f"chain.transforms: {transform!r} is not a transform of tasks")

    def apply(self, task: Task) -> Task:
        for transform in self.transforms:
            task = transform.apply(task)
        return task

    def invert(self, grid: Grid) -> Grid:
        for transform in reversed(self.transforms):
            grid = transform.invert(grid)
        return grid


def draw_transform(
    task: Task,
    rng: np.random.Generator,
    *,
    geometric: bool,
    colors: bool,
    permute_background: float,
    pair_order: bool,
    swap_train_test: bool,
    composition: float,
    composition_weights: Mapping[str, float],
) -> Transform:
    """Draw a transform for training; each option is the key of that name in the group `augmentation`.

    The order is swap, composition, symmetry, colours, order of the demonstrations. The swap is skipped if a test
    output is unknown, and a composition if it would make a grid larger than 30x30.
    """
    parts: list[Transform] = []
    if swap_train_test and task.has_answers:
        parts.append(SwapTrainTest(_permutation(len(task.train) + len(task.test), rng)))
    if composition and rng.random() < composition:
        parts.append(_draw_composition(task, rng, composition_weights))
    if geometric:
        parts.append(SYMMETRIES[rng.integers(len(SYMMETRIES))])
    if colors:
        parts.append(_draw_colors(rng, background=rng.random() < permute_background))
    if pair_order:
        parts.append(PairOrder(_permutation(len(task.train), rng)))
    return _chain(parts)


def deal_transforms(
    task: Task, count: int, rng: np.random.Generator, *, geometric: bool, colors: bool, pair_order: bool
) -> list[Transform]:
    """Transforms for `count` predictions of one task; the first is the identity.

    The symmetries are dealt round-robin, so that for any `count` their frequencies differ by at most one. Colours (1 to
    9; the background is kept) and the order of the demonstrations are drawn at random.
    """
    dealt: list[Transform] = []
    for index in range(count):
        parts: list[Transform] = []
        if geometric:
            parts.append(SYMMETRIES[index % len(SYMMETRIES)])
        if colors and index:
            parts.append(_draw_colors(rng, background=False))
        if pair_order and index:
            parts.append(PairOrder(_permutation(len(task.train), rng)))
        dealt.append(_chain(parts))
    return dealt


def _draw_composition(task: Task, rng: np.random.Generator, weights: Mapping[str, float]) -> Transform:
    side: Literal["input", "output"] = "input" if rng.random() < 0.5 else "output"
    names = [name for name, weight in weights.items() if weight > 0]
    total = sum(weights[name] for name in names)
    drawn = names[rng.choice(len(names), p=[weights[name] / total for name in names])]
    grids = [getattr(pair, side) for pair in task.train + task.test]
    fitting = [
        operation
        for operation in _operations(drawn, rng)
        if all(max(operation.on_grid(grid).shape) <= MAX_SIDE for grid in grids if grid is not None)
    ]
    return Composition(side, fitting[rng.integers(len(fitting))]) if fitting else Identity()


def _operations(name: str, rng: np.random.Generator) -> list[GridOperation]:
    """The operations of one type, equally likely among those that fit."""
    if name == "geometric":
        return [*SYMMETRIES[1:]]
    if name == "padding":
        color = int(rng.integers(NUM_COLORS))
        return [Padding(size, color) for size in range(1, MAX_PADDING + 1)]
    if name == "upscale":
        return [Upscale(factor) for factor in range(2, MAX_UPSCALE + 1)]
    if name == "mirror":
        return [Mirror(direction) for direction in MIRROR_DIRECTIONS]
    raise TaskError(f"composition_weights.{name}: one of geometric, padding, upscale, mirror")


def _draw_colors(rng: np.random.Generator, *, background: bool) -> ColorPermutation:
    if background:
        return ColorPermutation(_permutation(NUM_COLORS, rng))
    return ColorPermutation((0, *(color + 1 for color in _permutation(NUM_COLORS - 1, rng))))


def _permutation(length: int, rng: np.random.Generator) -> tuple[int, ...]:
    return tuple(int(item) for item in rng.permutation(length))


def _chain(parts: Sequence[Transform]) -> Transform:
    """The shortest equivalent transform: parts that change nothing are dropped."""
    parts = [part for part in parts if part not in (Identity(), SYMMETRIES[0])]
    if len(parts) == 1:
        return parts[0]
    return Chain(tuple(parts)) if parts else Identity()


def _map_grids(task: Task, change: Callable[[Grid], NDArray[np.int8]]) -> Task:
    return _map_pairs(task, lambda pair: Pair(change(pair.input), _on_known(change, pair.output)))


def _map_pairs(task: Task, change: Callable[[Pair], Pair]) -> Task:
    return dataclasses.replace(task, train=tuple(map(change, task.train)), test=tuple(map(change, task.test)))


def _on_known(change: Callable[[Grid], NDArray[np.int8]], grid: Grid | None) -> NDArray[np.int8] | None:
    return None if grid is None else change(grid)


def _require_length(owner: Named, order: Sequence[int], length: int, has: str, what: str) -> None:
    if len(order) != length:
        raise TaskError(f"{owner.name}.order has {len(order)} entries where {has} {length} {what}")
