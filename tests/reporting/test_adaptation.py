"""Figures of test-time fine-tuning: before and after, over time, by task; in the terminal and for a tracker."""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from arcft.problems.arc.scoring.metrics import METRICS, ArcMetrics
from arcft.problems.arc.task import as_grid
from arcft.reporting.adaptation import (
    Adaptation,
    TaskRow,
    before_after_table,
    changes,
    done_course,
    gained_and_lost,
    rows_table,
    solved_course,
    votes_in_words,
)
from arcft.reporting.words import duration, points
from arcft.scoring.metrics import Scores
from arcft.scoring.predictions import Prediction
from tests.support.arc import prediction


def scores(vote_2: Mapping[str, float]) -> Scores:
    """Scores in which every metric of a task is the value given."""
    tasks = {task_id: dict.fromkeys(METRICS, value) for task_id, value in vote_2.items()}
    return Scores(metrics=dict.fromkeys(METRICS, sum(vote_2.values()) / len(vote_2)), problems=tasks)


def row(task_id: str, **values: Any) -> TaskRow:
    return TaskRow(**{"task_id": task_id, "state": "done", "steps": 64, **values})


def lost(first: float, last: float) -> dict[str, float]:
    return {"loss_first": first, "loss_last": last}


def adaptation(rows: Sequence[TaskRow], **values: Any) -> Adaptation:
    known = {"before": None, "after": None, "predictions_before": 1, "predictions_after": 8, **values}
    return Adaptation(rows=rows, metric_set=ArcMetrics(), **known)


# a is won, b is lost, c stays solved, d fails and keeps what it had.
FOUR = adaptation(
    [
        row(
            "a", solved=True, finished_at=30.0, loss_first=1.0, loss_last=0.125, adapt_seconds=9.0, predict_seconds=2.0
        ),
        row(
            "b", solved=False, finished_at=10.0, loss_first=0.5, loss_last=0.25, adapt_seconds=5.0, predict_seconds=1.0
        ),
        row("c", solved=True, finished_at=20.0, loss_first=0.75, loss_last=0.5, adapt_seconds=7.0, attempts=1),
        row("d", solved=False, state="failed", reason="too <long>", attempts=2, steps=0, finished_at=200.0),
    ],
    before=scores({"a": 0.0, "b": 1.0, "c": 1.0, "d": 0.5}),
    after=scores({"a": 1.0, "b": 0.0, "c": 1.0, "d": 0.5}),
    log=["slots: 4", "out of memory & on with 2"],
)


def test_changes_are_taken_task_by_task() -> None:
    found = changes(FOUR)
    assert [change.metric for change in found] == list(METRICS)
    # Both have the values 0, 1, 1, 1/2: mean 5/8, variance 11/48. The differences are 1, -1, 0, 0: variance 2/3.
    error, difference_error = math.sqrt(11 / 48 / 4), math.sqrt(2 / 3 / 4)
    expected = (0.625, error, 0.625, error, 0.0, difference_error)
    assert dataclasses.astuple(found[-1])[1:] == pytest.approx(expected)


def test_changes_compare_the_tasks_that_have_both_scores() -> None:
    found = changes(adaptation([], before=scores({"a": 0.0, "x": 1.0}), after=scores({"a": 1.0, "y": 0.0})))
    assert (found[0].before, found[0].after, found[0].difference) == (0.0, 1.0, 1.0)
    assert math.isnan(found[0].difference_error)
    assert changes(adaptation([], before=scores({"a": 0.0}), after=None)) == []
    assert changes(adaptation([], before=None, after=scores({"a": 0.0}))) == []
    assert changes(adaptation([], before=scores({"a": 0.0}), after=scores({"b": 0.0}))) == []


def test_until_a_task_is_done_its_unadapted_predictions_count() -> None:
    assert solved_course(FOUR) == [(0.0, 2), (10.0, 1), (20.0, 1), (30.0, 2), (200.0, 2)]
    assert done_course(FOUR) == [(0.0, 0), (10.0, 1), (20.0, 2), (30.0, 3)]
    assert gained_and_lost(FOUR) == (["a"], ["b"])


