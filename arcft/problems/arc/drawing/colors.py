"""Draw grids in the colours of ARC."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageColor, ImageDraw

from arcft.problems.arc.task import Grid

PALETTE = (
    *("#000000", "#1E93FF", "#F93C31", "#4FCC30", "#FFDC00"),
    *("#999999", "#E53AA3", "#FF851B", "#87D8F1", "#921231"),
)
"""Colours 0 to 9 as on https://arcprize.org."""

_LINE = "#555555"
_PALETTE_RGB = np.array([ImageColor.getrgb(color) for color in PALETTE], dtype=np.uint8)


def draw_grid(grid: Grid, cell: int) -> Image.Image:
    """The grid as an RGB picture of `cell` x `cell` pixels a cell; from 4 pixels on, lines part the cells."""
    pixels = _PALETTE_RGB[grid].repeat(cell, axis=0).repeat(cell, axis=1)
    picture = Image.fromarray(pixels)
    if cell < 4:
        return picture
    width = 1 if cell < 24 else 2
    draw = ImageDraw.Draw(picture)
    rows, columns = grid.shape
    for row in range(rows + 1):
        top = min(row * cell, rows * cell - width)
        draw.rectangle((0, top, columns * cell - 1, top + width - 1), fill=_LINE)
    for column in range(columns + 1):
        left = min(column * cell, columns * cell - width)
        draw.rectangle((left, 0, left + width - 1, rows * cell - 1), fill=_LINE)
    return picture
