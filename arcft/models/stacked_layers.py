"""The layers that stacked adapters put into a model, and what tells them which slot each row of a batch belongs to."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from arcft.models.lora import LoraError


class Routing:
    """How the rows of the current batch are dealt to slots; shared by all layers of a model.

    The layers hold the weights of `groups` adapters. Without `order` the batch is that many equal groups of rows, in
    turn. With it, row `order`[i] [groups * most] of the batch goes to place i of such groups, where rows may be
    repeated to fill a group up, and `inverse` [rows] is where the result of each row is found.
    """

    def __init__(self) -> None:
        self.groups = 0
        """0 where nothing is routed, and the model can't run."""
        self.passes = False
        """Whether the base weights hold an adapter already."""
        self.order: torch.Tensor | None = None
        self.inverse: torch.Tensor | None = None
        self.anchor: torch.Tensor | None = None
        """While gradients are wanted, a tensor that requires one."""
        self.rows = 0
        self.tokens = 0

    def close(self) -> None:
        """Go back to where nothing is routed."""
        self.groups, self.passes = 0, False
        self.order = self.inverse = self.anchor = None

    def see(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Take note of the batch's size: a hook before the model's forward pass."""
        inputs = args[0] if args else kwargs.get("input_ids")
        if inputs is None:
            inputs = kwargs["inputs_embeds"]
        self.rows = inputs.shape[0]
        self.tokens = inputs.shape[0] * inputs.shape[1]
        if self.groups == 0:
            raise RuntimeError("stacked adapters run within training(), routed() or merged() only")

    def send(self, inputs: torch.Tensor, name: str) -> torch.Tensor:
        """Rows of `inputs` in groups, [groups * most, ...] or [groups * most * length, ...]; raises LoraError where
        they are not the batch's rows: a mixture of experts hands each expert tokens of many rows."""
        flat = inputs.dim() == 2 and inputs.is_floating_point()
        # Hidden states gathered before the head come a row a group.
        sizes = (self.tokens,) if flat else (self.rows, self.groups if self.order is None else self.rows)
        if inputs.shape[0] not in sizes or (self.order is None and inputs.shape[0] % self.groups):
            raise LoraError(
                f"{name}: its input of shape {tuple(inputs.shape)} is not made of the {self.rows} rows of the batch, "
                f"so {self.groups} adapters can't share a pass; use ttft.slots=1"
            )
        if self.order is None:
            return inputs
        return inputs.unflatten(0, (self.rows, -1)).index_select(0, self.order).flatten(0, 1)

    def fetch(self, outputs: torch.Tensor) -> torch.Tensor:
        """Undo `send` for what was computed from its result."""
        if self.inverse is None or self.order is None:
            return outputs
        return outputs.unflatten(0, (len(self.order), -1)).index_select(0, self.inverse).flatten(0, 1)


@dataclasses.dataclass(frozen=True)
class Factors:
    """A and B of the slots in turn, [r, in] and [out, r] of a single slot, else [groups, r, in] and [groups, out, r],
    and where their gradients are summed up (shapes the same), if any are wanted."""

    a: torch.Tensor
    b: torch.Tensor
    gradient_a: torch.Tensor | None = None
    gradient_b: torch.Tensor | None = None


class StackedLinear(nn.Module):
    """A linear layer with adapters: base(x) + scale * x A^T B^T, with A and B of each row's slot."""

    factors: Factors

    def __init__(
        self, base_layer: nn.Module, name: str, scale: float, routing: Routing, *, transposed: bool = False
    ) -> None:
        """`transposed`: the base's weight is [in, out], as GPT-2 has it."""
        super().__init__()
        self.base_layer = base_layer
        self.name = name
        self.scale = scale
        self.routing = routing
        self.transposed = transposed

    @property
    def weight(self) -> nn.Parameter:
        """Of the base; some models ask for its dtype."""
        return self.base_layer.weight  # type: ignore[return-value]

    @property
    def bias(self) -> nn.Parameter | None:
        return self.base_layer.bias  # type: ignore[return-value]

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        result = self.base_layer(inputs)
        if self.routing.passes:
            return result
        dtype, shape = self.factors.a.dtype, result.shape
        if result.dtype != dtype:
            return result + self._adapt(inputs.to(dtype), torch.zeros_like(result, dtype=dtype)).to(result.dtype)
        return self._adapt(inputs.to(dtype), result).view(shape)

    def _adapt(self, inputs: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
        """`result` with the adapters' share added, in any shape."""
        groups = self.routing.groups
        if groups == 1:
            return self._add(inputs.flatten(0, -2), result.flatten(0, -2)).view(result.shape)
        sent = self.routing.send(inputs, self.name).reshape(groups, -1, inputs.shape[-1])
        if self.routing.order is None:
            return self._add(sent, result.reshape(groups, -1, result.shape[-1])).view(result.shape)
        change = self.scale * (sent @ self.factors.a.mT @ self.factors.b.mT)
        return result + self.routing.fetch(change.flatten(0, 1)).view(result.shape)

    def _add(self, inputs: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
        if self.routing.anchor is not None:
            return _AddAdapted.apply(self.routing.anchor, inputs, result, self.factors, self.scale)
        return _fused(result, inputs @ self.factors.a.mT, self.factors.b.mT, alpha=self.scale)


class _AddAdapted(torch.autograd.Function):
    """result + scale * inputs A^T B^T, for [n, in] and [n, out] or both with groups in front.

    Gradients of A and B are added to their buffers right away, by the product that makes them: autograd would make
    them first, and then read and write the buffer once more. The anchor has autograd come here also where the inputs
    have no gradient, as in the first layer.
    """

    @staticmethod
    def forward(
        ctx: Any, anchor: torch.Tensor, inputs: torch.Tensor, result: torch.Tensor, factors: Factors, scale: float
    ) -> torch.Tensor:
        low = inputs @ factors.a.mT
        ctx.save_for_backward(inputs, low)
        ctx.factors, ctx.scale = factors, scale
        return _fused(result, low, factors.b.mT, alpha=scale)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        inputs, low = ctx.saved_tensors
        factors = ctx.factors
        low_gradient = (gradient @ factors.b).mul_(ctx.scale)
        _fused(factors.gradient_b, gradient.mT, low, alpha=ctx.scale, out=factors.gradient_b)
        _fused(factors.gradient_a, low_gradient.mT, inputs, out=factors.gradient_a)
        inputs_gradient = low_gradient @ factors.a if ctx.needs_input_grad[1] else None
        return None, inputs_gradient, gradient, None, None


def _fused(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor, **options: Any) -> torch.Tensor:
    """total + alpha * left @ right."""
    return (torch.addmm if total.dim() == 2 else torch.baddbmm)(total, left, right, **options)


class StackedWhole(nn.Module):
    """A module that each adapter has a copy of its own of: the module runs slot by slot.

    `weights` holds, for each group, the values of the module's parameters `names`.
    """

    def __init__(self, module: nn.Module, name: str, routing: Routing) -> None:
        super().__init__()
        self.name = name
        self.routing = routing
        self._places = []
        for parameter, _ in list(module.named_parameters(remove_duplicate=False)):
            path, _, attribute = parameter.rpartition(".")
            owner = module.get_submodule(path)
            # What is left is a plain attribute, which takes any tensor.
            delattr(owner, attribute)
            self._places.append((owner, attribute))
        self.module = module
        self.weights: Sequence[Sequence[torch.Tensor]] = ()

    def hold(self, weights: Sequence[Sequence[torch.Tensor]]) -> None:
        """Take the weights of each group; the module itself shows the first one's."""
        self.weights = weights
        self._show(weights[0])

    def _show(self, weights: Sequence[torch.Tensor]) -> None:
        for (owner, attribute), weight in zip(self._places, weights, strict=True):
            setattr(owner, attribute, weight)

    def __getattr__(self, name: str) -> Any:
        """Models ask for a module's settings, such as an embedding's padding_idx."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("module"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if len(self.weights) == 1:
            return self.module(*args, **kwargs)
        if len(args) != 1 or kwargs or not isinstance(args[0], torch.Tensor):
            raise LoraError(
                f"{self.name}: is trained whole and takes more than one input, so adapters can't share a pass; use "
                "ttft.slots=1"
            )
        parts = self.routing.send(args[0], self.name).chunk(len(self.weights))
        outputs = []
        for weights, part in zip(self.weights, parts, strict=True):
            self._show(weights)
            outputs.append(self.module(part))
        return self.routing.fetch(torch.cat(outputs))
