"""Where further predictions could change what is handed in: tests whose votes are close."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from arcft.scoring.predictions import Prediction, TestKey

SETTLED_VOTES = 4
"""So many predictions, all the same grid, need no further ones."""

# Votes that no candidate has: what rests on few predictions is less certain than the same shares of many.
_UNSEEN = 2


def closeness(predictions: Sequence[Prediction]) -> tuple[float, float] | None:
    """How close the votes of a unit's closest test are, smaller is closer; None where all its tests are settled.

    Two grids a test are handed in. The first number is the margin between the second and the third candidate, the
    second the share of the first candidate, both of all predictions of the test; those without a grid have no vote.
    Where all gave one grid, the margin is its share.
    """
    tests: dict[TestKey, list[Prediction]] = {}
    for prediction in predictions:
        tests.setdefault((prediction.task_id, prediction.test_index), []).append(prediction)
    found = [ranks for group in tests.values() if (ranks := _closeness_of_test(group)) is not None]
    return min(found, default=None)


def _closeness_of_test(group: Sequence[Prediction]) -> tuple[float, float] | None:
    grids = Counter(
        (prediction.grid.shape, prediction.grid.tobytes()) for prediction in group if prediction.grid is not None
    )
    first, second, third, *_ = [*sorted(grids.values(), reverse=True), 0, 0, 0]
    if first == len(group) >= SETTLED_VOTES:
        return None
    weight = len(group) + _UNSEEN
    margin = first if first == len(group) else second - third
    return margin / weight, first / weight
