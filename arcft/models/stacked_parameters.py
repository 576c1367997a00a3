"""Stacked adapters on parameters instead of layers: the fused experts of a mixture, and its router."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from arcft.models.adapter_config import LoraError
from arcft.models.stacked_layers import Routing, Wrapper


@dataclasses.dataclass(frozen=True)
class AdaptedParameter:
    """A parameter with a LoRA adapter, as PEFT's ParamWrapper adapts it."""

    owner: nn.Module
    """The module that holds it."""

    name: str
    weight: torch.Tensor
    """Without the adapter: [out, in] of one expert, or [experts, out, in], or transposed [experts, in, out]."""

    scale: float
    experts: int
    transposed: bool
    """Whether `weight` is [experts, in, out]."""

    def adapted(self, factor_a: torch.Tensor, factor_b: torch.Tensor) -> torch.Tensor:
        """The weight plus scale * B A, in its own dtype, for A [experts * r, in] and B [out, r * experts]."""
        if self.experts == 1:
            change = factor_b @ factor_a
        else:
            a = factor_a.unflatten(0, (self.experts, -1))
            b = factor_b.unflatten(1, (-1, self.experts)).permute(2, 0, 1)
            change = a.mT @ b.mT if self.transposed else b @ a
        return torch.add(self.weight.to(change.dtype), change, alpha=self.scale).to(self.weight.dtype)


class StackedParameters(Wrapper):
    """A module with adapted parameters, for one slot at a time: tokens of all rows share an expert's product."""

    def __init__(self, module: nn.Module, name: str, routing: Routing, parameters: Sequence[AdaptedParameter]) -> None:
        """Replace the parameters by plain attributes."""
        super().__init__(name, routing)
        self.module = module
        self.parameters_adapted = parameters
        self.factors: Sequence[tuple[torch.Tensor, torch.Tensor]] = ()
        """For each parameter A and B of the present slot."""
        for parameter in parameters:
            # A plain attribute accepts any tensor, also one with a history.
            delattr(parameter.owner, parameter.name)
        self.show([parameter.weight for parameter in parameters])

    def show(self, weights: Sequence[torch.Tensor]) -> None:
        """Let the module compute with `weights`, one for each parameter."""
        for parameter, weight in zip(self.parameters_adapted, weights, strict=True):
            setattr(parameter.owner, parameter.name, weight)

    def adapted(self) -> list[torch.Tensor]:
        """Each parameter with the adapter of the present slot."""
        return [
            parameter.adapted(*factors)
            for parameter, factors in zip(self.parameters_adapted, self.factors, strict=True)
        ]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The module's output by the present slot's parameters. Raise LoraError for several slots."""
        if self.routing.is_merged:
            return self.module(*args, **kwargs)
        if self.routing.groups > 1:
            raise LoraError(
                f"{self.name}: its experts serve all rows of a batch at once, so {self.routing.groups} adapters can't "
                "share a pass; use ttft.slots=1"
            )
        self.show(self.adapted())
        try:
            return self.module(*args, **kwargs)
        finally:
            self.show([parameter.weight for parameter in self.parameters_adapted])
