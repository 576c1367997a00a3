"""What the programs print: one console, with lines that can be copied whole, notes, and tables.

Everything printed here also goes to the logger `arcft.console`, which a program connects to the log file of its job
(`log_to`). Progress bars print themselves and stay out of the log.
"""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from arcft.names import visible


class SafeConsole(Console):
    """Prints text as it is: no markup, no emoji codes, and control characters as escapes, which a terminal would
    obey."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(visible(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else visible(text), style, control)


console = SafeConsole()
"""Looks up sys.stdout and the terminal's width at each print."""

log = logging.getLogger("arcft.console")
log.propagate = False  # the root logger of Hydra's jobs prints to the terminal as well
log.addHandler(logging.NullHandler())


def log_to(handlers: Sequence[logging.Handler]) -> None:
    """Copy what is printed from now on to `handlers`, in place of earlier ones."""
    for handler in handlers:
        if not isinstance(handler.formatter, _VisibleFormatter):
            handler.setFormatter(_VisibleFormatter(handler.formatter or logging.Formatter()))
    log.handlers[:] = [*handlers, logging.NullHandler()]
    log.setLevel(logging.INFO if handlers else logging.WARNING)


class _VisibleFormatter(logging.Formatter):
    """Formats as another formatter does, with control characters as escapes."""

    def __init__(self, wrapped: logging.Formatter) -> None:
        super().__init__()
        self._wrapped = wrapped

    def format(self, record: logging.LogRecord) -> str:
        return visible(self._wrapped.format(record))


def say(text: str, style: str | None = None) -> None:
    """Print a line as it is: brackets are no markup, numbers are not coloured, and a long path is not broken."""
    console.print(Text(visible(text), style or ""), soft_wrap=True)
    log.info("%s", text)


def note(text: str) -> None:
    """Print `note: TEXT`: something the user should know and need not act on."""
    console.print(Text.assemble(("note:", "yellow"), " ", visible(text)), soft_wrap=True)
    log.info("note: %s", text)


def warn(text: str) -> None:
    """Print `warning: TEXT`: something that may well end in an error."""
    console.print(Text.assemble(("warning:", "bold yellow"), " ", visible(text)), soft_wrap=True)
    log.warning("warning: %s", text)


def complain(text: str) -> None:
    """Print a line to standard error; the caller logs it."""
    print(visible(text), file=sys.stderr)


def say_path(what: str, path: Path) -> None:
    """Print `WHAT: PATH`, the path in bold and in one piece."""
    console.print(Text.assemble(f"{what}: ", (visible(str(path)), "bold")), soft_wrap=True)
    log.info("%s: %s", what, path)


def show(table: RenderableType) -> None:
    """Print a table or a drawing."""
    print_with(lambda target: target.print(table))


def print_with(draw: Callable[[Console], None]) -> None:
    """Let `draw` print to the console, and once more without colours for the log."""
    draw(console)
    if log.isEnabledFor(logging.INFO):
        plain = SafeConsole(file=io.StringIO(), width=console.width, color_system=None)
        with plain.capture() as capture:
            draw(plain)
        log.info("%s", "\n" + capture.get().rstrip())
