"""The progress bar of everything that can take long."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from arcft.console import console
from arcft.names import visible

BEAT = 60.0
"""Longest time between two lines with `beats`, in seconds."""

Advance = Callable[[int, str], None]
"""Called with the number done and a few words to show beside the bar; the number may repeat."""


@contextlib.contextmanager
def progress_bar(title: str, total: int, done: int = 0, *, beats: bool = False) -> Iterator[Advance]:
    """Show a bar with `total` items; yields the function that moves it. Without a terminal, print a line per tenth.

    `beats`: print a line every minute as well, and rely on the words to say how long it will take.
    """
    if not sys.stdout.isatty():
        yield _line_printer(title, total, done, BEAT if beats else math.inf)
        return
    columns: list[ProgressColumn] = [
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(table_column=Column(min_width=7)),  # on a narrow terminal, the bar shrinks
    ]
    if not beats:
        columns += [TextColumn("<"), TimeRemainingColumn(table_column=Column(min_width=7))]
    columns.append(TextColumn("{task.fields[words]}", markup=False))
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task(title, total=total, completed=done, words="")
        yield lambda count, words: progress.update(bar, completed=count, words=words)


def _line_printer(title: str, total: int, done: int, beat: float) -> Advance:
    tenth = max(1, total // 10)
    printed = done
    next_beat = time.monotonic() + beat

    def advance(count: int, words: str) -> None:
        nonlocal printed, next_beat
        moved = count > printed and (count >= printed + tenth or count == total)
        if moved or time.monotonic() >= next_beat:
            print(visible(f"{title} {count}/{total}  {words}".rstrip()), flush=True)
            printed = count
            next_beat = time.monotonic() + beat

    return advance
