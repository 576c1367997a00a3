"""A few tasks that a model was adapted to: a table of how each went."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from arcft.reporting.adaptation import TaskRow
from arcft.reporting.words import duration


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


def _state(row: TaskRow) -> str:
    if row.state != "done":
        return row.state
    return {True: "solved", False: "not solved", None: "answered"}[row.solved]
