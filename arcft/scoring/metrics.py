"""From the metrics of single tests to those of a set: means over a problem's tests and then over problems, and means
over all tests."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from arcft.protocols import MetricSet, Problem
from arcft.scoring.predictions import Prediction, group_by_test
from arcft.scoring.voting import Attempts


@dataclasses.dataclass(frozen=True)
class Scores:
    """Fractions from 0 to 1, by metric."""

    metrics: dict[str, float]
    """Means over problems, in the order of the MetricSet; empty if no answer is known."""

    problems: dict[str, dict[str, float]]
    """The same for each problem, by id, of which at least one answer is known: means over its tests."""

    over_tests: dict[str, float] = dataclasses.field(default_factory=dict)
    """Means over all tests whose answer is known: a problem with two tests counts twice. Empty where `metrics` are, or
    where they were stored by a version that did not know them."""

    num_tests: int = 0
    """The number of these tests."""

    by_test: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict)
    """For the primary metric and `any_correct`, by problem: a character for each of these tests in their order, 1 where
    the metric is 1 and 0 elsewhere."""

    def standard_errors(self) -> dict[str, float]:
        """The standard error of each of `metrics` over problems; NaN with a single one."""
        return {name: mean_and_error([one[name] for one in self.problems.values()])[1] for name in self.metrics}

    def intervals(self) -> dict[str, tuple[float, float]]:
        """A 95% interval for each of `metrics`: Wilson's, with the number of problems."""
        return {name: wilson_interval(value, len(self.problems)) for name, value in self.metrics.items()}

    def tracked(self, metric_set: MetricSet) -> dict[str, float]:
        """`metrics`, and the primary one over tests, by the names that trackers give them."""
        values = {f"eval/{name}": value for name, value in self.metrics.items()}
        name = metric_set.primary
        return values | ({f"eval/{name}_over_tests": self.over_tests[name]} if name in self.over_tests else {})

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
    by_test: dict[str, dict[str, str]] = {name: {} for name in (metric_set.primary, metric_set.any_correct)}
    all_tests: list[Mapping[str, float]] = []
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
            all_tests += tests
            for name, digits in by_test.items():
                digits[problem.id] = "".join("1" if test[name] == 1 else "0" for test in tests)
    if not scored:
        return Scores(metrics={}, problems={})
    return Scores(
        metrics=_average(list(scored.values()), metric_set.names),
        problems=scored,
        over_tests=_average(all_tests, metric_set.names),
        num_tests=len(all_tests),
        by_test=by_test,
    )


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean and its standard error (sample standard deviation / sqrt(n)); the error of one value is NaN."""
    if not values:
        raise ValueError("no values to average")
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return mean, math.nan
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))


def wilson_interval(share: float, number: int) -> tuple[float, float]:
    """Wilson's 95% interval for a mean of `number` values from 0 to 1. Unlike the standard error it says something
    where all values are equal: 0 of 4 is 0 to 0.49.

    Exact coverage is for values that are 0 or 1; for others the interval is wider than needed.
    """
    low, high = wilson(np.array(share), np.array(number), statistics.NormalDist().inv_cdf(0.975))
    return float(low), float(high)


def wilson(
    share: NDArray[np.float64], number: NDArray[np.float64], quantile: NDArray[np.float64] | float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Wilson's interval for means `share` of `number` values from 0 to 1, all of one shape (Journal of the American
    Statistical Association 22, 1927), with a `quantile` of the normal or t distribution."""
    squared = quantile * quantile
    scale = 1 + squared / number
    middle = (share + squared / (2 * number)) / scale
    half = quantile * np.sqrt(share * (1 - share) / number + squared / (4 * number * number)) / scale
    return (
        np.where(share == 0, 0.0, np.maximum(middle - half, 0.0)),
        np.where(share == 1, 1.0, np.minimum(middle + half, 1.0)),
    )


def _average(rows: Sequence[Mapping[str, float]], names: Sequence[str]) -> dict[str, float]:
    return {name: math.fsum(row[name] for row in rows) / len(rows) for name in names}
