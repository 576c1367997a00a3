"""A Card for kinds of problems whose questions and answers are text."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from html import escape
from typing import Any

from PIL import Image, ImageDraw
from rich.table import Table

from arcft.names import visible
from arcft.protocols import Answer, Problem

WIDTH = 24
"""Characters of a line in a picture."""


class TextCard(abc.ABC):
    """Draws text; what is drawn is turned into text by `str`. A kind adds what its problems show and ask."""

    noun: str = "answer"
    css: str = ".text{white-space:pre-wrap;font-family:monospace}"
    legend: str = ""

    @abc.abstractmethod
    def demonstrations(self, problem: Problem) -> Sequence[tuple[Any, Any]]:
        """Inputs and outputs that are shown."""

    @abc.abstractmethod
    def question(self, problem: Problem, test_index: int) -> Any:
        """What test `test_index` (from 0) asks."""

    def html(self, drawn: Sequence[tuple[Any, Answer | None]], *, room: int) -> list[str]:
        """Each as a <span> at the size of the page's text, whatever the `room`; no differences are marked."""
        return [f'<span class="text">{escape(visible(str(shown)))}</span>' for shown, _ in drawn]

    def image(self, drawn: Any, box: int) -> Image.Image:
        """The first lines of the text in black on white, as many as fit `box` x `box` pixels."""
        text = visible(str(drawn))
        lines = [text[start : start + WIDTH] for start in range(0, len(text), WIDTH)] or [""]
        image = Image.new("RGB", (box, box), "white")
        ImageDraw.Draw(image).multiline_text((2, 2), "\n".join(lines), fill="black")
        return image

    def terminal(self, named: Sequence[tuple[str, Any]]) -> Table:
        """Texts side by side under their names; None is drawn as `none`."""
        table = Table(*(name for name, _ in named), box=None, pad_edge=False, padding=(0, 3, 0, 0))
        table.add_row(*("none" if shown is None else str(shown) for _, shown in named))
        return table

    def difference(self, answer: Answer, truth: Answer) -> str:
        return "wrong"
