"""Text is drawn safely in HTML, as a picture, and in the terminal."""

from __future__ import annotations

import io

import numpy as np
from rich.console import Console

from tests.support.toy_kind import Reversal, ReversalCard, Word

CARD = ReversalCard()


def test_html_is_escaped() -> None:
    assert CARD.html([("<b>", None), (Word("bac"), Word("cab"))], room=100) == [
        '<span class="text">&lt;b&gt;</span>',
        '<span class="text">bac</span>',
    ]


def test_a_picture_has_the_size_asked_for_and_dark_letters() -> None:
    drawn, empty = (np.asarray(CARD.image(text, 60)) for text in ("cab" * 20, ""))
    assert drawn.shape == (60, 60, 3)
    assert drawn.min() < 50
    assert empty.min() == 255


def test_texts_stand_side_by_side_in_the_terminal() -> None:
    console = Console(file=io.StringIO(), width=60)
    console.print(CARD.terminal([("input", "cab"), ("predicted", None)]))
    assert console.file.getvalue().split() == ["input", "predicted", "cab", "none"]


def test_what_a_problem_shows_and_asks() -> None:
    problem = Reversal("cab", ("dog",), "cab")
    assert (CARD.demonstrations(problem), CARD.question(problem, 0)) == ([("dog", "god")], "cab")
    assert CARD.difference(Word("x"), Word("y")) == "wrong"
