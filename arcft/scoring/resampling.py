"""How many predictions a test are worth making: what fewer of those that are there would have come to."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arcft.problems.arc.task import Task
from arcft.scoring.predictions import Prediction, group_by_test
from arcft.scoring.selection import Candidates
from arcft.scoring.voting import Candidate, GridKey, grid_key, logprob_per_token

METRICS_OF_MANY = ("pass_n", "vote_1", "vote_2")
DRAWS = 100
_SEED = 0

Values = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class SubsampledMetrics:
    """What so many predictions a test come to."""

    predictions: int
    mean: dict[str, float]
    """Of each of METRICS_OF_MANY, over draws: what is to be expected."""

    deviation: dict[str, float]
    """The standard deviation over draws: what is left to the chance of which predictions are made. Which tasks are
    asked is no part of it; 0 where there is one way to draw."""

    def to_json(self) -> dict[str, Any]:
        """Plain data for metrics.json."""
        return {"predictions": self.predictions, "mean": self.mean, "deviation": self.deviation}


def metrics_by_count(
    tasks: Sequence[Task], predictions: Sequence[Prediction], candidates: Candidates, draws: int = DRAWS
) -> list[SubsampledMetrics]:
    """The metrics with 1, 2, 4, ... and all predictions a test; empty where no test has two, or no answer is known.

    So many of each test's predictions are drawn without replacement, and their grids put in order as `candidates` were:
    by the same scores, and by the votes and log-probabilities of those drawn. A test that has fewer gives all it has.
    Means are over a task's tests, then over tasks, as everywhere. The draws are the same in each call.
    """
    groups = group_by_test(tasks, predictions)
    known = [task for task in tasks if any(pair.output is not None for pair in task.test)]
    most = max((len(groups[task.id, index]) for task in known for index in range(len(task.test))), default=0)
    if most < 2:
        return []
    numbers = [*(2**power for power in range(most.bit_length()) if 2**power < most), most]
    rng = np.random.default_rng(_SEED)
    totals = np.zeros((len(numbers), len(METRICS_OF_MANY), draws))
    for task in known:
        truths = {(task.id, index): pair.output for index, pair in enumerate(task.test) if pair.output is not None}
        for key, truth in truths.items():
            ranks = _ranks(groups[key], candidates[key], grid_key(truth), numbers, draws, rng)
            if ranks is not None:
                totals += np.stack([ranks < np.inf, ranks < 1, ranks < 2], axis=1) / len(truths)
    totals /= len(known)
    return [_at_number(number, values) for number, values in zip(numbers, totals, strict=True)]


def _at_number(number: int, values: Values) -> SubsampledMetrics:
    """`values` are [metrics, draws]."""
    # What is the same in all draws is the mean itself; summed up, it would be so only up to rounding.
    same = values.min(axis=1) == values.max(axis=1)
    means = np.where(same, values[:, 0], values.mean(axis=1))
    deviations = np.where(same, 0.0, values.std(axis=1, ddof=1))
    return SubsampledMetrics(
        number,
        mean=dict(zip(METRICS_OF_MANY, means.tolist(), strict=True)),
        deviation=dict(zip(METRICS_OF_MANY, deviations.tolist(), strict=True)),
    )


def _ranks(
    predictions: Sequence[Prediction],
    candidates: Sequence[Candidate],
    right: GridKey,
    numbers: Sequence[int],
    draws: int,
    rng: np.random.Generator,
) -> Values | None:
    """How many grids come before the `right` one, [numbers, draws], infinity where it is not drawn; None where it was
    never predicted."""
    places = {grid_key(candidate.grid): place for place, candidate in enumerate(candidates)}
    if right not in places:
        return None
    drawn = _Drawn(predictions, candidates, places)
    order = rng.permuted(np.tile(np.arange(len(predictions)), (draws, 1)), axis=1)
    whole = np.full(draws, float(places[right]))
    return np.stack(
        [drawn.rank(places[right], order[:, :number]) if number < len(predictions) else whole for number in numbers]
    )


class _Drawn:
    """A test's predictions as arrays, to rank one of its candidates by some of them, for all draws at once."""

    def __init__(
        self, predictions: Sequence[Prediction], candidates: Sequence[Candidate], places: dict[GridKey, int]
    ) -> None:
        """`places` of candidates by their grids."""
        # What has no grid is one more candidate, which is left out in the end.
        self._count = len(candidates)
        self._grids = np.array([self._count if one.grid is None else places[grid_key(one.grid)] for one in predictions])
        logprobs = [logprob_per_token(one) for one in predictions]
        self._has_logprob = np.array([logprob is not None for logprob in logprobs])
        self._logprobs = np.array([0.0 if logprob is None else logprob for logprob in logprobs])
        self._scores = np.array([-math.inf if one.score is None else one.score for one in candidates])

    def rank(self, place: int, drawn: NDArray[np.int64]) -> Values:
        """How many candidates come before the one at `place`, [draws], by the predictions `drawn`, [draws, number];
        infinity where it is not among them."""
        rows = np.arange(len(drawn))[:, None] * (self._count + 1)
        cells = (rows + self._grids[drawn]).ravel()
        votes = self._sum(cells, len(drawn))
        known = self._sum(cells, len(drawn), self._has_logprob[drawn])
        sums = self._sum(cells, len(drawn), self._logprobs[drawn])
        logprobs = np.where(known > 0, sums / np.maximum(known, 1), -np.inf)
        firsts = np.full(len(drawn) * (self._count + 1), len(self._grids))
        np.minimum.at(firsts, cells, drawn.ravel())
        firsts = firsts.reshape(len(drawn), -1)[:, :-1]
        # By one criterion after the other: those before decide, unless they are equal.
        before = np.zeros(votes.shape, dtype=bool)
        equal = votes > 0
        for values in (np.broadcast_to(self._scores, votes.shape), votes, logprobs, -firsts):
            own = values[:, place, None]
            before |= equal & (values > own)
            equal &= values == own
        return np.where(votes[:, place] > 0, before.sum(axis=1), np.inf)

    def _sum(self, cells: NDArray[np.int64], draws: int, weights: NDArray[Any] | None = None) -> Values:
        """Of `weights`, or of ones, for each draw and candidate, [draws, candidates]."""
        length = draws * (self._count + 1)
        sums = np.bincount(cells, None if weights is None else weights.ravel(), length)
        return sums.reshape(draws, -1)[:, :-1].astype(np.float64)
