"""What fewer predictions would have come to: held to enumeration, and nothing left to chance at the end."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence

import numpy as np
import pytest

from arcft.problems.arc.task import Grid, Pair, Task, as_grid
from arcft.scoring.predictions import Prediction
from arcft.scoring.resampling import metrics_by_count
from arcft.scoring.selection import Score, Selector, Vote
from tests.support.arc import METRICS, prediction, scored

A, B, C, D = (as_grid([[color]]) for color in range(4))


def answer(
    grid: Grid | None, logprob: float | None = None, score: float | None = None, task_id: str = "t", test_index: int = 0
) -> Prediction:
    scores = None if score is None else (score,)
    return prediction(grid, task_id, test_index, logprob=logprob, num_tokens=2, scores=scores)


def task(task_id: str, *truths: Grid | None) -> Task:
    return Task(task_id, (Pair(A, A),), tuple(Pair(A, truth) for truth in truths))


def enumerated(one: Task, predictions: Sequence[Prediction], number: int, selector: Selector) -> dict[str, float]:
    """The mean over all subsets, each in the order of the predictions, selected from as ever."""
    found = [
        scored([one], subset, selector).metrics for subset in map(list, itertools.combinations(predictions, number))
    ]
    return {name: math.fsum(metrics[name] for metrics in found) / len(found) for name in METRICS.by_rank}


# Ties at every turn: of votes, of log-probabilities, and of first appearance.
TIED = [
    answer(B, -2.0),
    answer(A, -1.0),
    answer(None),
    answer(C),
    answer(A, -3.0),
    answer(C),
    answer(B, -2.0),
    answer(D),
]
# Scores on every prediction, so that all subsets have them.
SCORED = [
    answer(B, -2.0, -5.0), answer(A, -1.0, -1.0), answer(B, None, -5.0), answer(C, -4.0, -1.0), answer(C, None, -1.0),
    answer(D, -1.0),
]  # fmt: skip


@pytest.mark.parametrize(
    ("predictions", "selector"),
    [(TIED, Vote()), (SCORED, Score(views=1)), (SCORED, Vote())],
    ids=["tied", "scored", "voted"],
)
@pytest.mark.parametrize("truth", [A, B, C, D, as_grid([[9]])], ids="ABCD9")
def test_means_are_those_of_all_subsets(predictions: list[Prediction], selector: Selector, truth: Grid) -> None:
    one = task("t", truth)
    candidates = selector.candidates([one], predictions)
    draws = 4000
    numbers = metrics_by_count([one], predictions, candidates, METRICS, draws)
    assert [at.predictions for at in numbers] == [1, 2, 4, len(predictions)]
    for at in numbers:
        expected = enumerated(one, predictions, at.predictions, selector)
        for name in METRICS.by_rank:
            # Four standard errors of a mean of zeros and ones.
            error = 4 * math.sqrt(expected[name] * (1 - expected[name]) / draws)
            assert at.mean[name] == pytest.approx(expected[name], abs=error + 1e-9), (at.predictions, name)
            deviation = math.sqrt(expected[name] * (1 - expected[name]))
            assert at.deviation[name] == pytest.approx(deviation, abs=0.03)


def test_the_first_seen_of_equals_comes_first_however_many_there_are() -> None:
    """In few draws, too, which hold fewer predictions than there are."""
    tasks = [task(str(number), as_grid([[9, 9]])) for number in range(20)]
    grids = [as_grid([list(cells)]) for cells in itertools.product(range(10), repeat=2)]
    predictions = [answer(grid, task_id=one.id) for one in tasks for grid in grids]
    candidates = Vote().candidates(tasks, predictions)
    at = {number.predictions: number for number in metrics_by_count(tasks, predictions, candidates, METRICS, draws=20)}[
        2
    ]
    # The last one of all is drawn, and comes second.
    assert at.mean["vote_2"] == at.mean["pass_n"] > 0
    assert at.mean["vote_1"] == 0


def test_all_predictions_leave_nothing_to_chance_and_are_the_metrics_of_the_evaluation() -> None:
    tasks = [task("t", B, D), task("u", A)]
    predictions = [*TIED, answer(D, test_index=1), *(answer(grid, task_id="u") for grid in (B, C, A))]
    candidates = Vote().candidates(tasks, predictions)
    metrics = scored(tasks, predictions).metrics
    last = metrics_by_count(tasks, predictions, candidates, METRICS)[-1]
    assert last.predictions == 8
    assert last.mean == pytest.approx({name: metrics[name] for name in METRICS.by_rank})
    assert last.deviation == dict.fromkeys(METRICS.by_rank, 0)


def test_means_are_over_tests_then_over_tasks_and_a_test_gives_what_it_has() -> None:
    tasks = [task("t", A, A, None), task("u", A), task("unanswered", A), task("unknown", None)]
    predictions = [
        answer(A), answer(A), answer(A), answer(B, test_index=1), answer(A, test_index=2), answer(A, task_id="u"),
        *(answer(A, task_id="unknown") for _ in range(9)),
    ]  # fmt: skip
    numbers = metrics_by_count(tasks, predictions, Vote().candidates(tasks, predictions), METRICS)
    assert [at.predictions for at in numbers] == [1, 2, 3]
    for at in numbers:
        assert at.mean == dict.fromkeys(METRICS.by_rank, (0.5 + 1 + 0) / 3)  # to the bit, in each draw
        assert at.deviation == dict.fromkeys(METRICS.by_rank, 0)


def test_more_predictions_never_lose_a_right_answer() -> None:
    numbers = metrics_by_count([task("t", D)], TIED, Vote().candidates([task("t", D)], TIED), METRICS)
    passed = [at.mean["pass_n"] for at in numbers]
    assert passed == sorted(passed)
    assert passed[-1] == 1
    for at in numbers:
        assert at.mean["vote_1"] <= at.mean["vote_2"] <= at.mean["pass_n"]
    assert numbers == metrics_by_count([task("t", D)], TIED, Vote().candidates([task("t", D)], TIED), METRICS)


def test_one_prediction_a_test_or_no_known_answer_has_no_numbers() -> None:
    known, unknown = task("t", A), task("t", None)
    assert metrics_by_count([known], [answer(A)], Vote().candidates([known], [answer(A)]), METRICS) == []
    assert metrics_by_count([known], [], Vote().candidates([known], []), METRICS) == []
    assert metrics_by_count([unknown], TIED, Vote().candidates([unknown], TIED), METRICS) == []


def test_it_is_quick_on_a_whole_set() -> None:
    rng = np.random.default_rng(0)
    grids = [as_grid(rng.integers(0, 10, (10, 10))) for _ in range(40)]
    tasks = [task(str(number), grids[0]) for number in range(400)]
    predictions = [
        answer(grids[int(rng.integers(40))], -float(rng.random()), task_id=str(number))
        for number in range(400)
        for _ in range(96)
    ]
    candidates = Vote().candidates(tasks, predictions)
    begun = time.process_time()
    numbers = metrics_by_count(tasks, predictions, candidates, METRICS)
    assert time.process_time() - begun < 5  # a second on an idle core
    assert [at.predictions for at in numbers] == [1, 2, 4, 8, 16, 32, 64, 96]
    assert numbers[0].mean["pass_n"] == pytest.approx(1 / 40, abs=0.01)
    assert set(numbers[-1].deviation.values()) == {0}


def test_deviations_are_those_of_a_sample() -> None:
    one = task("t", A)
    numbers = metrics_by_count([one], TIED, Vote().candidates([one], TIED), METRICS, draws=2)
    # Of two draws that are 0 and 1.
    deviations = {value for at in numbers for value in at.deviation.values()}
    assert sorted(deviations) == pytest.approx([0, math.sqrt(0.5)])
