"""What train.py and evaluate.py show in the terminal, and the picture of predicted against true grids."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.style import Style
from rich.table import Table
from rich.text import Text

from arcft.problems.arc.drawing.colors import PALETTE
from arcft.problems.arc.scoring.metrics import METRICS
from arcft.problems.arc.task import Grid, Task
from arcft.reporting.words import DEFINITIONS, count, percent, plus_minus
from arcft.scoring.voting import Attempts

LEARNED = "bold black on green"
NOT_LEARNED = "dim"
COMPARED = ("accuracy", "correct_pixels", "correct_size", "pass_n", "unanswered", "vote_1", "vote_2")
"""As many metrics as 80 columns hold."""

LONGEST_EXAMPLE = 1500
"""Tokens shown of an example; of a longer one, its beginning and its end."""


def print_example(console: Console, tokens: Sequence[str], labels_mask: Sequence[bool]) -> None:
    """Print the text of a training example, in colour where `labels_mask` says that a token is learned.

    Without colours the learned parts stand between the marks >>> and <<<.
    """
    if len(tokens) != len(labels_mask):
        raise ValueError(f"{len(tokens)} tokens, but a mask for {len(labels_mask)}")
    colored = console.color_system is not None
    text = Text()
    for start, end in _shown(len(tokens)):
        if start:
            text.append(f"\n... {count(start - LONGEST_EXAMPLE // 2, 'token')} not shown ...\n", style="italic")
        for first, last in _runs(labels_mask, start, end):
            part = "".join(tokens[first:last])
            if not labels_mask[first]:
                text.append(part, style=NOT_LEARNED)
            elif colored:
                # A newline has no width: without a sign, whether it is learned could not be seen.
                text.append(part.replace("\n", "↵\n"), style=LEARNED)
            else:
                text.append(f">>>{part}<<<")
    learned = sum(labels_mask)
    how = "the green ones" if colored else "those between >>> and <<<"
    console.print(
        f"[bold]The first training example[/]: {count(len(tokens), 'token')}; learned are {how}, {learned:,}",
        highlight=False,
        soft_wrap=True,
    )
    console.print(text, highlight=False)


def metrics_table(
    metrics: Mapping[str, Mapping[str, float]],
    *,
    errors: Mapping[str, Mapping[str, float]] | None = None,
    title: str | None = None,
) -> Table:
    """A table of metrics in percent, for a rich console.

    `metrics` and, where known, their standard `errors` are by name (of a checkpoint, a run, ...). A single one is
    written from top to bottom with what each metric means; several are a row each, in the metrics of COMPARED.
    """
    errors = errors or {}
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    if len(metrics) == 1:
        ((name, values),) = metrics.items()
        table.add_column("metric")
        table.add_column(name, justify="right", overflow="fold")
        table.add_column("share of", style="dim")
        for metric in METRICS:
            if metric in values:
                table.add_row(metric, _cell(values, errors.get(name, {}), metric), DEFINITIONS[metric])
        return table
    table.add_column("", no_wrap=True)
    for metric in COMPARED:
        table.add_column(
            metric.replace("_", "\n").replace("unanswered", "un-\nanswered"), justify="right", no_wrap=True
        )
    for name, values in metrics.items():
        cells = (_cell(values, errors.get(name, {}), metric) for metric in COMPARED)
        table.add_row(name, *(cell.replace("± ", "±").replace(" ", "\n") for cell in cells))
    return table


@dataclasses.dataclass(frozen=True)
class GridsSideBySide:
    """A rich renderable: named grids beside each other, a character for two cells one above the other.

    Without colours the digits are printed. A grid of None is drawn as the word `none`.
    """

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


def grids_side_by_side(grids: Sequence[tuple[str, Grid | None]]) -> GridsSideBySide:
    """For example `console.print(grids_side_by_side([("predicted", grid), ("true", truth)]))`."""
    return GridsSideBySide(tuple(grids))


def predictions_picture(path: Path | str, tasks: Sequence[Task], attempts: Attempts, count: int) -> None:
    """Write a PNG of the first `count` tests of `tasks`: input, true output where it is known, and both attempts."""
    # Only here, since it brings matplotlib along for its fonts.
    from arcft.problems.arc.drawing.mosaic import draw_page, tiles_of_task

    tiles = [
        tile
        for task in tasks
        for tile in tiles_of_task(
            task, [attempts.get((task.id, index), ()) for index in range(len(task.test))], shown=2
        )
    ]
    if not tiles or count < 1:
        raise ValueError("no tests to draw")
    draw_page(tiles[:count]).save(path, optimize=True)


def _shown(number: int) -> list[tuple[int, int]]:
    if number <= LONGEST_EXAMPLE:
        return [(0, number)]
    half = LONGEST_EXAMPLE // 2
    return [(0, half), (number - half, number)]


def _runs(mask: Sequence[bool], start: int, end: int) -> list[tuple[int, int]]:
    """Stretches of equal values between start and end, as (first, last + 1)."""
    borders = [start, *(index for index in range(start + 1, end) if mask[index] != mask[index - 1]), end]
    return [(first, last) for first, last in itertools.pairwise(borders) if first < last]


def _cell(values: Mapping[str, float], errors: Mapping[str, float], metric: str) -> str:
    if metric not in values:
        return ""
    error = plus_minus(errors[metric]) if metric in errors else ""
    return f"{percent(values[metric])} {error}".strip()


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