def test_course_without_scores_before_starts_at_nothing() -> None:
    rows = [row("a", solved=True, finished_at=2.0), row("b", solved=True, finished_at=1.0), row("c", solved=True)]
    assert solved_course(adaptation(rows)) == [(0.0, 0), (1.0, 1), (2.0, 2)]
    assert gained_and_lost(adaptation(rows)) == ([], [])
    assert solved_course(adaptation([row("a", finished_at=1.0)])) == []


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.floats(0, 1e6)), min_size=1, max_size=20))
def test_course_leads_from_what_was_solved_to_what_is(tasks: list[tuple[bool, bool, float]]) -> None:
    rows = [row(str(index), solved=after, finished_at=time) for index, (_, after, time) in enumerate(tasks)]
    before = scores({str(index): float(solved) for index, (solved, _, _) in enumerate(tasks)})
    course = solved_course(adaptation(rows, before=before))
    assert course[0][1] == sum(solved for solved, _, _ in tasks)
    assert course[-1][1] == sum(solved for _, solved, _ in tasks)
    assert [time for time, _ in course] == sorted(time for time, _ in course)
    gained, lost = gained_and_lost(adaptation(rows, before=before))
    assert course[-1][1] - course[0][1] == len(gained) - len(lost)


def test_votes_in_words() -> None:
    def answers(*grids: int | None, logprobs: Sequence[float] = ()) -> list[Prediction]:
        return [
            prediction(
                None if color is None else as_grid([[color]]),
                logprob=logprobs[index] if logprobs else None,
                num_tokens=1,
            )
            for index, color in enumerate(grids)
        ]

    assert votes_in_words([answers(3, 1, 2, None, 2, 1, 2)]) == "3, 2, 1"
    assert votes_in_words([answers(1, 1), answers(None), []]) == "2; 0; 0"
    assert votes_in_words([answers(*range(8))]) == "1, 1, 1, 1, 1, 1, 1, 1"
    assert votes_in_words([answers(0, *range(9))]) == "2, 1, 1, 1, 1, 1, 1, 1, …"
    assert votes_in_words([]) == ""


def printed(table: Any) -> list[str]:
    file = io.StringIO()
    Console(file=file, width=80, color_system=None).print(table)
    return [line.rstrip() for line in file.getvalue().splitlines()]


def test_terminal_shows_before_and_after_side_by_side() -> None:
    lines = printed(before_after_table(FOUR, title="4 tasks"))
    assert lines[0] == "4 tasks"
    assert lines[1].split() == ["before", "after", "change"]
    assert lines[2].split() == ["metric", "1", "prediction", "8", "predictions", "in", "points"]
    assert [line.split()[0] for line in lines[3:12]] == list(METRICS)
    assert lines[11].split() == ["vote_2", "62.5%", "±", "23.9", "62.5%", "±", "23.9", "0", "±", "40.8"]
    assert " ".join(" ".join(lines[12:]).split()) == (
        "1 prediction a test before, 8 after: max_correct_pixels, any_correct_size, pass_n, vote_1 and vote_2 rise "
        "with that number alone; the other metrics are means over predictions and do not."
    )
    assert max(map(len, lines)) <= 80


def test_terminal_says_no_more_than_is_known() -> None:
    one = adaptation([row("a")], before=scores({"a": 0.0}), after=scores({"a": 0.25}), predictions_before=8)
    lines = printed(before_after_table(one))
    assert lines[-1].split() == ["vote_2", "0%", "25.0%", "+25.0"]
    with pytest.raises(ValueError, match="scores before and after are needed"):
        before_after_table(adaptation([row("a")], after=scores({"a": 0.0})))


def test_rows_for_a_tracker_have_one_kind_a_column() -> None:
    columns, rows = rows_table(FOUR)
    assert dict(zip(columns, rows[3], strict=True)) == {
        "task": "d",
        "state": "failed",
        "solved before": False,
        "solved": False,
        "votes": "",
        "loss first": None,
        "loss last": None,
        "steps": 0,
        "failed tries": 2,
        "adapt seconds": None,
        "predict seconds": None,
        "finished at seconds": 200.0,
        "reason": "too <long>",
        "notes": "",
        "adapter": "d",
    }
    for cells in zip(*rows, strict=True):
        assert len({type(cell) for cell in cells if cell is not None}) <= 1
    assert rows_table(adaptation([row("a", notes=("x", "y"), unit="split-1")]))[1][0][-2:] == ["x; y", "split-1"]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0.00 s"), (0.994, "0.99 s"), (0.996, "1.0 s"),
        (9.94, "9.9 s"), (9.96, "10 s"), (59.4, "59 s"), (59.6, "1 min"), (61, "1 min 1 s"),
        (3599.7, "1 h"), (3725, "1 h 2 min"), (7170, "2 h"), (41400, "11 h 30 min"), (3.6e6, "1,000 h"),
    ],
)  # fmt: skip
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_points_carry_their_sign() -> None:
    assert [points(value) for value in (0, 0.26, -0.0125, 1)] == ["0", "+26.0", "-1.2", "+100.0"]
