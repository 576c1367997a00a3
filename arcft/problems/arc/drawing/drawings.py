"""Grids as HTML: one pixel a cell, enlarged and ruled by the page's CSS, so that hundreds of tasks stay small."""

from __future__ import annotations

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor

from arcft.problems.arc.drawing.colors import PALETTE
from arcft.problems.arc.task import Grid

CSS = """\
.grid {
  position: relative; display: block; line-height: 0; border: 1px solid #70757e;
  width: calc(var(--w) * var(--c) * 1px + 2px); height: calc(var(--h) * var(--c) * 1px + 2px);
}
.grid img { position: absolute; inset: 0; width: 100%; height: 100%; image-rendering: pixelated; }
.grid::after {
  content: ""; position: absolute; inset: 0; background-size: calc(var(--c) * 1px) calc(var(--c) * 1px);
  background-position: -1px -1px;
  background-image: linear-gradient(to right, #70757e90 1px, transparent 1px),
    linear-gradient(to bottom, #70757e90 1px, transparent 1px);
}
"""

DOT = 5
"""Pixels a cell of the overlay that marks wrong cells: a light ring around a dark dot."""


def cell_size(side: int, room: int) -> int:
    """Pixels of a cell, so that a grid whose longer side is `side` cells takes about `room` pixels."""
    return max(4, min(26, room // side))


def grid_html(grid: Grid, cell: int, *, truth: Grid | None = None) -> str:
    """The grid as a <span> with an image; cells that differ from a `truth` of the same shape carry a dot."""
    rows, columns = grid.shape
    images = _img(_colors_png(grid), f"{rows}x{columns} grid")
    if truth is not None and truth.shape == grid.shape and not np.array_equal(grid, truth):
        images += _img(_dots_png(grid != truth), "wrong cells")
    return f'<span class="grid" style="--w:{columns};--h:{rows};--c:{cell}">{images}</span>'


def _img(png: bytes, words: str) -> str:
    return f'<img alt="{words}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def _colors_png(grid: Grid) -> bytes:
    image = Image.fromarray(np.asarray(grid, dtype=np.uint8), mode="P")
    image.putpalette([part for color in PALETTE for part in ImageColor.getrgb(color)])
    return _png(image)


def _dots_png(wrong: NDArray[np.bool_]) -> bytes:
    transparent, light, dark = 0, 1, 2
    dot = np.full((DOT, DOT), transparent, dtype=np.uint8)
    dot[1:-1, 1:-1] = light
    dot[DOT // 2, DOT // 2] = dark
    image = Image.fromarray(np.kron(wrong.astype(np.uint8), dot), mode="P")
    image.putpalette([0, 0, 0, 255, 255, 255, 0, 0, 0])
    return _png(image, transparency=transparent)


def _png(image: Image.Image, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True, **options)
    return buffer.getvalue()
