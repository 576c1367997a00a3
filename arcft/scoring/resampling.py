"""Estimate metrics at smaller numbers of predictions per test, by subsampling."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arcft.protocols import MetricSet, Problem
from arcft.scoring.predictions import Prediction, group_by_test
from arcft.scoring.selection import Candidates
from arcft.scoring.voting import Candidate, logprob_per_token

DRAWS = 100
_SEED = 0

Values = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class SubsampledMetrics:
    """Metrics at this number of predictions per test."""

    predictions: int
    mean: dict[str, float]
    """The expected value of each metric of `MetricSet.by_rank`: its mean over draws."""

    deviation: dict[str, float]
    """The standard deviation over draws: the noise from which predictions are made. The choice of problems is no part
    of it; 0 where there is only one way to draw."""

    def to_json(self) -> dict[str, Any]:
        """Plain data for metrics.json."""
        return {"predictions": self.predictions, "mean": self.mean, "deviation": self.deviation}


def metrics_by_count(
    problems: Sequence[Problem],
    predictions: Sequence[Prediction],
    candidates: Candidates,
    metric_set: MetricSet,
    draws: int = DRAWS,
) -> list[SubsampledMetrics]:
    """The metrics with 1, 2, 4, ... and all predictions a test; empty where no test has two, or no answer is known.

    That many of each test's predictions are drawn without replacement, and their answers ordered as `candidates` were:
    by the same scores, and by the votes and log-probabilities of those drawn. A test that has fewer gives all it has.
    Means are over a problem's tests, then over problems, as everywhere. The draws are the same in each call.
    """
    groups = group_by_test(problems, predictions)
    known = [problem for problem in problems if any(answer is not None for answer in problem.answers)]
    most = max((len(groups[each.id, index]) for each in known for index in range(len(each.answers))), default=0)
    if most < 2:
        return []
    numbers = [*(2**power for power in range(most.bit_length()) if 2**power < most), most]
    limits = [math.inf if rank is None else rank for rank in metric_set.by_rank.values()]
    rng = np.random.default_rng(_SEED)
    totals = np.zeros((len(numbers), len(limits), draws))
    for problem in known:
        truths = {(problem.id, index): answer for index, answer in enumerate(problem.answers) if answer is not None}
        for key, truth in truths.items():
            ranks = _ranks(groups[key], candidates[key], truth.key, numbers, draws, rng)
            if ranks is not None:
                totals += np.stack([ranks < limit for limit in limits], axis=1) / len(truths)
    totals /= len(known)
    names = tuple(metric_set.by_rank)
    return [_at_number(number, names, values) for number, values in zip(numbers, totals, strict=True)]


def _at_number(number: int, names: Sequence[str], values: Values) -> SubsampledMetrics:
    """`values` are [metrics, draws]."""
    # What is the same in all draws is the mean itself; summed up, it would be so only up to rounding.
    same = values.min(axis=1) == values.max(axis=1)
    means = np.where(same, values[:, 0], values.mean(axis=1))
    deviations = np.where(same, 0.0, values.std(axis=1, ddof=1))
    return SubsampledMetrics(
        number,
        mean=dict(zip(names, means.tolist(), strict=True)),
        deviation=dict(zip(names, deviations.tolist(), strict=True)),
    )


def _ranks(
    predictions: Sequence[Prediction],
    candidates: Sequence[Candidate],
    right: Hashable,
    numbers: Sequence[int],
    draws: int,
    rng: np.random.Generator,
) -> Values | None:
    """How many answers rank above that with the key `right`, [numbers, draws], infinity where it is not drawn; None
    where it was never predicted."""
    places = {candidate.answer.key: place for place, candidate in enumerate(candidates)}
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
        self, predictions: Sequence[Prediction], candidates: Sequence[Candidate], places: dict[Hashable, int]
    ) -> None:
        """`places` of candidates by their answers' keys."""
        # No answer is one more candidate, which is left out in the end.
        self._count = len(candidates)
        self._places = np.array([self._count if one.answer is None else places[one.answer.key] for one in predictions])
        logprobs = [logprob_per_token(one) for one in predictions]
        self._has_logprob = np.array([logprob is not None for logprob in logprobs])
        self._logprobs = np.array([0.0 if logprob is None else logprob for logprob in logprobs])
        self._scores = np.array([-math.inf if one.score is None else one.score for one in candidates])

    def rank(self, place: int, drawn: NDArray[np.int64]) -> Values:
        """How many candidates come before the one at `place`, [draws], by the predictions `drawn`, [draws, number];
        infinity where it is not among them."""
        rows = np.arange(len(drawn))[:, None] * (self._count + 1)
        cells = (rows + self._places[drawn]).ravel()
        votes = self._sum(cells, len(drawn))
        known = self._sum(cells, len(drawn), self._has_logprob[drawn])
        sums = self._sum(cells, len(drawn), self._logprobs[drawn])
        logprobs = np.where(known > 0, sums / np.maximum(known, 1), -np.inf)
        firsts = np.full(len(drawn) * (self._count + 1), len(self._places))
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
