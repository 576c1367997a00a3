"""The optimizer. Options: conf/optimizer/*.yaml."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Literal


@dataclasses.dataclass(kw_only=True)
class OptimizerConfig:
    """The learning rate is training.learning_rate, the schedule its own group."""

    name: Literal["adamw", "muon", "adamw_8bit", "paged_adamw_8bit"]
    """`muon` orthogonalises the updates of weight matrices (torch.optim.Muon) and leaves the rest to AdamW."""

    weight_decay: float
    """Decoupled weight decay per step, times the learning rate; not applied to biases and norms."""

    beta1: float
    beta2: float
    """Decay of AdamW's running mean and running square of the gradient."""

    eps: float
    """Added to AdamW's denominator."""

    momentum: float | None = None
    """For muon."""

    def problems(self) -> Iterator[str]:
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                yield f"optimizer.{name}={getattr(self, name)}: from 0 to below 1"
        if self.weight_decay < 0:
            yield f"optimizer.weight_decay={self.weight_decay}: at least 0"
        if self.eps <= 0:
            yield f"optimizer.eps={self.eps}: above 0"
        if self.name == "muon":
            if self.momentum is None or not 0 <= self.momentum < 1:
                yield f"optimizer.momentum={self.momentum}: from 0 to below 1"
        elif self.momentum is not None:
            yield f"optimizer.momentum={self.momentum} has no effect with optimizer={self.name}; use optimizer=muon"
