"""A few tasks that a model was adapted to: a table of how each went, and a picture of the solved ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from arcft.problems.arc.task import Grid, Pair, Task
from arcft.reporting.adaptation import TaskRow
from arcft.reporting.outcomes import SOLVED, is_right
from arcft.reporting.words import duration
from arcft.scoring.voting import Attempts


def showcase_table(rows: Sequence[TaskRow]) -> Table:
    """A row for each task, for a rich console of 80 columns: solved or not, votes, loss and seconds."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("task", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("votes")
    table.add_column("loss before", justify="right", no_wrap=True)
    table.add_column("after", justify="right", no_wrap=True)
    table.add_column("time", justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.task_id,
            _state(row),
            row.votes,
            *("" if loss is None else f"{loss:.3f}" for loss in (row.loss_first, row.loss_last)),
            duration((row.adapt_seconds or 0.0) + (row.predict_seconds or 0.0)),
            style="bold" if row.solved else None,
        )
    return table


def right_attempt(pair: Pair, attempts: Sequence[Grid]) -> Grid | None:
    """The attempt that is the true output of `pair`, if one is, else the first one there is."""
    return next((grid for grid in attempts if is_right(grid, pair.output)), attempts[0] if attempts else None)


def showcase_picture(path: Path | str, tasks: Sequence[Task], attempts: Attempts) -> None:
    """Write a PNG of solved tasks: for each test a demonstration, the input, predicted and true output."""
    # Only here, since it brings matplotlib along for its fonts.
    from arcft.problems.arc.drawing.mosaic import Panel, Tile, draw_page

    tiles = []
    for task in tasks:
        first = task.train[0]
        for index, test in enumerate(task.test):
            predicted = right_attempt(test, attempts.get((task.id, index), ()))
            panels = [
                Panel("demonstration", first.input),
                Panel("its output", first.output),
                Panel("input", test.input),
                Panel("predicted", predicted, None if predicted is None else is_right(predicted, test.output)),
                Panel("true output", test.output),
            ]
            tiles.append(Tile(task.id, SOLVED.color, panels))
    draw_page(tiles, box=120).save(path, optimize=True)


def _state(row: TaskRow) -> str:
    if row.state != "done":
        return row.state
    return {True: "solved", False: "not solved", None: "answered"}[row.solved]
