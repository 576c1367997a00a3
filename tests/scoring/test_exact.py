"""Exact matches: what one test scores, and what the metrics say about themselves."""

from __future__ import annotations

import pytest

from arcft.scoring.exact import ExactMetrics
from tests.support.toy_kind import Word

RIGHT, WRONG = Word("bac"), Word("cab")


@pytest.mark.parametrize(
    ("predictions", "attempts", "expected"),
    [
        ([RIGHT, WRONG, None, RIGHT], [RIGHT], (0.5, 1.0, 0.25, 1.0)),
        ([WRONG, RIGHT], [WRONG], (0.5, 1.0, 0.0, 0.0)),
        ([WRONG], [WRONG, RIGHT], (0.0, 0.0, 0.0, 0.0)),
        ([None, None], [], (0.0, 0.0, 1.0, 0.0)),
        ([], [], (0.0, 0.0, 1.0, 0.0)),
    ],
)
def test_scores_of_a_test(
    predictions: list[Word | None], attempts: list[Word], expected: tuple[float, float, float, float]
) -> None:
    scores = ExactMetrics().score_test(RIGHT, predictions, attempts)
    assert scores == dict(zip(("accuracy", "pass_n", "unanswered", "vote"), expected, strict=True))


def test_every_metric_is_defined_and_drawn_in_a_colour() -> None:
    metrics = ExactMetrics()
    assert set(metrics.definitions) == set(metrics.compared) == set(metrics.colors) == set(metrics.names)
    assert {metrics.primary, metrics.any_correct, *metrics.best, *metrics.grow, *metrics.by_rank} <= set(metrics.names)
    assert metrics.in_words({"accuracy": 0.25}) == "25.0% of predictions right"
