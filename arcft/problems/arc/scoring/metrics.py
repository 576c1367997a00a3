"""How good predictions are: per test, averaged over a task's tests, then over tasks. Fractions from 0 to 1."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from arcft.problems.arc.task import Grid, Task
from arcft.scoring.predictions import Prediction, group_by_test
from arcft.scoring.voting import Attempts

METRICS = (
    "accuracy",
    "correct_pixels",
    "correct_size",
    "max_correct_pixels",
    "any_correct_size",
    "pass_n",
    "unanswered",
    "vote_1",
    "vote_2",
)


@dataclasses.dataclass(frozen=True)
class Scores:
    """`metrics`: means over tasks, in the order of METRICS, empty if no answer is known; `tasks`: the same for each
    task of which at least one answer is known."""

    metrics: dict[str, float]
    tasks: dict[str, dict[str, float]]

    def standard_errors(self) -> dict[str, float]:
        """The standard error of each of `metrics` over tasks; NaN with one task."""
        return {name: mean_and_error([task[name] for task in self.tasks.values()])[1] for name in self.metrics}


def score_test(truth: Grid, predictions: Sequence[Prediction], voted: Sequence[Grid]) -> dict[str, float]:
    """Score the k predictions of one test, and the grids `voted` from them, against the true output.

    - accuracy, correct_size: share of the k that are exact, that have the right shape
    - correct_pixels: mean over the k of the share of equal cells; 0 for one of another shape
    - max_correct_pixels, any_correct_size: the best of the k
    - pass_n: 1 if any is exact; vote_1, vote_2: 1 if the first, one of the first two of `voted` is
    - unanswered: share without a valid grid; 1, and all else 0, if there is no prediction at all
    """
    pixels = [_share_of_equal_cells(truth, prediction.grid) for prediction in predictions]
    sizes = [prediction.grid is not None and prediction.grid.shape == truth.shape for prediction in predictions]
    missing = [prediction.grid is None for prediction in predictions] or [True]
    exact = [share == 1 for share in pixels]
    voted_exact = [np.array_equal(truth, grid) for grid in voted]
    return {
        "accuracy": _mean(exact),
        "correct_pixels": _mean(pixels),
        "correct_size": _mean(sizes),
        "max_correct_pixels": max(pixels, default=0.0),
        "any_correct_size": float(any(sizes)),
        "pass_n": float(any(exact)),
        "unanswered": _mean(missing),
        "vote_1": float(any(voted_exact[:1])),
        "vote_2": float(any(voted_exact[:2])),
    }


def score_tasks(tasks: Sequence[Task], predictions: Sequence[Prediction], attempts: Attempts) -> Scores:
    """Score `predictions` and the `attempts` voted from them on all `tasks`.

    A test without predictions counts as unanswered. Tests whose answer is not known are left out, and so are tasks
    without any known answer. PredictionError where the predictions don't belong to the tasks.
    """
    groups = group_by_test(tasks, predictions)
    scored: dict[str, dict[str, float]] = {}
    for task in tasks:
        tests = [
            score_test(pair.output, groups[task.id, index], attempts.get((task.id, index), ()))
            for index, pair in enumerate(task.test)
            if pair.output is not None
        ]
        if tests:
            scored[task.id] = _average(tests)
    return Scores(metrics=_average(list(scored.values())) if scored else {}, tasks=scored)


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean and its standard error (sample standard deviation / sqrt(n)); the error of one value is NaN."""
    if not values:
        raise ValueError("no values to average")
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return mean, math.nan
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))


def _average(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: _mean([row[name] for row in rows]) for name in METRICS}


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0


def _share_of_equal_cells(truth: Grid, grid: Grid | None) -> float:
    if grid is None or grid.shape != truth.shape:
        return 0.0
    return float(np.mean(grid == truth))
