"""Pictures show the cells that they should."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageColor

from arcft.problems.arc.drawing.colors import PALETTE, draw_grid
from arcft.problems.arc.task import as_grid

GRID = as_grid([[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]])


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
