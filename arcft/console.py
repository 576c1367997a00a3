"""What the programs print: one console, with lines that can be copied whole, notes, and tables.

Everything printed here also goes to the logger `arcft.console`, which a program connects to the log file of its job
(`log_to`). Progress bars print themselves and stay out of the log.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console, RenderableType
from rich.text import Text

console = Console(highlight=False)
"""Looks up sys.stdout and the terminal's width at each print."""

log = logging.getLogger("arcft.console")
log.propagate = False  # the root logger of Hydra's jobs prints to the terminal as well
log.addHandler(logging.NullHandler())


def log_to(handlers: Sequence[logging.Handler]) -> None:
    """Copy what is printed from now on to `handlers`, in place of earlier ones."""
    log.handlers[:] = [*handlers, logging.NullHandler()]
    log.setLevel(logging.INFO if handlers else logging.WARNING)


def say(text: str, style: str | None = None) -> None:
    """Print a line as it is: brackets are no markup, numbers are not coloured, and a long path is not broken."""
    console.print(Text(text, style or ""), soft_wrap=True)
    log.info("%s", text)


def note(text: str) -> None:
    """Print `note: TEXT`: something the user should know and need not act on."""
    console.print(Text.assemble(("note:", "yellow"), " ", text), soft_wrap=True)
    log.info("note: %s", text)


def say_path(what: str, path: Path) -> None:
    """Print `WHAT: PATH`, the path in bold and in one piece."""
    console.print(Text.assemble(f"{what}: ", (str(path), "bold")), soft_wrap=True)
    log.info("%s: %s", what, path)


def show(table: RenderableType) -> None:
    """Print a table or a drawing."""
    print_with(lambda target: target.print(table))


def print_with(draw: Callable[[Console], None]) -> None:
    """Let `draw` print to the console, and once more without colours for the log."""
    draw(console)
    if log.isEnabledFor(logging.INFO):
        plain = Console(file=io.StringIO(), width=console.width, color_system=None, highlight=False)
        with plain.capture() as capture:
            draw(plain)
        log.info("%s", "\n" + capture.get().rstrip())
