"""Which questions training asks, and the least that they take."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from arcft.problems.arc.augment.sampler import GridQuestionSampler
from arcft.problems.arc.augment.transforms import Identity
from arcft.problems.arc.data.sources import PairPool
from arcft.problems.arc.questions import as_grid_question
from arcft.problems.arc.task import Pair, Task, TaskError, as_grid


def pair(size: int) -> Pair:
    """An input of `size` cells and an output of one."""
    return Pair(as_grid([[0] * size]), as_grid([[1]]))


TASK = Task("t", train=(pair(3), pair(9), pair(6)), test=(pair(1), Pair(as_grid([[0, 0]])), pair(4)))


def sampler(input_from_inputs: float = 0.0, **changes: object) -> GridQuestionSampler:
    values: dict[str, object] = {"view": "test", "cells_are_tokens": True} | changes
    return GridQuestionSampler(lambda task, rng: Identity(), input_from_inputs=input_from_inputs, **values)  # type: ignore[arg-type]


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_a_share_of_the_questions_asks_for_an_input(share: float) -> None:
    rng, asked = np.random.default_rng(0), sampler(share)
    kinds = [asked.draw(TASK, rng).kind for _ in range(1000)]
    assert kinds.count("input") == pytest.approx(1000 * share, abs=40 * (0 < share < 1))


def test_tests_with_an_answer_are_asked_equally_often() -> None:
    rng, asked = np.random.default_rng(0), sampler()
    sizes = [
        question.query.size for question in (asked.draw(TASK, rng) for _ in range(1000)) if question.query is not None
    ]
    assert {size: sizes.count(size) for size in set(sizes)} == pytest.approx({1: 500, 4: 500}, abs=60)


def test_the_least_that_a_question_takes() -> None:
    # Input and output of the pairs have 10, 7, 5, 4, 2 and 2 cells.
    assert sampler().min_tokens(TASK, drop_demonstrations=False) == 2 + 2 + 4 + 5
    assert sampler().min_tokens(TASK, drop_demonstrations=True) == 2 + 2
    assert sampler(cells_are_tokens=False).min_tokens(TASK, drop_demonstrations=False) == 0
    assert sampler(0.5).min_tokens(TASK, drop_demonstrations=False) == 0
    rng = np.random.default_rng(0)
    least = sampler().min_tokens(TASK, drop_demonstrations=False)
    assert all(as_grid_question(sampler().draw(TASK, rng)).num_cells >= least for _ in range(20))


def test_problems_of_an_item() -> None:
    rng = np.random.default_rng(0)
    assert sampler().problems(TASK, rng) == [TASK]
    left_out = sampler(view="leave_one_out").problems(TASK, rng)
    assert [problem.answers for problem in left_out] == [Task("t", TASK.train, (each,)).answers for each in TASK.train]
    [drawn] = sampler().problems(PairPool("p", TASK.train, demonstrations=2), rng)
    assert isinstance(drawn, Task)
    assert {*drawn.train, *drawn.test} == {*TASK.train}
    unknown = dataclasses.replace(TASK, test=TASK.test[1:2])
    with pytest.raises(
        TaskError, match=r"task t: no test output is known, so there is nothing to learn; use data\.view"
    ):
        sampler().problems(unknown, rng)
