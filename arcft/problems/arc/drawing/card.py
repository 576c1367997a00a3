"""The Card of ARC: every drawing is a grid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from arcft.problems.arc.drawing.colors import draw_grid
from arcft.problems.arc.drawing.drawings import CSS, cell_size, grid_html
from arcft.problems.arc.drawing.terminal import GridsSideBySide
from arcft.problems.arc.task import GridAnswer, Pair, as_grid_answer, as_task
from arcft.protocols import Answer, Problem
from arcft.reporting.words import count

LARGEST_CELL = 48
"""Pixels of a cell in a picture, at most."""


class GridCard:
    """Draws inputs, outputs and attempts alike, each given as a GridAnswer."""

    noun: str = "grid"
    css: str = CSS
    legend: str = "In an attempt of the right size, a dot marks a wrong cell."

    def demonstrations(self, problem: Problem) -> list[tuple[GridAnswer, GridAnswer]]:
        """Input and output of each."""
        return [(GridAnswer(pair.input), _output(pair)) for pair in as_task(problem).train]

    def question(self, problem: Problem, test_index: int) -> GridAnswer:
        """The test input."""
        return GridAnswer(as_task(problem).test[test_index].input)

    def html(self, drawn: Sequence[tuple[GridAnswer, Answer | None]], *, room: int) -> list[str]:
        """Each as a <span>; the longest side takes about `room` pixels. Cells that differ from a true answer of the
        same shape carry a dot."""
        cell = cell_size(max((side for answer, _ in drawn for side in answer.grid.shape), default=1), room)
        return [
            grid_html(answer.grid, cell, truth=None if truth is None else as_grid_answer(truth).grid)
            for answer, truth in drawn
        ]

    def image(self, drawn: GridAnswer, box: int) -> Image.Image:
        """The grid with cells as large as fits into `box` x `box` pixels, of LARGEST_CELL pixels at most."""
        return draw_grid(drawn.grid, cell=max(1, min(LARGEST_CELL, box // max(drawn.grid.shape))))

    def terminal(self, named: Sequence[tuple[str, GridAnswer | None]]) -> GridsSideBySide:
        """Named grids side by side."""
        return GridsSideBySide([(name, None if answer is None else answer.grid) for name, answer in named])

    def difference(self, answer: Answer, truth: Answer) -> str:
        """`wrong size`, or the number of wrong cells."""
        grid, true = as_grid_answer(answer).grid, as_grid_answer(truth).grid
        return "wrong size" if grid.shape != true.shape else count(int(np.sum(grid != true)), "wrong cell")


def _output(pair: Pair) -> GridAnswer:
    assert pair.output is not None  # Task has checked it of demonstrations
    return GridAnswer(pair.output)
