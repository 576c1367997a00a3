"""Predictions of grids, and their scores, in as few words as a test can bear."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from arcft.problems.arc.kind import ArcKind
from arcft.problems.arc.scoring.metrics import ArcMetrics
from arcft.problems.arc.task import Grid, GridAnswer, as_grid_answer
from arcft.protocols import Answer, Problem
from arcft.scoring.metrics import Scores, score_problems
from arcft.scoring.predictions import Prediction
from arcft.scoring.selection import Selector, Vote
from arcft.scoring.voting import Attempts

ARC = ArcKind()
METRICS = ArcMetrics()


def prediction(grid: Grid | None, task_id: str = "t", test_index: int = 0, **values: Any) -> Prediction:
    """A prediction of `grid`, or without an answer."""
    answer = None if grid is None else GridAnswer(grid)
    return Prediction(task_id=task_id, test_index=test_index, answer=answer, **values)


def grid_of(answered: Any) -> Grid:
    """The grid of a prediction or a candidate that has one."""
    answer: Answer | None = answered.answer
    assert answer is not None
    return as_grid_answer(answer).grid


def selected(
    problems: Sequence[Problem], predictions: Sequence[Prediction], selector: Selector | None = None
) -> Attempts:
    """The attempts at each test, by `selector` or by the vote."""
    return (selector or Vote()).attempts(problems, predictions, METRICS.attempts)


def scored(problems: Sequence[Problem], predictions: Sequence[Prediction], selector: Selector | None = None) -> Scores:
    """The metrics of ARC."""
    return score_problems(problems, predictions, selected(problems, predictions, selector), METRICS)
