"""Ways to look at a task: the problems that a model is asked to solve, and the smaller tasks inside a task."""

from __future__ import annotations

import dataclasses
from typing import Literal

from arcft.problems.arc.augment.transforms import SYMMETRIES, ColorPermutation
from arcft.problems.arc.data.sources import PairPool
from arcft.problems.arc.task import NUM_COLORS, Grid, Pair, Task, TaskError


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """One question and, where it is known, its answer."""

    task_id: str
    demonstrations: tuple[Pair, ...]
    query: Grid | None
    """The test input; None for kind `input`."""

    answer: Grid | None
    """The output for the query or, for kind `input`, one more input; None where it is not known."""

    kind: Literal["output", "input"]
    """`output`: give the output for the query. `input`: give one more input like the demonstrations' inputs."""


def test_problem(task: Task, test_index: int) -> Problem:
    """The puzzle as it is meant: from the demonstrations and a test input (counted from 0) to the test output."""
    pair = _test_pair(task, test_index)
    return Problem(task.id, task.train, pair.input, pair.output, "output")


# Pytest would otherwise collect this function in every test module that imports it.
test_problem.__test__ = False  # type: ignore[attr-defined]


def input_from_inputs(task: Task, test_index: int) -> Problem:
    """From the demonstrations' inputs to one more input, that of test `test_index` (arc24 learned this beside)."""
    return Problem(task.id, task.train, None, _test_pair(task, test_index).input, "input")


def leave_one_out(task: Task) -> list[Task]:
    """For each demonstration a task that asks for it, from the others. The task's own test is not looked at.

    Raises TaskError where there is one demonstration only.
    """
    if len(task.train) < 2:
        raise TaskError(
            f"task {task.id}: one demonstration only, so none can be left out; "
            "leave it out of data.task_ids, or train on it with data.view=test"
        )
    return [
        Task(task.id, train=task.train[:left_out] + task.train[left_out + 1 :], test=(pair,))
        for left_out, pair in enumerate(task.train)
    ]


def variants_of_demonstration(task: Task) -> PairPool:
    """What can be learned from a task's first demonstration alone: the pair varied is shown, and the pair asked for.

    The variants are its 8 symmetries, as they are and with the colours 1 to 9 moved on by one, each once; where they
    are all the same (one colour 0 all over), the pair itself is there twice.
    """
    first = Task(task.id, train=task.train[:1], test=task.train[:1])
    shifted = ColorPermutation((0, *range(2, NUM_COLORS), 1))
    moved = [symmetry.apply(colored) for colored in (first, shifted.apply(first)) for symmetry in SYMMETRIES]
    different = list(dict.fromkeys(variant.train[0] for variant in moved))
    return PairPool(task.id, tuple(different if len(different) > 1 else different * 2), demonstrations=1)


def drop_demonstrations(problem: Problem) -> Problem | None:
    """The problem without its last demonstration; None if only one is left, for without any there is no puzzle."""
    if len(problem.demonstrations) < 2:
        return None
    return dataclasses.replace(problem, demonstrations=problem.demonstrations[:-1])


def _test_pair(task: Task, test_index: int) -> Pair:
    if not 0 <= test_index < len(task.test):
        raise TaskError(f"task {task.id}: there is no test {test_index}; it has {len(task.test)}, counted from 0")
    return task.test[test_index]
