"""The voting rule: count, then mean log-probability a token, then first appearance."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from arcft.problems.arc.task import Grid, GridAnswer, Pair, Task, as_grid
from arcft.scoring.predictions import Prediction
from arcft.scoring.selection import Vote, attempts_of
from arcft.scoring.voting import Candidate, vote
from tests.support.arc import grid_of, prediction

A, B, C = (as_grid([[color, color]]) for color in (1, 2, 3))


def answer(grid: Grid | None, logprob: float | None = None, num_tokens: int | None = None) -> Prediction:
    return prediction(grid, logprob=logprob, num_tokens=num_tokens)


def colors(candidates: list[Candidate]) -> list[int]:
    return [int(grid_of(candidate)[0, 0]) for candidate in candidates]


def test_more_votes_win_over_higher_probability() -> None:
    predictions = [answer(A, -0.1, 10), answer(B, -50.0, 10), answer(B, -50.0, 10)]
    assert colors(vote(predictions)) == [2, 1]


def test_a_tie_goes_to_the_mean_of_log_probability_per_token() -> None:
    # A: (-1/10 - 3/10) / 2 = -0.2; B: (-3/20 - 3/20) / 2 = -0.15, although its summed log-probability is lower.
    predictions = [answer(A, -1.0, 10), answer(A, -3.0, 10), answer(B, -3.0, 20), answer(B, -3.0, 20)]
    assert colors(vote(predictions)) == [2, 1]


def test_the_mean_is_over_predictions_and_not_over_tokens() -> None:
    # A: (-0.1 - 0.5) / 2 = -0.3, where pooled tokens would give -15 / 110 = -0.136. B: -0.2.
    predictions = [answer(A, -10.0, 100), answer(A, -5.0, 10), answer(B, -2.0, 10), answer(B, -2.0, 10)]
    assert colors(vote(predictions)) == [2, 1]


def test_without_log_probabilities_the_first_seen_wins_a_tie() -> None:
    assert colors(vote([answer(C), answer(A), answer(B), answer(B), answer(A), answer(C)])) == [3, 1, 2]


def test_a_grid_without_log_probability_comes_after_its_equals() -> None:
    assert colors(vote([answer(A), answer(B, -9.0, 1), answer(C, -1.0, 0)])) == [2, 1, 3]


def test_unanswered_predictions_have_no_vote_and_nothing_is_padded() -> None:
    assert vote([]) == []
    assert vote([answer(None), answer(None)]) == []
    assert colors(vote([answer(None), answer(A), answer(None)])) == [1]


def test_grids_of_equal_cells_and_other_shape_are_different() -> None:
    wide, tall = as_grid([[1, 1]]), as_grid([[1], [1]])
    voted = vote([answer(wide), answer(tall), answer(tall)])
    assert [grid_of(candidate).shape for candidate in voted] == [(2, 1), (1, 2)]


def test_a_candidate_says_what_speaks_for_it() -> None:
    first, second = vote([answer(A, -1.0, 10), answer(B), answer(A, -3.0, 10)])
    assert (first.votes, first.logprob, first.score, first.reasons) == (2, -0.2, None, {})
    assert (second.votes, second.logprob) == (1, None)


def test_the_first_ones_are_submitted() -> None:
    key = ("t", 0)
    for number in (1, 2):
        found = [attempts_of({key: vote(list(map(answer, grids)))}, number)[key] for grids in ([], [A], [A, B, C])]
        assert [list(attempts) for attempts in found] == [
            [], [GridAnswer(A)], [GridAnswer(A), GridAnswer(B)][:number],
        ]  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.none() | st.integers(-40, 0), st.none() | st.integers(1, 4)), max_size=12)
)
def test_equal_to_a_plain_reading_of_the_rule(rows: list[tuple[int, int | None, int | None]]) -> None:
    """Colour 0 stands for no answer. Powers of two as numbers of tokens keep the sums exact in any order."""
    predictions = [
        answer(
            None if color == 0 else as_grid([[color]]),
            None if logprob is None else float(logprob),
            None if tokens is None else 2**tokens,
        )
        for color, logprob, tokens in rows
    ]
    found = [color for color, _, _ in rows if color]
    expected = []
    for color in set(found):
        scores = [lp / 2**n for c, lp, n in rows if c == color and lp is not None and n is not None]
        mean = float(np.mean(scores)) if scores else float("-inf")
        expected.append((-found.count(color), -mean, found.index(color), color))
    assert colors(vote(predictions)) == [color for *_, color in sorted(expected)]


def test_every_test_of_every_task_is_voted_on() -> None:
    pair = Pair(A, B)
    tasks = [Task("s", (pair,), (pair,)), Task("t", (pair,), (pair, pair))]
    voted = Vote().candidates(tasks, [answer(C), answer(A), answer(A)])
    assert {key: colors(candidates) for key, candidates in voted.items()} == {
        ("s", 0): [],
        ("t", 0): [1, 3],
        ("t", 1): [],
    }
