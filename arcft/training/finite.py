"""A loss or gradient that is not finite ends the run before it reaches the weights."""

from __future__ import annotations

import torch

from arcft.errors import ArcftError

SMALLEST_SCALE = 2.0**-10
"""Loss scaling doubles and halves around what float16 can represent; at a scale this low, no scale helps."""


class NonFiniteError(ArcftError):
    """A loss or gradient that is infinite or NaN, raised before the optimizer step."""


def check_finite(what: str, value: torch.Tensor, step: int, learning_rate: float) -> None:
    """Raise NonFiniteError unless `value`, a scalar of optimizer step `step` (from 1), is finite."""
    if not torch.isfinite(value):
        raise NonFiniteError(
            f"step {step}: the {what} is {value.item()}, so the step was not taken; lower "
            f"training.learning_rate={learning_rate}, or compute in float32 (training.dtype=float32). "
            "Earlier checkpoints are good to resume from"
        )
