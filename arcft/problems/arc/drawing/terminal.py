"""Grids in the terminal: a character for two cells one above the other, or digits where there are no colours."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.style import Style
from rich.table import Table
from rich.text import Text

from arcft.problems.arc.drawing.colors import PALETTE
from arcft.problems.arc.task import Grid


@dataclasses.dataclass(frozen=True)
class GridsSideBySide:
    """A rich renderable: named grids side by side. A grid of None is drawn as the word `none`."""

    grids: Sequence[tuple[str, Grid | None]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), show_header=True)
        for name, _ in self.grids:
            table.add_column(name, no_wrap=True)
        colored = console.color_system is not None
        table.add_row(
            *(Text("none", style="dim") if grid is None else _blocks(grid, colored) for _, grid in self.grids)
        )
        yield table
        yield Segment.line()


def _blocks(grid: Grid, colored: bool) -> Text:
    if not colored:
        return Text("\n".join("".join(str(cell) for cell in row) for row in grid))
    text = Text()
    for top in range(0, grid.shape[0], 2):
        for column in range(grid.shape[1]):
            upper = PALETTE[grid[top, column]]
            if top + 1 < grid.shape[0]:
                text.append("▀", Style(color=upper, bgcolor=PALETTE[grid[top + 1, column]]))
            else:
                text.append("▀", Style(color=upper))
        text.append("\n")
    text.rstrip()
    return text
