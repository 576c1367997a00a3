"""From the predictions of a test to its candidates: the different grids among them, in the order of their votes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from arcft.problems.arc.task import Grid, GridAnswer
from arcft.scoring.predictions import Prediction, TestKey

Attempts = Mapping[TestKey, Sequence[Grid]]
"""For each test the grids that are handed in, the best first; fewer than allowed where fewer were found."""

GridKey = tuple[tuple[int, ...], bytes]
"""Shape and cells; equal for equal grids."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Candidate:
    """A grid that was predicted for a test, and what speaks for it."""

    grid: Grid
    votes: int
    """Predictions that gave it."""

    logprob: float | None
    """Log-probability a token (nats): the mean over the predictions that gave it; None where none has one."""

    score: float | None = None
    """What a selection goes by before it looks at votes, the higher the better; None where there is nothing to go by,
    which comes after all that have a score."""

    reasons: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Where the score comes from, as plain data."""

    @property
    def answer(self) -> GridAnswer:
        """The grid as an Answer."""
        return GridAnswer(self.grid)


def grid_key(grid: Grid) -> GridKey:
    """What equal grids, and no others, have in common."""
    return grid.shape, grid.tobytes()


def vote(predictions: Sequence[Prediction]) -> list[Candidate]:
    """The different grids among the predictions of one test, the most frequent first.

    Predictions without a grid have no vote. Equally frequent grids are ordered by the mean, over the predictions that
    gave them, of the log-probability per token, then by first appearance; predictions without a log-probability
    are left out of that mean. The rule is the second one of the arc24 project.
    """
    grids: dict[GridKey, list[Prediction]] = {}
    for prediction in predictions:
        if prediction.grid is not None:
            grids.setdefault(grid_key(prediction.grid), []).append(prediction)
    return in_order([_candidate(group) for group in grids.values()])


def in_order(candidates: Sequence[Candidate]) -> list[Candidate]:
    """By score, then by votes, then by log-probability, the best first; equals stay as they are."""
    return sorted(candidates, key=_rank, reverse=True)


def logprob_per_token(prediction: Prediction) -> float | None:
    """In nats; None where it is not known."""
    if prediction.logprob is None or not math.isfinite(prediction.logprob) or not prediction.num_tokens:
        return None
    return prediction.logprob / prediction.num_tokens


def _candidate(predictions: Sequence[Prediction]) -> Candidate:
    known = [value for value in map(logprob_per_token, predictions) if value is not None]
    grid = predictions[0].grid
    assert grid is not None
    return Candidate(grid=grid, votes=len(predictions), logprob=math.fsum(known) / len(known) if known else None)


def _rank(candidate: Candidate) -> tuple[float, int, float]:
    """Larger is better; a grid without any log-probability comes after its equals that have one."""
    score = -math.inf if candidate.score is None else candidate.score
    return score, candidate.votes, -math.inf if candidate.logprob is None else candidate.logprob
