"""What a model learns from a task's demonstrations alone, without its tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from arcft.problems.arc.augment.transforms import SYMMETRIES, ColorPermutation
from arcft.problems.arc.data.sources import PairPool
from arcft.problems.arc.questions import GridQuestion, ask_output
from arcft.problems.arc.task import NUM_COLORS, Task, TaskError, as_task
from arcft.protocols import Item, OwnMaterial, Problem


def leave_one_out(task: Task) -> list[Task]:
    """For each demonstration a task that asks for it, from the others. The task's own test is not looked at.

    Raises TaskError if there is only one demonstration.
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
    """What can be learned from a task's first demonstration alone: one variant is shown, another is asked for.

    The variants are its 8 symmetries, in its own colours and with the colours 1 to 9 moved on by one, each once. Where
    all are equal (colour 0 everywhere), the pair itself is there twice.
    """
    first = Task(task.id, train=task.train[:1], test=task.train[:1])
    shifted = ColorPermutation((0, *range(2, NUM_COLORS), 1))
    moved = [symmetry.apply(colored) for colored in (first, shifted.apply(first)) for symmetry in SYMMETRIES]
    different = list(dict.fromkeys(variant.train[0] for variant in moved))
    return PairPool(task.id, tuple(different if len(different) > 1 else different * 2), demonstrations=1)


class DemonstrationExamples:
    """Learns a task from its own demonstrations (an OwnExamples): each in turn is asked for, shown the others."""

    def material(self, problem: Problem, *, hold_back: bool) -> OwnMaterial:
        """A task of one demonstration is learned from its variants; `hold_back` takes the last of three or more."""
        task = as_task(problem)
        if len(task.train) == 1:
            note = "one demonstration only, so its variants are learned from each other"
            return OwnMaterial(variants_of_demonstration(task), note=note)
        if not hold_back or len(task.train) < 3:
            return OwnMaterial(task)
        rest = dataclasses.replace(task, train=task.train[:-1])
        last = task.train[-1]
        return OwnMaterial(rest, held_back=GridQuestion(task.id, rest.train, last.input, last.output, "output"))

    def trials(self, item: Item) -> Iterator[GridQuestion]:
        if isinstance(item, PairPool):
            rng = np.random.default_rng(0)
            tasks = [item.draw(rng) for _ in item.pairs]
        else:
            assert isinstance(item, Task)
            tasks = leave_one_out(item)
        return (ask_output(task, 0) for task in tasks)
