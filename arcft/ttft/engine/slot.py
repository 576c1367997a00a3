"""The state of a unit during training."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch

from arcft.ttft.engine.unit_examples import UnitExamples
from arcft.ttft.units import Assignment, Unit

Save = Callable[[Unit, int, Callable[[Path], None]], str]
"""Saves an adapter, given the unit, its steps and a function that writes PEFT's files to a folder; returns where."""


@dataclasses.dataclass(eq=False)
class SlotState:
    """A unit in a slot."""

    assignment: Assignment
    slot: int
    examples: UnitExamples
    train_until: float | None
    tokens: int = 0
    seconds: float = 0.0
    started: bool = False
    """Whether its weights are in the slot; False while it waits for its first pass."""

    losses: list[float] = dataclasses.field(default_factory=list)
    best: tuple[float, int, torch.Tensor] | None = None
    """Lowest loss on the held-back question, the step at which it was reached, and the weights at that step."""

    @property
    def step(self) -> int:
        return len(self.losses)

    @property
    def alone(self) -> bool:
        """Whether it must not share passes: on a retry, because another unit may have caused the failure."""
        return self.assignment.attempt > 0

    def start_over(self) -> None:
        self.started, self.losses, self.best, self.tokens = False, [], None, 0

    def ended(self, patience: int | None, now: float) -> Literal["steps", "patience", "deadline"] | None:
        if self.step >= self.assignment.steps:
            return "steps"
        if patience is not None and self.best is not None and self.step - self.best[1] >= patience:
            return "patience"
        if self.train_until is not None and now >= self.train_until:
            return "deadline"
        return None
