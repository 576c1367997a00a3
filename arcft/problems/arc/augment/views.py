"""Augmentations of a task for prediction: each is undone on the answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from arcft.problems.arc.augment.transforms import Transform, deal_transforms
from arcft.problems.arc.task import GridAnswer, Pair, Task, as_grid_answer, as_task
from arcft.protocols import Answer, DealViews, Problem, View

AUGMENTATIONS = ("geometric", "colors", "pair_order")
"""What inference.augmentations may name: the 8 symmetries, the colours 1 to 9, the order of the demonstrations."""


@dataclasses.dataclass(frozen=True)
class TransformView:
    """A Transform as a View of tasks and their answers."""

    transform: Transform

    def apply(self, problem: Problem) -> Task:
        return self.transform.apply(as_task(problem))

    def map_answers(self, problem: Problem, test_index: int, answers: Sequence[Answer]) -> list[Answer]:
        task = as_task(problem)
        given = task.test[test_index].input
        answered = dataclasses.replace(task, test=tuple(Pair(given, as_grid_answer(answer).grid) for answer in answers))
        return [answer for answer in self.transform.apply(answered).answers if answer is not None]

    def invert(self, answer: Answer) -> GridAnswer:
        return GridAnswer(self.transform.invert(as_grid_answer(answer).grid))

    def to_dict(self) -> dict[str, Any]:
        return self.transform.to_dict()


def views_by(augmentations: Sequence[str]) -> DealViews:
    """A function that deals views made by `augmentations`, any of AUGMENTATIONS."""
    chosen = {name: name in augmentations for name in AUGMENTATIONS}

    def deal(problem: Problem, count: int, rng: np.random.Generator) -> list[View]:
        transforms = deal_transforms(as_task(problem), count, rng, **chosen)
        return [TransformView(transform) for transform in transforms]

    return deal
