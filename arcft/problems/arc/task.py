"""Grids, pairs, tasks and answers, checked wherever one enters the program."""

from __future__ import annotations

import dataclasses
import functools
import reprlib
from collections.abc import Hashable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arcft.names import fault_of_id
from arcft.protocols import Answer, Problem, ProblemError

Grid = NDArray[np.int8]
"""A read-only int8 array [rows, columns], 1x1 to 30x30, of colours 0 to 9."""

MAX_SIDE = 30
NUM_COLORS = 10


class TaskError(ProblemError):
    """A grid, pair, task or task file that breaks a rule of ARC."""


def check_id(task_id: str, where: str) -> None:
    """Raise TaskError, which `where` opens, for an id that is blank or can't be stored."""
    fault = fault_of_id(task_id)
    if fault:
        raise TaskError(f"{where}: the task id {_shorten(task_id)} {fault}; give the task another id")


def as_grid(value: Any, *, where: str = "grid") -> Grid:
    """Check `value` (a list of rows or a 2-D integer array) and return it as a read-only Grid.

    `where` opens the message of the TaskError, for example `tasks.json: task 007bbfb7, train pair 1, input`.
    """
    if isinstance(value, np.ndarray):
        if value.ndim != 2 or value.dtype.kind not in "iu":
            raise TaskError(f"{where}: a grid is a 2-D array of integers, not {value.ndim}-D of {value.dtype}")
        array = value
    else:
        array = _array_from_rows(value, where)
    rows, columns = array.shape
    if not (1 <= rows <= MAX_SIDE and 1 <= columns <= MAX_SIDE):
        raise TaskError(f"{where}: {rows}x{columns} (rows x columns); a grid has 1 to {MAX_SIDE} of each")
    # Of int8, as all grids are once they were checked, one look finds both: seen as uint8, colours below 0 are large.
    if array.dtype == np.int8:
        outside = array.view(np.uint8).max() >= NUM_COLORS
    else:
        outside = array.min() < 0 or array.max() >= NUM_COLORS
    if outside:
        row, column = (int(index) for index in np.argwhere((array < 0) | (array >= NUM_COLORS))[0])
        raise TaskError(
            f"{where}: colour {array[row, column]} at row {row + 1}, column {column + 1}; "
            f"colours are 0 to {NUM_COLORS - 1}"
        )
    grid = np.array(array, dtype=np.int8, order="C")
    grid.setflags(write=False)
    return grid


def _array_from_rows(value: Any, where: str) -> NDArray[np.int64]:
    if not isinstance(value, list | tuple) or not value:
        raise TaskError(f"{where}: a grid is a non-empty list of rows, not {_shorten(value)}")
    for number, row in enumerate(value, 1):
        if not isinstance(row, list | tuple) or not row:
            raise TaskError(f"{where}: row {number} is {_shorten(row)}; a row is a non-empty list of colours")
        if len(row) != len(value[0]):
            raise TaskError(
                f"{where}: row {number} has {len(row)} cells where row 1 has {len(value[0])}; "
                "all rows of a grid are equally long"
            )
        for column, cell in enumerate(row, 1):
            if isinstance(cell, bool) or not isinstance(cell, int | np.integer):
                raise TaskError(
                    f"{where}: {_shorten(cell)} at row {number}, column {column}; a colour is a whole number 0 to 9"
                )
            if not -(2**31) <= cell < 2**31:
                raise TaskError(
                    f"{where}: colour {_shorten(cell)} at row {number}, column {column}; colours are 0 to 9"
                )
    return np.array(value, dtype=np.int64)


def _shorten(value: Any, limit: int = 40) -> str:
    # Unlike repr, it ends at some depth.
    text = reprlib.repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


@dataclasses.dataclass(frozen=True, eq=False)
class Pair:
    """An input grid and its output grid; `output` is None where the answer is not known."""

    input: Grid
    output: Grid | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "input", as_grid(self.input, where="input"))
        if self.output is not None:
            object.__setattr__(self, "output", as_grid(self.output, where="output"))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pair) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[tuple[tuple[int, int], bytes] | None, ...]:
        return tuple(None if grid is None else (grid.shape, grid.tobytes()) for grid in (self.input, self.output))


@dataclasses.dataclass(frozen=True)
class Task:
    """A puzzle: demonstrations `train`, each with an output, and at least one `test` pair."""

    id: str
    train: tuple[Pair, ...]
    test: tuple[Pair, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "train", _pairs(self.train))
        object.__setattr__(self, "test", _pairs(self.test))
        if not self.train:
            raise TaskError(f"task {self.id}: no train pair; a task shows at least one demonstration")
        if not self.test:
            raise TaskError(f"task {self.id}: no test pair; a task asks for at least one output")
        for number, pair in enumerate(self.train, 1):
            if pair.output is None:
                raise TaskError(f"task {self.id}, train pair {number}: no output; only test outputs may be missing")

    @property
    def has_answers(self) -> bool:
        """Whether every test output is known."""
        return all(pair.output is not None for pair in self.test)

    @functools.cached_property
    def answers(self) -> tuple[GridAnswer | None, ...]:
        """The output of each test; None where it is not known."""
        return tuple(None if pair.output is None else GridAnswer(pair.output) for pair in self.test)


@dataclasses.dataclass(frozen=True, eq=False)
class GridAnswer:
    """A grid as the answer to a test; equal if shape and cells are."""

    grid: Grid

    @property
    def key(self) -> Hashable:
        return self.grid.shape, self.grid.tobytes()

    def to_json(self) -> list[list[int]]:
        """Rows of colours."""
        rows: list[list[int]] = self.grid.tolist()
        return rows

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GridAnswer) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


def as_task(problem: Problem) -> Task:
    """`problem` as the Task that it is; raise TypeError for a problem of another kind."""
    if not isinstance(problem, Task):
        raise TypeError(f"{type(problem).__name__} is not a Task")
    return problem


def as_grid_answer(answer: Answer) -> GridAnswer:
    """`answer` as the GridAnswer that it is; raise TypeError for an answer of another kind."""
    if not isinstance(answer, GridAnswer):
        raise TypeError(f"{type(answer).__name__} is not a GridAnswer")
    return answer


def _pairs(pairs: Iterable[Pair]) -> tuple[Pair, ...]:
    return tuple(pairs)
