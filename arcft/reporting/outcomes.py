"""How each problem ended, in the order and the colours in which report and pictures show it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from arcft.protocols import Answer, MetricSet, Problem, TestKey
from arcft.scoring.metrics import Scores
from arcft.scoring.predictions import Prediction
from arcft.scoring.selection import Candidates
from arcft.scoring.voting import Candidate


@dataclasses.dataclass(frozen=True)
class Outcome:
    name: str
    meaning: str
    color: str


SOLVED = Outcome("solved", "every test, by one of the attempts", "#15915b")
PARTLY = Outcome("partly solved", "some tests, but not all of them", "#7fb800")
FOUND = Outcome("found, not chosen", "a right answer was among the predictions, but not among the attempts", "#e69f00")
UNSOLVED = Outcome("unsolved", "no prediction is right", "#c8463c")
UNANSWERED = Outcome("unanswered", "no prediction is a valid answer", "#8a8f98")
ANSWERED = Outcome("answered", "the right answer is not known", "#3b76b8")
OUTCOMES = (SOLVED, PARTLY, FOUND, UNSOLVED, ANSWERED, UNANSWERED)


@dataclasses.dataclass(frozen=True)
class Result:
    """A problem, how it ended, its metrics (empty where the answer is not known), and what was predicted for it."""

    problem: Problem
    outcome: Outcome
    metrics: Mapping[str, float]
    predictions: Sequence[Sequence[Prediction]]
    """For each test, all predictions."""

    candidates: Sequence[Sequence[Candidate]]
    """For each test, the distinct answers among them, the best first."""

    num_attempts: int
    """Candidates of a test that are submitted."""

    @property
    def attempts(self) -> list[list[Answer]]:
        """For each test, the answers submitted."""
        return [[candidate.answer for candidate in ordered[: self.num_attempts]] for ordered in self.candidates]


def sorted_results(
    problems: Sequence[Problem],
    scores: Scores | None,
    groups: Mapping[TestKey, Sequence[Prediction]],
    candidates: Candidates,
    metric_set: MetricSet,
) -> list[Result]:
    """All problems by outcome in the order of OUTCOMES; those of one outcome by `MetricSet.closeness`, the best first,
    then by id."""
    results = []
    for problem in problems:
        keys = [(problem.id, index) for index in range(len(problem.answers))]
        predictions = [groups.get(key, ()) for key in keys]
        metrics = scores.problems.get(problem.id, {}) if scores else {}
        results.append(
            Result(
                problem=problem,
                outcome=_outcome(metrics, predictions, metric_set),
                metrics=metrics,
                predictions=predictions,
                candidates=[candidates.get(key, ()) for key in keys],
                num_attempts=metric_set.attempts,
            )
        )
    return sorted(results, key=lambda result: _rank(result, metric_set))


def is_right(attempt: Answer, truth: Answer | None) -> bool | None:
    """Whether an attempt equals the true output; None where that is not known."""
    return None if truth is None else attempt.key == truth.key


def right_attempt(truth: Answer | None, attempts: Sequence[Answer]) -> Answer | None:
    """The attempt that is right, if one is, else the first one; None without any."""
    return next((answer for answer in attempts if is_right(answer, truth)), attempts[0] if attempts else None)


def _outcome(
    metrics: Mapping[str, float], predictions: Sequence[Sequence[Prediction]], metric_set: MetricSet
) -> Outcome:
    if all(prediction.answer is None for group in predictions for prediction in group):
        return UNANSWERED
    if not metrics:
        return ANSWERED
    if metrics[metric_set.primary] > 0:
        return SOLVED if metrics[metric_set.primary] == 1 else PARTLY
    return FOUND if metrics[metric_set.any_correct] > 0 else UNSOLVED


def _rank(result: Result, metric_set: MetricSet) -> tuple[int, tuple[float, ...], str]:
    closeness = tuple(-result.metrics.get(name, 0.0) for name in metric_set.closeness)
    return OUTCOMES.index(result.outcome), closeness, result.problem.id
