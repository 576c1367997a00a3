"""Answers to ARC tests in predictions.jsonl, written by arcft or by another program."""

from __future__ import annotations

from typing import Any

from arcft.problems.arc.task import GridAnswer, TaskError, as_grid
from arcft.protocols import AnswerError

ANSWER_FIELD = "grid"


def answer_from_json(value: Any) -> GridAnswer | None:
    """Read a list of rows of colours, or None.

    Raises AnswerError for a grid that is empty, ragged, too large or of a colour that ARC doesn't have, and ValueError
    for anything that is no list of rows of whole numbers.
    """
    if value is None:
        return None
    rows = value if isinstance(value, list) else [None]
    cells = [cell for row in rows for cell in (row if isinstance(row, list) else [None])]
    if not all(isinstance(cell, int) and not isinstance(cell, bool) for cell in cells):
        raise ValueError(f"{ANSWER_FIELD} is a list of rows of whole numbers, or null for no answer")
    if not cells:
        raise AnswerError("empty grid")
    try:
        return GridAnswer(as_grid(value, where="invalid grid"))
    except TaskError as error:
        raise AnswerError(str(error)) from None
