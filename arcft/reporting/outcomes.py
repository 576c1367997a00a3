"""How each task ended, in the order and the colours in which report and pictures show it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from arcft.problems.arc.scoring.metrics import Scores
from arcft.problems.arc.task import Grid, Task
from arcft.scoring.predictions import Prediction, TestKey
from arcft.scoring.selection import ATTEMPTS, Candidates
from arcft.scoring.voting import Candidate


@dataclasses.dataclass(frozen=True)
class Outcome:
    name: str
    meaning: str
    color: str


SOLVED = Outcome("solved", "every test, by one of the two attempts", "#15915b")
PARTLY = Outcome("partly solved", "some tests, but not all of them", "#7fb800")
FOUND = Outcome("found, not chosen", "a right answer was among the predictions, but not among the attempts", "#e69f00")
UNSOLVED = Outcome("unsolved", "no prediction is right", "#c8463c")
UNANSWERED = Outcome("unanswered", "no prediction is a valid grid", "#8a8f98")
ANSWERED = Outcome("answered", "the right answer is not known", "#3b76b8")
OUTCOMES = (SOLVED, PARTLY, FOUND, UNSOLVED, ANSWERED, UNANSWERED)


@dataclasses.dataclass(frozen=True)
class Result:
    """A task, how it ended, its metrics (empty where the answer is not known), and what was predicted for it."""

    task: Task
    outcome: Outcome
    metrics: Mapping[str, float]
    predictions: Sequence[Sequence[Prediction]]
    """For each test, all predictions."""

    candidates: Sequence[Sequence[Candidate]]
    """For each test, the different grids among them, the best first."""

    @property
    def attempts(self) -> list[list[Grid]]:
        """For each test, the grids handed in."""
        return [[candidate.grid for candidate in ordered[:ATTEMPTS]] for ordered in self.candidates]


def sorted_results(
    tasks: Sequence[Task],
    scores: Scores | None,
    groups: Mapping[TestKey, Sequence[Prediction]],
    candidates: Candidates,
) -> list[Result]:
    """All tasks by outcome in the order of OUTCOMES; solved ones by accuracy, others the nearest first."""
    results = []
    for task in tasks:
        keys = [(task.id, index) for index in range(len(task.test))]
        predictions = [groups.get(key, ()) for key in keys]
        metrics = scores.tasks.get(task.id, {}) if scores else {}
        results.append(
            Result(
                task=task,
                outcome=_outcome(metrics, predictions),
                metrics=metrics,
                predictions=predictions,
                candidates=[candidates.get(key, ()) for key in keys],
            )
        )
    return sorted(results, key=_rank)


def is_right(attempt: Grid, truth: Grid | None) -> bool | None:
    """Whether an attempt equals the true output; None where that is not known."""
    return None if truth is None else bool(np.array_equal(attempt, truth))


def _outcome(metrics: Mapping[str, float], predictions: Sequence[Sequence[Prediction]]) -> Outcome:
    answered = any(prediction.grid is not None for group in predictions for prediction in group)
    if not answered:
        return UNANSWERED
    if not metrics:
        return ANSWERED
    if metrics["vote_2"] == 1:
        return SOLVED
    if metrics["vote_2"] > 0:
        return PARTLY
    return FOUND if metrics["pass_n"] > 0 else UNSOLVED


def _rank(result: Result) -> tuple[int, float, float, str]:
    metrics = result.metrics
    return (
        OUTCOMES.index(result.outcome),
        -metrics.get("accuracy", 0.0),
        -metrics.get("max_correct_pixels", 0.0),
        result.task.id,
    )
