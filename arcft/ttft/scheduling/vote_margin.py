"""Where further predictions could change what is submitted: tests whose votes are close."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from arcft.protocols import TestKey
from arcft.scoring.predictions import Prediction

SETTLED_VOTES = 4
"""This many predictions that all give the same answer need no further ones."""

# Votes that no candidate has: what rests on few predictions is less certain than the same shares of many.
_UNSEEN = 2


def closeness(predictions: Sequence[Prediction], attempts: int) -> tuple[float, float] | None:
    """How close the votes of a unit's closest test are, smaller is closer; None where all its tests are settled.

    The first number is the margin between the last candidate that is among the `attempts` submitted for a test and the
    next one, the second the share of the first candidate, both of all predictions of the test; those without an answer
    have no vote. Where all gave one answer, the margin is its share.
    """
    tests: dict[TestKey, list[Prediction]] = {}
    for prediction in predictions:
        tests.setdefault((prediction.task_id, prediction.test_index), []).append(prediction)
    found = [ranks for group in tests.values() if (ranks := _closeness_of_test(group, attempts)) is not None]
    return min(found, default=None)


def _closeness_of_test(group: Sequence[Prediction], attempts: int) -> tuple[float, float] | None:
    counts = Counter(prediction.answer.key for prediction in group if prediction.answer is not None)
    votes = [*sorted(counts.values(), reverse=True), *[0] * (attempts + 1)]
    first, last, next_one = votes[0], votes[attempts - 1], votes[attempts]
    if first == len(group) >= SETTLED_VOTES:
        return None
    weight = len(group) + _UNSEEN
    margin = first if first == len(group) else last - next_one
    return margin / weight, first / weight
