"""What is not a finite number ends a run before the step that would spoil the weights."""

from __future__ import annotations

import torch

from arcft.errors import ArcftError

SMALLEST_SCALE = 2.0**-10
"""Loss scaling doubles and halves around what float16 can hold; a scale this low means that no scale helps."""


class NonFiniteError(ArcftError):
    """A loss or gradient that is infinite or not a number; raised before the step that would spoil the weights."""


def check_finite(what: str, value: torch.Tensor, step: int, learning_rate: float) -> None:
    """Raise NonFiniteError unless `value`, of a step counted from 1, is finite."""
    if not torch.isfinite(value):
        raise NonFiniteError(
            f"step {step}: the {what} is {value.item()}, so the step was not taken; lower "
            f"training.learning_rate={learning_rate}, or compute in float32 (training.dtype=float32). "
            "The checkpoints so far are good to resume from"
        )
