"""From many predictions of a test to the few grids that are handed in."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from arcft.arc.task import Grid, Task
from arcft.scoring.predictions import Prediction, TestKey, group_by_test

Attempts = Mapping[TestKey, Sequence[Grid]]
"""For each test the grids that are handed in, the best first; fewer than allowed where fewer were found."""


@dataclasses.dataclass
class _Candidate:
    grid: Grid
    count: int = 0
    scores: list[float] = dataclasses.field(default_factory=list)

    def rank(self) -> tuple[int, float]:
        """Larger is better; a grid without any log-probability comes after its equals that have one."""
        return self.count, math.fsum(self.scores) / len(self.scores) if self.scores else -math.inf


def vote(predictions: Sequence[Prediction], attempts: int = 2) -> list[Grid]:
    """The most frequent grids among the predictions of one test, at most `attempts`, the best first.

    Predictions without a grid have no vote. Equally frequent grids are ordered by the mean, over the predictions that
    gave them, of the log-probability per token, then by first appearance; predictions without a log-probability
    are left out of that mean. The rule is the second one of the arc24 project.
    """
    candidates: dict[tuple[tuple[int, ...], bytes], _Candidate] = {}
    for prediction in predictions:
        if prediction.grid is None:
            continue
        key = (prediction.grid.shape, prediction.grid.tobytes())
        candidate = candidates.setdefault(key, _Candidate(prediction.grid))
        candidate.count += 1
        if prediction.logprob is not None and math.isfinite(prediction.logprob) and prediction.num_tokens:
            candidate.scores.append(prediction.logprob / prediction.num_tokens)
    # The sort is stable and a dict keeps its order, so equals stay in order of first appearance.
    ordered = sorted(candidates.values(), key=_Candidate.rank, reverse=True)
    return [candidate.grid for candidate in ordered[:attempts]]


def vote_tasks(
    tasks: Sequence[Task], predictions: Sequence[Prediction], attempts: int = 2
) -> dict[TestKey, list[Grid]]:
    """`vote` for every test of `tasks`; PredictionError where `predictions` don't belong to them."""
    return {key: vote(group, attempts) for key, group in group_by_test(tasks, predictions).items()}
