"""Questions about tasks."""

from __future__ import annotations

import pytest

from arcft.problems.arc.questions import ask_input, ask_output, shorten
from arcft.problems.arc.task import Pair, Task, TaskError, as_grid


def pair(color: int) -> Pair:
    """Color `color`, then the next: easy to tell apart."""
    return Pair(as_grid([[color]]), as_grid([[color + 1]]))


TASK = Task("t", train=(pair(0), pair(1), pair(2)), test=(pair(7), Pair(as_grid([[8]]))))


def test_the_puzzle_as_intended() -> None:
    problem = ask_output(TASK, 0)
    assert (problem.task_id, problem.kind) == ("t", "output")
    assert problem.demonstrations == TASK.train
    assert problem.query is not None
    assert problem.answer is not None
    assert (problem.query.tolist(), problem.answer.tolist()) == ([[7]], [[8]])
    assert ask_output(TASK, 1).answer is None
    for index in (2, -1):
        with pytest.raises(TaskError, match=f"task t: there is no test {index}; it has 2, counted from 0"):
            ask_output(TASK, index)


def test_an_ask_input() -> None:
    problem = ask_input(TASK, 1)
    assert problem.kind == "input"
    assert problem.query is None
    assert problem.demonstrations == TASK.train
    assert problem.answer is not None
    assert problem.answer.tolist() == [[8]]


def test_demonstrations_are_dropped_from_the_end_until_one_is_left() -> None:
    problem = ask_output(TASK, 0)
    shorter = shorten(problem)
    assert shorter is not None
    assert shorter.demonstrations == TASK.train[:2]
    assert shorter.query is problem.query
    shortest = shorten(shorter)
    assert shortest is not None
    assert shortest.demonstrations == TASK.train[:1]
    assert shorten(shortest) is None
