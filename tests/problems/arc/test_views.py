"""Problems and sub-tasks made from tasks."""

from __future__ import annotations

import numpy as np
import pytest

from arcft.problems.arc.data.sources import PairPool
from arcft.problems.arc.task import Pair, Task, TaskError, as_grid
from arcft.problems.arc.views import (
    drop_demonstrations,
    input_from_inputs,
    leave_one_out,
    test_problem,
    variants_of_demonstration,
)


def pair(color: int) -> Pair:
    """Color `color`, then the next: easy to tell apart."""
    return Pair(as_grid([[color]]), as_grid([[color + 1]]))


TASK = Task("t", train=(pair(0), pair(1), pair(2)), test=(pair(7), Pair(as_grid([[8]]))))


def test_the_puzzle_as_it_is_meant() -> None:
    problem = test_problem(TASK, 0)
    assert (problem.task_id, problem.kind) == ("t", "output")
    assert problem.demonstrations == TASK.train
    assert problem.query is not None
    assert problem.answer is not None
    assert (problem.query.tolist(), problem.answer.tolist()) == ([[7]], [[8]])
    assert test_problem(TASK, 1).answer is None
    for index in (2, -1):
        with pytest.raises(TaskError, match=f"task t: there is no test {index}; it has 2, counted from 0"):
            test_problem(TASK, index)


def test_an_input_from_inputs() -> None:
    problem = input_from_inputs(TASK, 1)
    assert problem.kind == "input"
    assert problem.query is None
    assert problem.demonstrations == TASK.train
    assert problem.answer is not None
    assert problem.answer.tolist() == [[8]]


def test_leave_one_out_asks_for_each_demonstration_once_and_never_for_the_test() -> None:
    assert leave_one_out(TASK) == [
        Task("t", train=(pair(1), pair(2)), test=(pair(0),)),
        Task("t", train=(pair(0), pair(2)), test=(pair(1),)),
        Task("t", train=(pair(0), pair(1)), test=(pair(2),)),
    ]
    without_answers = Task("t", TASK.train, tuple(Pair(test.input) for test in TASK.test))
    assert leave_one_out(without_answers) == leave_one_out(TASK)
    with pytest.raises(TaskError, match="task one: one demonstration only, so none can be left out"):
        leave_one_out(Task("one", (pair(0),), (pair(1),)))


def test_variants_of_a_demonstration_are_its_symmetries_in_two_colourings() -> None:
    corner = Pair(as_grid([[1, 0], [0, 0]]), as_grid([[2]]))
    pool = variants_of_demonstration(Task("one", (corner, pair(3)), (pair(1),)))
    assert (pool.id, pool.demonstrations) == ("one", 1)
    # A corner has four places; the colours 1 and 2 become 2 and 3.
    corners = [[[color, 0], [0, 0]] for color in (1, 2)] + [[[0, 0], [0, color]] for color in (1, 2)]
    corners += [[[0, color], [0, 0]] for color in (1, 2)] + [[[0, 0], [color, 0]] for color in (1, 2)]
    assert sorted(variant.input.tolist() for variant in pool.pairs) == sorted(corners)
    assert all(variant.output.tolist() == [[variant.input.max() + 1]] for variant in pool.pairs)  # type: ignore[union-attr]
    assert pool.pairs[0] == corner
    nine = variants_of_demonstration(Task("nine", (Pair(as_grid([[9]]), as_grid([[9]])),), (pair(1),)))
    assert [variant.input.tolist() for variant in nine.pairs] == [[[9]], [[1]]]
    blank = Pair(as_grid([[0]]), as_grid([[0]]))
    assert variants_of_demonstration(Task("blank", (blank,), (pair(1),))).pairs == (blank, blank)


def test_tasks_drawn_from_a_pool_use_different_pairs_and_reach_all() -> None:
    pool = PairPool("p", tuple(pair(color) for color in range(6)), 3)
    rng = np.random.default_rng(0)
    tests = set()
    for _ in range(200):
        task = pool.draw(rng)
        assert task.id == "p"
        assert (len(task.train), len(task.test)) == (3, 1)
        assert len(set(task.train + task.test)) == 4
        tests.add(task.test[0])
    assert tests == set(pool.pairs)
    assert len(PairPool("p", pool.pairs, 5).draw(rng).train) == 5
    with pytest.raises(TaskError, match=r"task p: data.demonstrations=6, but of 6 pairs 1 to 5 can be demonstrations"):
        PairPool("p", pool.pairs, 6)
    assert pool.draw(np.random.default_rng(5)) == pool.draw(np.random.default_rng(5))


def test_demonstrations_are_dropped_from_the_end_until_one_is_left() -> None:
    problem = test_problem(TASK, 0)
    shorter = drop_demonstrations(problem)
    assert shorter is not None
    assert shorter.demonstrations == TASK.train[:2]
    assert shorter.query is problem.query
    shortest = drop_demonstrations(shorter)
    assert shortest is not None
    assert shortest.demonstrations == TASK.train[:1]
    assert drop_demonstrations(shortest) is None
