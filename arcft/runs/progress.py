"""One progress bar, the same for everything that can run long."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

Advance = Callable[[int, str], None]
"""Called with how many are done, and a few words to show beside the bar. The number may stay as it was."""


@contextlib.contextmanager
def progress_bar(title: str, total: int, done: int = 0) -> Iterator[Advance]:
    """Show a bar of `total`; yields the function that moves it. Where output is no terminal, a line every tenth."""
    if not sys.stdout.isatty():
        yield _line_printer(title, total, done)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(table_column=Column(min_width=7)),  # where it is narrow, the bar gives way
        TextColumn("<"),
        TimeRemainingColumn(table_column=Column(min_width=7)),
        TextColumn("{task.fields[words]}"),
    )
    with Progress(*columns) as progress:
        bar = progress.add_task(title, total=total, completed=done, words="")
        yield lambda count, words: progress.update(bar, completed=count, words=words)


def _line_printer(title: str, total: int, done: int) -> Advance:
    tenth = max(1, total // 10)
    printed = done

    def advance(count: int, words: str) -> None:
        nonlocal printed
        if count > printed and (count >= printed + tenth or count == total):
            print(f"{title} {count}/{total}  {words}".rstrip(), flush=True)
            printed = count

    return advance
