"""Operations on grids that may change their size; `Composition` applies one to all inputs or outputs of a task."""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from arcft.problems.arc.task import NUM_COLORS, Grid, TaskError

MAX_PADDING = 5
MAX_UPSCALE = 4
MIRROR_DIRECTIONS: tuple[Literal["down", "right", "both"], ...] = ("down", "right", "both")


class Named(abc.ABC):
    """A frozen dataclass that is serialised under its name."""

    name: ClassVar[str]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: the name and the fields."""
        return {"name": self.name, **{key: _to_plain(value) for key, value in vars(self).items()}}


class GridOperation(Named):
    """A map from grids to grids."""

    @abc.abstractmethod
    def on_grid(self, grid: Grid) -> NDArray[np.int8]:
        """The transformed grid, int8 [rows, columns]; may exceed 30x30."""


@dataclasses.dataclass(frozen=True)
class Padding(GridOperation):
    """A border of one colour, `size` cells wide, on all four sides."""

    size: int
    color: int

    name = "padding"

    def __post_init__(self) -> None:
        require_range(self, "size", 1, MAX_PADDING)
        require_range(self, "color", 0, NUM_COLORS - 1)

    def on_grid(self, grid: Grid) -> NDArray[np.int8]:
        return np.pad(grid, self.size, constant_values=self.color)


@dataclasses.dataclass(frozen=True)
class Upscale(GridOperation):
    """Every cell becomes a square of factor x factor cells."""

    factor: int

    name = "upscale"

    def __post_init__(self) -> None:
        require_range(self, "factor", 2, MAX_UPSCALE)

    def on_grid(self, grid: Grid) -> NDArray[np.int8]:
        return grid.repeat(self.factor, axis=0).repeat(self.factor, axis=1)


@dataclasses.dataclass(frozen=True)
class Mirror(GridOperation):
    """The grid and its mirror image below it (`down`), to its right (`right`), or both, which makes four."""

    direction: Literal["down", "right", "both"]

    name = "mirror"

    def __post_init__(self) -> None:
        if self.direction not in MIRROR_DIRECTIONS:
            raise TaskError(f"mirror.direction={self.direction!r}: one of {', '.join(MIRROR_DIRECTIONS)}")

    def on_grid(self, grid: Grid) -> NDArray[np.int8]:
        mirrored: NDArray[np.int8] = grid
        if self.direction != "right":
            mirrored = np.vstack([mirrored, np.flipud(mirrored)])
        if self.direction != "down":
            mirrored = np.hstack([mirrored, np.fliplr(mirrored)])
        return mirrored


def require_range(owner: Named, field: str, lowest: int, highest: int) -> None:
    """TaskError unless the field is a whole number within both bounds."""
    value = getattr(owner, field)
    if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= highest:
        raise TaskError(f"{owner.name}.{field}={value!r}: a whole number from {lowest} to {highest}")


def require_permutation(owner: Named, field: str, length: int | None = None) -> None:
    """TaskError unless the field holds each of 0 .. length - 1 once, by default its own length; stored as a tuple."""
    value = getattr(owner, field)
    if not isinstance(value, list | tuple) or not all(type(item) is int for item in value):
        raise TaskError(f"{owner.name}.{field}={value!r}: a list of whole numbers")
    length = len(value) if length is None else length
    if sorted(value) != list(range(length)):
        raise TaskError(f"{owner.name}.{field}={value!r}: each of 0 to {length - 1} once")
    object.__setattr__(owner, field, tuple(value))


def _to_plain(value: Any) -> Any:
    if isinstance(value, Named):
        return value.to_dict()
    return [_to_plain(item) for item in value] if isinstance(value, tuple) else value
