"""The optimizer. Options: conf/optimizer/*.yaml."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Literal


@dataclasses.dataclass(kw_only=True)
class OptimizerConfig:
    """What all optimizers share. The learning rate is training.learning_rate, the schedule a group of its own."""

    name: str

    weight_decay: float
    """Decoupled weight decay per step, times the learning rate; not applied to biases and norms."""

    beta1: float
    beta2: float
    """Decay of AdamW's running mean and running square of the gradient."""

    eps: float
    """Added to AdamW's denominator."""

    def problems(self) -> Iterator[str]:
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                yield f"optimizer.{name}={getattr(self, name)}: from 0 to below 1"
        if self.weight_decay < 0:
            yield f"optimizer.weight_decay={self.weight_decay}: at least 0"
        if self.eps <= 0:
            yield f"optimizer.eps={self.eps}: above 0"


@dataclasses.dataclass(kw_only=True)
class AdamWConfig(OptimizerConfig):
    """torch.optim.AdamW."""

    name: Literal["adamw"] = "adamw"


@dataclasses.dataclass(kw_only=True)
class EightBitAdamWConfig(OptimizerConfig):
    """AdamW of bitsandbytes, its state in 8 bits; paged: moved to the CPU when the GPU is full."""

    name: Literal["adamw_8bit", "paged_adamw_8bit"]


@dataclasses.dataclass(kw_only=True)
class MuonConfig(OptimizerConfig):
    """torch.optim.Muon, which orthogonalises the updates of weight matrices, with AdamW for all other parameters."""

    name: Literal["muon"] = "muon"

    momentum: float
    """Decay of Muon's running mean of the gradient."""

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if not 0 <= self.momentum < 1:
            yield f"optimizer.momentum={self.momentum}: from 0 to below 1"
