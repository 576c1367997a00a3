"""Train several stacked adapters at once, each as if it were alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch

from arcft.models.stacked_lora import StackedLora
from arcft.text.tokens import Example, Positions


@dataclasses.dataclass(frozen=True)
class SlotStep:
    """What one optimizer step of one slot was like."""

    loss: float
    """Mean over the slot's supervised tokens, nats, before the step."""

    gradient_norm: float
    """Before clipping."""

    tokens: int
    """Supervised tokens."""

    finite: bool
    """False where loss or gradient was not a finite number; the slot was then not updated."""


class SlotTrainer:
    """Optimizer steps on the slots of `stacked`: one pass for all, but each slot has its own Adam, learning rate,
    clipping and step count, so that it is trained as it would be alone."""

    gradient_checkpointing: bool
    """Compute activations anew in the backward pass instead of keeping them; may be set between steps."""

    def __init__(
        self, stacked: StackedLora, *, pad_id: int, max_grad_norm: float, positions: Positions | None = None
    ) -> None:
        raise NotImplementedError

    def begin(self, slot: int, *, learning_rate: float, factor: Callable[[int], float], reset: bool = True) -> None:
        """Prepare the slot for another task: START (unless not `reset`), a new AdamW without weight decay, step 0.

        Step i has the learning rate `learning_rate` * `factor`(i).
        """
        raise NotImplementedError

    def step(self, examples: Sequence[Sequence[Example]], first: int = 0) -> list[SlotStep]:
        """One step of the slots from `first` on; `examples`[i] are those of slot `first` + i, equally many for each.

        The loss is the sum over slots of the mean over the slot's supervised tokens. Where memory runs out, the error
        is passed on and everything is as before the step.
        """
        raise NotImplementedError

    def loss(self, slot: int, examples: Sequence[Example]) -> float:
        """Mean loss over the supervised tokens of `examples` in nats, without a gradient."""
        raise NotImplementedError

    def move(self, source: int, target: int) -> None:
        """Put weights, optimizer and schedule of slot `source` into slot `target`; `source` has to begin anew."""
        raise NotImplementedError

    def snapshot(self, slot: int) -> torch.Tensor:
        """A copy of the slot's weights, [P]."""
        raise NotImplementedError

    def restore(self, slot: int, weights: torch.Tensor) -> None:
        """Put weights back that `snapshot` gave."""
        raise NotImplementedError
