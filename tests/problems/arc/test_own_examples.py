"""What is learned from a task's own demonstrations."""

from __future__ import annotations

import pytest

from arcft.problems.arc.own_examples import leave_one_out, variants_of_demonstration
from arcft.problems.arc.task import Pair, Task, TaskError, as_grid


def pair(color: int) -> Pair:
    """Color `color`, then the next: easy to tell apart."""
    return Pair(as_grid([[color]]), as_grid([[color + 1]]))


TASK = Task("t", train=(pair(0), pair(1), pair(2)), test=(pair(7), Pair(as_grid([[8]]))))


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
