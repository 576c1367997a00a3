"""From the predictions of a test to its candidates: the distinct answers among them, in the order of their votes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from arcft.protocols import Answer, TestKey
from arcft.scoring.predictions import Prediction

Attempts = Mapping[TestKey, Sequence[Answer]]
"""The answers submitted for each test, the best first; fewer than allowed where fewer were found."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Candidate:
    """An answer that was predicted for a test, and what speaks for it."""

    answer: Answer
    votes: int
    """Predictions that gave it."""

    logprob: float | None
    """Log-probability per token (nats): the mean over the predictions that gave it; None where none has one."""

    score: float | None = None
    """What a selection compares before votes, the higher the better; a candidate without one (None) comes after all
    that have one."""

    reasons: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Where the score comes from, as plain data."""


def vote(predictions: Sequence[Prediction]) -> list[Candidate]:
    """The distinct answers among the predictions of one test, the most frequent first.

    Predictions without an answer have no vote. Equally frequent answers are ordered by the mean, over the predictions
    that gave them, of the log-probability per token, then by first appearance; predictions without a log-probability
    are left out of that mean. The rule is the second one of the arc24 project.
    """
    groups: dict[Hashable, list[Prediction]] = {}
    for prediction in predictions:
        if prediction.answer is not None:
            groups.setdefault(prediction.answer.key, []).append(prediction)
    return in_order([_candidate(group) for group in groups.values()])


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
    answer = predictions[0].answer
    assert answer is not None
    return Candidate(answer=answer, votes=len(predictions), logprob=math.fsum(known) / len(known) if known else None)


def _rank(candidate: Candidate) -> tuple[float, int, float]:
    """Larger is better; without any log-probability a candidate comes after its equals that have one."""
    score = -math.inf if candidate.score is None else candidate.score
    return score, candidate.votes, -math.inf if candidate.logprob is None else candidate.logprob
