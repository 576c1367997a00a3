"""From the metrics of single tests to those of a set: means over tests, then over problems."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from arcft.protocols import MetricSet, Problem
from arcft.scoring.predictions import Prediction, group_by_test
from arcft.scoring.voting import Attempts


@dataclasses.dataclass(frozen=True)
class Scores:
    """Fractions from 0 to 1, by metric."""

    metrics: dict[str, float]
    """Means over problems, in the order of the MetricSet; empty if no answer is known."""

    problems: dict[str, dict[str, float]]
    """The same for each problem, by id, of which at least one answer is known."""

    def standard_errors(self) -> dict[str, float]:
        """The standard error of each of `metrics` over problems; NaN with a single one."""
        return {name: mean_and_error([one[name] for one in self.problems.values()])[1] for name in self.metrics}

    def solved(self, metric_set: MetricSet) -> dict[str, bool]:
        """Whether every test of a problem is solved, by problem id."""
        return {problem_id: metrics[metric_set.primary] == 1 for problem_id, metrics in self.problems.items()}


def score_problems(
    problems: Sequence[Problem], predictions: Sequence[Prediction], attempts: Attempts, metric_set: MetricSet
) -> Scores:
    """Score `predictions`, and the `attempts` selected from them, on all `problems`.

    A test without predictions counts as unanswered. Tests whose answer is not known are left out, and so are problems
    without any known answer. Raises PredictionError where the predictions don't belong to the problems.
    """
    groups = group_by_test(problems, predictions)
    scored: dict[str, dict[str, float]] = {}
    for problem in problems:
        tests = [
            metric_set.score_test(
                answer,
                [prediction.answer for prediction in groups[problem.id, index]],
                attempts.get((problem.id, index), ()),
            )
            for index, answer in enumerate(problem.answers)
            if answer is not None
        ]
        if tests:
            scored[problem.id] = _average(tests, metric_set.names)
    return Scores(metrics=_average(list(scored.values()), metric_set.names) if scored else {}, problems=scored)


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean and its standard error (sample standard deviation / sqrt(n)); the error of one value is NaN."""
    if not values:
        raise ValueError("no values to average")
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return mean, math.nan
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))


def _average(rows: Sequence[Mapping[str, float]], names: Sequence[str]) -> dict[str, float]:
    return {name: math.fsum(row[name] for row in rows) / len(rows) for name in names}
