"""Each selection on hand-made predictions, with ties; what it keeps of its reasons; and what re-selection needs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

import pytest

from arcft.config.schema import ConfigError
from arcft.config.selection import ScoreConfig, VerifyConfig, VoteConfig
from arcft.problems.arc.task import Grid, Pair, Task, as_grid, as_grid_answer
from arcft.protocols import Answer, Problem, Verdict
from arcft.runs.evaluation.prediction_files import check_scores
from arcft.scoring.predictions import Prediction, group_by_test, prediction_from_json
from arcft.scoring.selection import Score, Selector, Verify, Vote, make_selector, with_reasons
from arcft.scoring.voting import Candidate, vote
from tests.support.arc import ARC, grid_of, prediction

A, B, C, D = (as_grid([[color, color]]) for color in (1, 2, 3, 4))
TASK = Task("t", (Pair(A, B),), (Pair(A, B), Pair(C, D)))


def answer(grid: Grid | None, *scores: float, logprob: float | None = None, test_index: int = 0) -> Prediction:
    return prediction(grid, "t", test_index, logprob=logprob, num_tokens=1, scores=scores or None)


def colors(candidates: Sequence[Candidate]) -> list[int]:
    return [int(grid_of(candidate)[0, 0]) for candidate in candidates]


def test_vote_goes_by_nothing_but_the_votes() -> None:
    predictions = [answer(A, -9.0), answer(B, -1.0, logprob=-3.0), answer(C, -5.0, logprob=-2.0), answer(A)]
    assert colors(Vote().order(TASK, 0, predictions)) == colors(vote(predictions)) == [1, 3, 2]


def test_score_puts_the_most_probable_grid_first() -> None:
    predictions = [
        answer(A, -4.0, -2.0),
        answer(A),
        answer(A),
        answer(B, -1.0, -3.0),
        answer(None),
        answer(C, -5.0, -5.0),
    ]
    ordered = Score(views=2).order(TASK, 0, predictions)
    assert colors(ordered) == [2, 1, 3]
    assert [(one.score, one.votes, one.reasons) for one in ordered] == [
        (-2.0, 1, {"views": 2}), (-3.0, 3, {"views": 2}), (-5.0, 1, {"views": 2}),
    ]  # fmt: skip


def test_equal_scores_are_ordered_by_the_vote() -> None:
    predictions = [
        answer(A, -1.0, logprob=-3.0), answer(B, -1.0, logprob=-2.0), answer(C, -1.0), answer(D, -1.0), answer(D),
    ]  # fmt: skip
    assert colors(Score(views=8).order(TASK, 0, predictions)) == [4, 2, 1, 3]
    assert colors(Score(views=8).order(TASK, 0, predictions)) == colors(vote(predictions))


def test_grids_without_scores_come_last_in_the_order_of_the_vote() -> None:
    predictions = [answer(B), answer(C), answer(C), answer(A, -99.0)]
    ordered = Score(views=8).order(TASK, 0, predictions)
    assert colors(ordered) == [1, 3, 2]
    assert [one.score for one in ordered] == [-99.0, None, None]


def test_the_first_views_of_each_scoring_count() -> None:
    """A grid may be scored more than once, by several adapters: the mean is over all of them."""
    predictions = [answer(A, -1.0, -9.0, -9.0), answer(B, -2.0, -3.0, -1.0), answer(A, -2.0, -1.0)]
    assert [(one.score, one.reasons["views"]) for one in Score(views=1).order(TASK, 0, predictions)] == [
        (-1.5, 2), (-2.0, 1),
    ]  # fmt: skip
    assert colors(Score(views=2).order(TASK, 0, predictions)) == [2, 1]
    assert colors(Score(views=3).order(TASK, 0, predictions)) == [2, 1]


class Darkest:
    """Judges by the first colour alone, those of 3 and more alike."""

    def __call__(self, problem: Problem, test_index: int, answer: Answer) -> Verdict:
        color = int(as_grid_answer(answer).grid[0, 0])
        return Verdict(-float(min(color, 3)), {"asked": [problem.id, test_index, color]})


def test_verify_asks_the_verifier_and_breaks_ties_by_the_vote() -> None:
    predictions = [answer(C), answer(D), answer(B), answer(D)]
    ordered = Verify(Darkest()).order(TASK, 1, predictions)
    assert colors(ordered) == [2, 4, 3]
    assert [one.reasons for one in ordered] == [{"asked": ["t", 1, color]} for color in (2, 4, 3)]


SELECTORS = [Vote(), Score(views=2), Verify(Darkest()), make_selector(VerifyConfig(), ARC)]


@pytest.mark.parametrize("selector", SELECTORS, ids=["vote", "score", "verify", "consistency"])
def test_without_predictions_there_are_no_candidates(selector: Selector) -> None:
    assert selector.candidates([TASK], []) == {("t", 0): [], ("t", 1): []}
    assert selector.attempts([TASK], [answer(None)], 2) == {("t", 0): [], ("t", 1): []}


@pytest.mark.parametrize("selector", SELECTORS, ids=["vote", "score", "verify", "consistency"])
def test_selecting_from_what_was_selected_from_gives_the_same(selector: Selector) -> None:
    predictions = [
        answer(A, -4.0), answer(None), answer(B, -1.0, logprob=-2.0), answer(A), answer(C, -2.0, test_index=1),
        answer(D, test_index=1),
    ]  # fmt: skip
    candidates = selector.candidates([TASK], predictions)
    written = with_reasons(predictions, candidates, selector.name)
    assert [one.selection is None for one in written] == [False, True, False, True, False, False]
    read = [prediction_from_json(json.loads(json.dumps(one.to_json("grid"))), "here", ARC) for one in written]
    assert read == written
    again = selector.candidates([TASK], read)
    assert with_reasons(read, again, selector.name) == written
    for key, ordered in candidates.items():
        assert colors(again[key]) == colors(ordered)


def test_reasons_are_kept_with_the_first_prediction_of_each_grid() -> None:
    predictions = [answer(A, -4.0), answer(B, -1.0, logprob=-2.0), answer(A), answer(None)]
    written = with_reasons(predictions, Score(views=8).candidates([TASK], predictions), "score")
    assert [one.selection for one in written] == [
        {"by": "score", "rank": 2, "score": -4.0, "views": 1, "votes": 2, "logprob_per_token": None},
        {"by": "score", "rank": 1, "score": -1.0, "views": 1, "votes": 1, "logprob_per_token": -2.0},
        None,
        None,
    ]
    # Another selection takes the place of the first, and leaves the scores.
    voted = with_reasons(written, Vote().candidates([TASK], written), "vote")
    assert voted[0].selection == {"by": "vote", "rank": 1, "votes": 2, "logprob_per_token": None}
    assert voted[0].scores == (-4.0,)
    other = with_reasons(written, {}, "vote")
    assert other == [dataclasses.replace(one, selection=None) for one in written]


def test_make_selector() -> None:
    assert make_selector(VoteConfig(), ARC).name == "vote"
    score = make_selector(ScoreConfig(num_augmentations=3), ARC)
    assert isinstance(score, Score)
    assert score.views == 3
    verify = make_selector(VerifyConfig(), ARC)
    assert isinstance(verify, Verify)
    assert verify.order(TASK, 0, [answer(A)])[0].score is not None


def checked(predictions: Sequence[Prediction], views: int = 8, explicit: Sequence[str] = ()) -> None:
    config = ScoreConfig(num_augmentations=views)
    check_scores(group_by_test([TASK], predictions), config, explicit, "made.jsonl", "grid")


def test_predictions_without_scores_are_not_selected_by_scores() -> None:
    with pytest.raises(ConfigError) as caught:
        checked([answer(A), answer(B), answer(C, test_index=1)])
    assert str(caught.value) == (
        "selection=score: no prediction of made.jsonl has scores; predict with checkpoint=RUN "
        "selection=score, which keeps them, or use selection=vote or selection=verify"
    )
    checked([answer(A), answer(A), answer(C, test_index=1)])  # nothing to choose


def test_more_views_than_there_are_can_not_be_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    predictions = [answer(A, -1.0, -2.0), answer(B, -1.0, -2.0)]
    checked(predictions)
    checked(predictions, 2, ["selection.num_augmentations"])
    assert capsys.readouterr().out == ""
    with pytest.raises(
        ConfigError, match=r"^selection.num_augmentations=3: .* made.jsonl were scored under at most 2 augm"
    ):
        checked(predictions, 3, ["selection.num_augmentations"])


def test_tests_that_are_scored_in_part_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    checked([answer(A, -1.0), answer(B), answer(C, -1.0, test_index=1), answer(D, -1.0, test_index=1)])
    assert "in 1 of 2 tests some grids have no scores: they come after those that have" in capsys.readouterr().out
