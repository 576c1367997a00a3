"""Draws the questions that training asks: a task, augmented, and one of its tests."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import numpy as np

from arcft.problems.arc.augment.transforms import Transform, draw_transform
from arcft.problems.arc.config.augmentation import AugmentationConfig
from arcft.problems.arc.data.sources import PairPool
from arcft.problems.arc.own_examples import leave_one_out
from arcft.problems.arc.questions import GridQuestion, ask_input, ask_output
from arcft.problems.arc.task import Task, TaskError, as_task
from arcft.protocols import Item, Problem

DrawTransform = Callable[[Task, np.random.Generator], Transform]


class GridQuestionSampler:
    """Augmented questions about ARC tasks and pools (a QuestionSampler)."""

    def __init__(
        self,
        draw_transform: DrawTransform,
        *,
        view: Literal["test", "leave_one_out"],
        input_from_inputs: float,
        cells_are_tokens: bool,
    ) -> None:
        """`draw_transform` draws a task's augmentation, which must not make any grid smaller; `input_from_inputs` is
        the share of questions that ask for another input instead of an output; `cells_are_tokens`: every cell takes a
        token at least."""
        self._draw_transform = draw_transform
        self._view = view
        self._input_from_inputs = input_from_inputs
        self._cells_are_tokens = cells_are_tokens

    def problems(self, item: Item, rng: np.random.Generator) -> list[Problem]:
        """The task itself, a task for each demonstration left out of it, or one drawn from a pool."""
        if isinstance(item, PairPool):
            return [item.draw(rng)]
        assert isinstance(item, Task)
        if self._view == "leave_one_out":
            return [*leave_one_out(item)]
        if not _answered(item):
            raise TaskError(
                f"task {item.id}: no test output is known, so there is nothing to learn; "
                "use data.view=leave_one_out to learn from its demonstrations"
            )
        return [item]

    def min_tokens(self, problem: Problem, *, drop_demonstrations: bool) -> int:
        """The cells of the smallest pairs that make a question."""
        if not self._cells_are_tokens or self._input_from_inputs:
            return 0
        task = as_task(problem)
        sizes = sorted(
            pair.input.size + (0 if pair.output is None else pair.output.size) for pair in task.train + task.test
        )
        needed = 2 if drop_demonstrations else len(task.train) + 1
        return sum(sizes[:needed])

    def draw(self, problem: Problem, rng: np.random.Generator) -> GridQuestion:
        task = as_task(problem)
        task = self._draw_transform(task, rng).apply(task)
        answered = _answered(task)
        index = answered[rng.integers(len(answered))]
        if self._input_from_inputs and rng.random() < self._input_from_inputs:
            return ask_input(task, index)
        return ask_output(task, index)


def question_sampler(
    config: AugmentationConfig, *, view: Literal["test", "leave_one_out"], cells_are_tokens: bool
) -> GridQuestionSampler:
    """The sampler that the config group `augmentation` describes; see GridQuestionSampler."""
    draw = partial(
        draw_transform,
        geometric=config.geometric,
        colors=config.colors,
        permute_background=config.permute_background,
        pair_order=config.pair_order,
        swap_train_test=config.swap_train_test,
        composition=config.composition,
        composition_weights=config.composition_weights,
    )
    return GridQuestionSampler(
        draw, view=view, input_from_inputs=config.input_from_inputs, cells_are_tokens=cells_are_tokens
    )


def _answered(task: Task) -> list[int]:
    return [index for index, pair in enumerate(task.test) if pair.output is not None]
