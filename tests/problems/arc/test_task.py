"""Grids, pairs and tasks refuse what breaks a rule of ARC, and say what and where."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcft.problems.arc.task import Pair, Task, TaskError, as_grid


def rows_of_colors() -> st.SearchStrategy[list[list[int]]]:
    return st.tuples(st.integers(1, 30), st.integers(1, 30)).flatmap(
        lambda shape: st.lists(
            st.lists(st.integers(0, 9), min_size=shape[1], max_size=shape[1]), min_size=shape[0], max_size=shape[0]
        )
    )


@given(rows_of_colors())
def test_a_grid_holds_its_rows(rows: list[list[int]]) -> None:
    grid = as_grid(rows)
    assert grid.dtype == np.int8
    assert grid.tolist() == rows
    assert as_grid(grid.astype(np.uint64)).tolist() == rows


def test_a_grid_is_a_read_only_copy() -> None:
    array = np.zeros((2, 2), dtype=np.int8)
    grid = as_grid(array)
    array[0, 0] = 5
    assert grid[0, 0] == 0
    with pytest.raises(ValueError, match="read-only"):
        grid[0, 0] = 1


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([[0, 1], [2]], "g: row 2 has 1 cells where row 1 has 2; all rows of a grid are equally long"),
        ([[0, 10]], "g: colour 10 at row 1, column 2; colours are 0 to 9"),
        ([[0], [-1]], "g: colour -1 at row 2, column 1; colours are 0 to 9"),
        ([[10**30]], f"g: colour {10**30} at row 1, column 1; colours are 0 to 9"),
        ([[0.5]], "g: 0.5 at row 1, column 1; a colour is a whole number 0 to 9"),
        ([[1.0]], "g: 1.0 at row 1, column 1; a colour is a whole number 0 to 9"),
        ([[True]], "g: True at row 1, column 1; a colour is a whole number 0 to 9"),
        ([["1"]], "g: '1' at row 1, column 1; a colour is a whole number 0 to 9"),
        ([[0]] * 31, "g: 31x1 (rows x columns); a grid has 1 to 30 of each"),
        ([[0] * 31], "g: 1x31 (rows x columns); a grid has 1 to 30 of each"),
        ([], "g: a grid is a non-empty list of rows, not []"),
        ([[]], "g: row 1 is []; a row is a non-empty list of colours"),
        ([[1], 2], "g: row 2 is 2; a row is a non-empty list of colours"),
        (None, "g: a grid is a non-empty list of rows, not None"),
        (np.zeros((2, 2)), "g: a grid is a 2-D array of integers, not 2-D of float64"),
        (np.zeros(4, dtype=np.int8), "g: a grid is a 2-D array of integers, not 1-D of int8"),
        (np.zeros((2, 0), dtype=np.int8), "g: 2x0 (rows x columns); a grid has 1 to 30 of each"),
        (np.full((1, 2), 255, dtype=np.uint8), "g: colour 255 at row 1, column 1; colours are 0 to 9"),
        (np.ones((1, 1), dtype=bool), "g: a grid is a 2-D array of integers, not 2-D of bool"),
    ],
)
def test_a_broken_grid_is_refused(value: Any, message: str) -> None:
    with pytest.raises(TaskError) as caught:
        as_grid(value, where="g")
    assert str(caught.value) == message


def test_pairs_are_compared_by_value() -> None:
    pair = Pair(as_grid([[1]]), as_grid([[2]]))
    assert pair == Pair(as_grid([[1]]), as_grid([[2]]))
    assert len({pair, Pair(as_grid([[1]]), as_grid([[2]])), Pair(as_grid([[1]]))}) == 2
    assert Pair(as_grid([[1, 2]])) != Pair(as_grid([[1], [2]]))


def test_a_task_has_demonstrations_and_a_test() -> None:
    pair = Pair(as_grid([[1]]), as_grid([[2]]))
    task = Task("a", (pair,), (pair, Pair(pair.input)))
    assert not task.has_answers
    assert dataclasses.replace(task, test=(pair,)).has_answers
    with pytest.raises(TaskError, match="task a: no train pair"):
        Task("a", (), (pair,))
    with pytest.raises(TaskError, match="task a: no test pair"):
        Task("a", (pair,), ())
    with pytest.raises(TaskError, match="task a, train pair 2: no output; only test outputs may be missing"):
        Task("a", (pair, Pair(pair.input)), (pair,))
