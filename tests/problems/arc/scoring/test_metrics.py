"""Metrics, against values worked out by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arcft.problems.arc.scoring.metrics import METRICS, ArcMetrics
from arcft.problems.arc.task import Grid, GridAnswer, Pair, Task, as_grid
from arcft.scoring.metrics import Scores, mean_and_error, score_problems, wilson_interval
from arcft.scoring.predictions import Prediction, PredictionError
from tests.support.arc import prediction, scored

TRUTH = as_grid([[1, 2], [3, 4]])
THREE_RIGHT = as_grid([[1, 2], [3, 0]])
ONE_RIGHT = as_grid([[1, 0], [0, 0]])
OTHER_SIZE = as_grid([[1, 2, 3], [3, 4, 5]])


def answer(grid: Grid | None, task_id: str = "t", test_index: int = 0) -> Prediction:
    return prediction(grid, task_id, test_index)


def task(task_id: str, *truths: Grid | None) -> Task:
    return Task(task_id, (Pair(TRUTH, TRUTH),), tuple(Pair(TRUTH, truth) for truth in truths))


def row(*values: float) -> dict[str, float]:
    return dict(zip(METRICS, values, strict=True))


def test_order_of_the_metrics() -> None:
    assert METRICS == (
        "accuracy", "correct_pixels", "correct_size", "max_correct_pixels", "any_correct_size", "pass_n", "unanswered",
        "vote_1", "vote_2",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("grids", "voted", "expected"),
    [
        # accuracy, correct_pixels, correct_size, max_correct_pixels, any_correct_size, pass_n, unanswered, vote_1 and 2
        ([TRUTH], [TRUTH], row(1, 1, 1, 1, 1, 1, 0, 1, 1)),
        ([THREE_RIGHT], [THREE_RIGHT], row(0, 0.75, 1, 0.75, 1, 0, 0, 0, 0)),
        ([OTHER_SIZE], [OTHER_SIZE], row(0, 0, 0, 0, 0, 0, 0, 0, 0)),
        ([None], [], row(0, 0, 0, 0, 0, 0, 1, 0, 0)),
        ([], [], row(0, 0, 0, 0, 0, 0, 1, 0, 0)),
        (
            [TRUTH, THREE_RIGHT, OTHER_SIZE, None],
            [THREE_RIGHT, TRUTH],
            row(1 / 4, 1.75 / 4, 2 / 4, 1, 1, 1, 1 / 4, 0, 1),
        ),
        ([ONE_RIGHT, THREE_RIGHT], [ONE_RIGHT, THREE_RIGHT], row(0, 0.5, 1, 0.75, 1, 0, 0, 0, 0)),
        ([TRUTH, OTHER_SIZE], [OTHER_SIZE, THREE_RIGHT, TRUTH], row(0.5, 0.5, 0.5, 1, 1, 1, 0, 0, 0)),
    ],
)
def test_one_test(grids: list[Grid | None], voted: list[Grid], expected: dict[str, float]) -> None:
    predictions = [None if grid is None else GridAnswer(grid) for grid in grids]
    found = ArcMetrics().score_test(GridAnswer(TRUTH), predictions, [GridAnswer(grid) for grid in voted])
    assert found == expected
    assert list(found) == list(METRICS)


def test_mean_over_tests_and_then_over_tasks() -> None:
    tasks = [task("t", TRUTH, TRUTH), task("u", TRUTH)]
    predictions = [answer(TRUTH), answer(None), answer(ONE_RIGHT, "t", 1), answer(TRUTH, "u")]
    scores = scored(tasks, predictions)
    assert scores.problems == {
        "t": row(0.25, 0.375, 0.75, 0.625, 1, 0.5, 0.25, 0.5, 0.5),
        "u": row(1, 1, 1, 1, 1, 1, 0, 1, 1),
    }
    assert scores.metrics == row(0.625, 0.6875, 0.875, 0.8125, 1, 0.75, 0.125, 0.75, 0.75)
    assert tuple(scores.metrics) == METRICS


def test_a_task_or_test_without_predictions_counts_as_unanswered() -> None:
    tasks = [task("t", TRUTH, TRUTH), task("u", TRUTH)]
    predictions = [answer(TRUTH)]
    scores = scored(tasks, predictions)
    assert scores.problems["u"] == row(0, 0, 0, 0, 0, 0, 1, 0, 0)
    assert scores.problems["t"] == row(0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5)
    assert scores.metrics["unanswered"] == 0.75


def test_without_known_answers_there_is_nothing_to_score() -> None:
    assert score_problems([task("t", None)], [answer(TRUTH)], {}, ArcMetrics()) == Scores(metrics={}, problems={})


def test_unknown_answers_are_left_out() -> None:
    tasks = [task("t", None, TRUTH), task("u", None)]
    scores = score_problems(
        tasks, [answer(ONE_RIGHT), answer(TRUTH, "t", 1)], {("t", 1): [GridAnswer(TRUTH)]}, ArcMetrics()
    )
    assert scores.problems == {"t": row(1, 1, 1, 1, 1, 1, 0, 1, 1)}
    assert scores.metrics == scores.problems["t"]


def test_predictions_of_other_tasks_are_refused() -> None:
    with pytest.raises(PredictionError, match="task t has test_index=5"):
        score_problems([task("t", TRUTH)], [answer(TRUTH, "t", 5)], {}, ArcMetrics())


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([None, TRUTH, THREE_RIGHT, ONE_RIGHT, OTHER_SIZE]), max_size=8))
def test_relations_that_always_hold(grids: list[Grid | None]) -> None:
    tasks = [task("t", TRUTH)]
    predictions = [answer(grid) for grid in grids]
    scores = scored(tasks, predictions).metrics
    assert all(0 <= value <= 1 for value in scores.values())
    assert scores["accuracy"] <= scores["correct_pixels"] <= scores["correct_size"]
    assert scores["correct_size"] + scores["unanswered"] <= 1 + 1e-9
    assert scores["vote_1"] <= scores["vote_2"] <= scores["pass_n"] <= scores["max_correct_pixels"]
    assert scores["max_correct_pixels"] <= scores["any_correct_size"]


def test_mean_and_standard_error() -> None:
    mean, error = mean_and_error([1.0, 2.0, 3.0, 4.0])
    assert mean == 2.5
    assert error == pytest.approx(math.sqrt((2.25 + 0.25 + 0.25 + 2.25) / 3 / 4))
    mean, error = mean_and_error([0.5])
    assert mean == 0.5
    assert math.isnan(error)
    with pytest.raises(ValueError, match="no values"):
        mean_and_error([])


def test_standard_errors_over_tasks() -> None:
    tasks = [task("t", TRUTH), task("u", TRUTH), task("v", TRUTH), task("w", TRUTH)]
    predictions = [answer(TRUTH), answer(None, "u")]
    errors = scored(tasks, predictions).standard_errors()
    assert tuple(errors) == METRICS
    # One of four solved: sample variance 4/3 * 1/4 * 3/4 = 1/4, so the error is sqrt(1/4 / 4) = 1/4.
    assert errors["vote_2"] == pytest.approx(0.25)
    assert Scores({}, {}).standard_errors() == {}


def test_tasks_and_tests_are_averaged_apart() -> None:
    """One of three tests is solved: the task that has two counts as half solved, or each of its tests alike."""
    tasks = [task("t", TRUTH, TRUTH), task("u", TRUTH), task("v", None, TRUTH)]
    scores = scored(tasks, [answer(TRUTH), answer(None, "u")])
    assert scores.metrics["vote_2"] == pytest.approx(1 / 6)
    assert scores.over_tests["vote_2"] == 1 / 4
    assert scores.over_tests["unanswered"] == 3 / 4
    assert tuple(scores.over_tests) == METRICS
    assert scores.num_tests == 4
    assert scores.tracked(ArcMetrics())["eval/vote_2"] == pytest.approx(1 / 6)
    assert scores.tracked(ArcMetrics())["eval/vote_2_over_tests"] == 1 / 4
    assert scores.intervals()["vote_1"] == wilson_interval(1 / 6, 3)


@pytest.mark.parametrize(
    ("share", "number", "expected"),
    [
        # Newcombe 1998 (Statistics in Medicine 17), table I, method 3.
        (81 / 263, 263, (0.2553, 0.3662)),
        (15 / 148, 148, (0.0624, 0.1605)),
        (0 / 20, 20, (0, 0.1611)),
        (1 / 29, 29, (0.0061, 0.1718)),
        (0, 4, (0, 0.4899)),
        (1, 4, (0.5101, 1)),
        (0, 1, (0, 0.7935)),
    ],
)
def test_wilson_intervals(share: float, number: int, expected: tuple[float, float]) -> None:
    assert wilson_interval(share, number) == pytest.approx(expected, abs=5e-5)


def test_the_parts_of_the_metric_set_name_metrics() -> None:
    """What reports and resampling look up is there for every name that they meet."""
    metric_set = ArcMetrics()
    names = set(metric_set.names)
    assert set(metric_set.definitions) == names
    assert {metric_set.primary, metric_set.any_correct, *metric_set.closeness} <= names
    assert set(metric_set.headlines) | set(metric_set.compared) | set(metric_set.grow) <= names
    drawn = {name for chart in metric_set.charts.values() for name in chart} | set(metric_set.by_rank)
    assert drawn == set(metric_set.colors)
    assert tuple(metric_set.best) == (
        "accuracy", "correct_pixels", "correct_size", "max_correct_pixels", "pass_n", "vote_1", "vote_2",
    )  # fmt: skip
    assert metric_set.by_rank[metric_set.primary] == metric_set.attempts


def test_metrics_of_a_task_in_words() -> None:
    near = {"accuracy": 0.25, "max_correct_pixels": 0.75}
    assert ArcMetrics().in_words(near) == "25.0% of predictions right, best prediction 75.0% of cells"
    assert ArcMetrics().in_words({"accuracy": 1.0, "max_correct_pixels": 1.0}) == "100% of predictions right"


def test_solved_tasks_are_those_with_every_test_right() -> None:
    tasks = [task("t", TRUTH, TRUTH), task("u", TRUTH)]
    scores = scored(tasks, [answer(TRUTH), answer(ONE_RIGHT, "t", 1), answer(TRUTH, "u")])
    assert scores.solved(ArcMetrics()) == {"t": False, "u": True}
