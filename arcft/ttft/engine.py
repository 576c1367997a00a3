"""One resident model that adapts to unit after unit, several at once, and predicts them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from arcft.arc.task import Task
from arcft.arc.transforms import Transform
from arcft.config.inference import InferenceConfig
from arcft.config.ttft import TtftConfig
from arcft.models.stacked_lora import StackedLora
from arcft.text.examples import ExampleBuilder
from arcft.ttft.recipe import Recipe
from arcft.ttft.units import Assignment, Event, Unit

Save = Callable[[Unit, int, Callable[[Path], None]], str]
"""Keeps an adapter, given the unit, its steps and what writes PEFT's files into a folder; returns where."""


class Engine:
    """Takes assignments, and tells what happens to them. Nothing is written here but what `save` writes."""

    def __init__(
        self,
        stacked: StackedLora,
        learn: ExampleBuilder,
        ask: ExampleBuilder,
        *,
        config: TtftConfig,
        inference: InferenceConfig,
        draw: Callable[[Task, np.random.Generator], Transform],
        input_from_inputs: float,
        learning_rate: float,
        pad_id: int,
        save: Save | None = None,
        recipe: Recipe | None = None,
    ) -> None:
        """`learn` makes training examples and drops demonstrations to fit, `ask` makes prompts; `draw` draws the
        augmentation of an example, and `input_from_inputs` is the share that asks for another input. `recipe` is what
        an earlier process had come down to, or had chosen for ttft.slots=auto."""
        self.recipe = recipe

    def work(
        self, pull: Callable[[int | None], Assignment | None], stopped: Callable[[], bool]
    ) -> Iterator[Event]:
        """Pull assignments while slots are free, and yield what happens, until there is nothing left to do.

        `pull` is given the length that the next unit should be near, or None; when it gives None it is asked again
        after a unit has finished or failed. Ends within a training step or a decoded batch after `stopped`.
        """
        raise NotImplementedError
        yield
