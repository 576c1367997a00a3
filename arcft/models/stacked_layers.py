"""The layers of stacked adapters, and the routing that assigns the rows of a batch to slots."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from arcft.models.adapter_config import LoraError

_HALF = (torch.bfloat16, torch.float16)


class Routing:
    """How the rows of the present batch are assigned to slots; shared by all layers of a model.

    The layers hold the weights of `groups` adapters. Without `order`, the batch consists of as many equal groups of
    adjacent rows. With `order`, rows are first gathered into such groups.
    """

    def __init__(self) -> None:
        self.groups = 0
        """Number of groups; 0 outside of all contexts, where the model can't run."""
        self.is_merged = False
        """Whether the adapter is merged into the base weights, so that layers add nothing."""
        self.order: torch.Tensor | None = None
        """int64 [groups * group size]: the row of the batch at each place of the groups. Rows may repeat as padding."""
        self.inverse: torch.Tensor | None = None
        """int64 [rows]: the place in the groups that holds each row's result."""
        self.anchor: torch.Tensor | None = None
        """A scalar that requires a gradient, while gradients are wanted; see _AddAdapted."""
        self.rows = 0
        """Rows of the batch."""
        self.tokens = 0
        """Rows times length of the batch."""

    def close(self) -> None:
        """End the context: nothing is routed."""
        self.groups, self.is_merged = 0, False
        self.order = self.inverse = self.anchor = None

    def assign(self, groups_of_rows: Sequence[int], device: torch.device) -> None:
        """Route each row of the batches to come to one of the groups, numbered from 0."""
        self.groups = max(groups_of_rows) + 1
        groups = [[row for row, own in enumerate(groups_of_rows) if own == group] for group in range(self.groups)]
        size = max(map(len, groups))
        # Shorter groups are padded with row 0, whose repeated results are dropped.
        order = [row for group in groups for row in group + (size - len(group)) * [0]]
        self.order = self.inverse = None
        if order != list(range(len(groups_of_rows))):
            places: dict[int, int] = {}
            for number, group in enumerate(groups):
                places |= {row: number * size + place for place, row in enumerate(group)}
            self.order = torch.tensor(order, device=device)
            self.inverse = torch.tensor([places[row] for row in range(len(groups_of_rows))], device=device)

    def record_shape(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Record the shape of the batch: a pre-hook of the model's forward pass.

        Raise RuntimeError outside of all contexts.
        """
        inputs = args[0] if args else kwargs.get("input_ids")
        if inputs is None:
            inputs = kwargs["inputs_embeds"]
        self.rows = inputs.shape[0]
        self.tokens = inputs.shape[0] * inputs.shape[1]
        if self.groups == 0:
            raise RuntimeError("stacked adapters run within training(), routed() or merged() only")

    def gather(self, inputs: torch.Tensor, name: str) -> torch.Tensor:
        """Arrange a layer's input in groups.

        Args:
            inputs: [rows, ...], or flattened hidden states [rows * length, size].
            name: The layer, for messages.

        Returns:
            The rows of each group in turn: [groups * group size, ...], or flattened like `inputs`.

        Raise LoraError if the first dimension is not the batch's rows: in a mixture of experts, each expert receives
        tokens of many rows.
        """
        flat = inputs.dim() == 2 and inputs.is_floating_point()
        # Hidden states that were selected for the head have one row per group.
        sizes = (self.tokens,) if flat else (self.rows, self.groups if self.order is None else self.rows)
        if inputs.shape[0] not in sizes or (self.order is None and inputs.shape[0] % self.groups):
            raise LoraError(
                f"{name}: its input of shape {tuple(inputs.shape)} does not consist of the {self.rows} rows of the "
                f"batch, so {self.groups} adapters can't share a pass; use ttft.slots=1"
            )
        if self.order is None:
            return inputs
        return inputs.unflatten(0, (self.rows, -1)).index_select(0, self.order).flatten(0, 1)

    def scatter(self, outputs: torch.Tensor) -> torch.Tensor:
        """Arrange a result of `gather` back in the order of the batch: [rows, ...], or flattened."""
        if self.inverse is None or self.order is None:
            return outputs
        return outputs.unflatten(0, (len(self.order), -1)).index_select(0, self.inverse).flatten(0, 1)


@dataclasses.dataclass(frozen=True)
class Factors:
    """LoRA factors of one layer for some slots.

    `a` is [r, in] for a single slot, else [groups, r, in]; `b` is [out, r], else [groups, out, r]. The gradients have
    the same shapes and are accumulated in place; None if not wanted.
    """

    a: torch.Tensor
    b: torch.Tensor
    gradient_a: torch.Tensor | None = None
    gradient_b: torch.Tensor | None = None


class StackedLinear(nn.Module):
    """A linear layer with stacked adapters: base(x) + scale * x A^T B^T, with A and B of each row's slot."""

    factors: Factors

    def __init__(
        self, base_layer: nn.Module, name: str, scale: float, routing: Routing, *, transposed: bool = False
    ) -> None:
        """`transposed`: the base's weight is [in, out], as in GPT-2, instead of [out, in]."""
        super().__init__()
        self.base_layer = base_layer
        self.name = name
        self.scale = scale
        self.routing = routing
        self.transposed = transposed

    @property
    def weight(self) -> nn.Parameter:
        """The base's weight; some models ask for its dtype."""
        return self.base_layer.weight  # type: ignore[return-value]

    @property
    def bias(self) -> nn.Parameter | None:
        """The base's bias."""
        return self.base_layer.bias  # type: ignore[return-value]

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """[..., in] to [..., out], in the dtype of the base layer's result."""
        base = self.base_layer
        if self.routing.is_merged:
            output: torch.Tensor = base(inputs)
            return output
        dtype = self.factors.a.dtype
        if dtype in _HALF and type(base) is nn.Linear and base.weight.dtype == dtype:
            return self._on_change(base, inputs.to(dtype))
        result = base(inputs)
        shape = result.shape
        if result.dtype != dtype:
            return result + self._adapt(inputs.to(dtype), torch.zeros_like(result, dtype=dtype)).to(result.dtype)
        return self._adapt(inputs.to(dtype), result).view(shape)

    def _on_change(self, base: nn.Linear, inputs: torch.Tensor) -> torch.Tensor:
        """The base's product added to the adapters', so that it is not rounded before; see models/fused_lora.py."""
        change = self._adapt(inputs, inputs.new_zeros(*inputs.shape[:-1], base.out_features))
        result = torch.addmm(change.flatten(0, -2), inputs.flatten(0, -2), base.weight.mT)
        if base.bias is not None:
            result = result + base.bias
        return result.view(*inputs.shape[:-1], base.out_features)

    def _adapt(self, inputs: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
        """`result` [..., out] plus the adapters' contribution for `inputs` [..., in]."""
        groups = self.routing.groups
        if groups == 1:
            return self._add(inputs.flatten(0, -2), result.flatten(0, -2)).view(result.shape)
        grouped = self.routing.gather(inputs, self.name).reshape(groups, -1, inputs.shape[-1])
        if self.routing.order is None:
            return self._add(grouped, result.reshape(groups, -1, result.shape[-1])).view(result.shape)
        change = self.scale * (grouped @ self.factors.a.mT @ self.factors.b.mT)
        return result + self.routing.scatter(change.flatten(0, 1)).view(result.shape)

    def _add(self, inputs: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
        if self.routing.anchor is not None:
            return _AddAdapted.apply(self.routing.anchor, inputs, result, self.factors, self.scale)
        return _fused(result, inputs @ self.factors.a.mT, self.factors.b.mT, alpha=self.scale)


class _AddAdapted(torch.autograd.Function):
    """result + scale * inputs A^T B^T, for inputs [n, in] and result [n, out], or both with groups in front.

    The products that compute the gradients of A and B add them to their buffers directly; autograd would materialise
    them first, and then read and write the buffers once more. The anchor makes autograd call `backward` even if the
    inputs require no gradient, as in the first layer.
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


class Wrapper(nn.Module):
    """A module in place of another one, which it holds as `module`."""

    def __init__(self, name: str, routing: Routing) -> None:
        """`name` is for messages. A subclass sets `module`."""
        super().__init__()
        self.name = name
        self.routing = routing

    def __getattr__(self, name: str) -> Any:
        """Attributes of the module: models read settings such as an embedding's padding_idx."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("module"), name)


class StackedWhole(Wrapper):
    """A module that is trained whole: each slot has its own parameters, and the module runs slot by slot."""

    def __init__(self, module: nn.Module, name: str, routing: Routing) -> None:
        """Replace the parameters of `module` by plain attributes."""
        super().__init__(name, routing)
        self._places = []
        for parameter, _ in list(module.named_parameters(remove_duplicate=False)):
            path, _, attribute = parameter.rpartition(".")
            owner = module.get_submodule(path)
            # A plain attribute accepts any tensor, also a view.
            delattr(owner, attribute)
            self._places.append((owner, attribute))
        self.module = module
        self.weights: Sequence[Sequence[torch.Tensor]] = ()
        """For each group, the values of the module's parameters."""

    def hold(self, weights: Sequence[Sequence[torch.Tensor]]) -> None:
        """Set the parameters of each group; the module itself gets those of the first."""
        self.weights = weights
        self._show(weights[0])

    def _show(self, weights: Sequence[torch.Tensor]) -> None:
        for (owner, attribute), weight in zip(self._places, weights, strict=True):
            setattr(owner, attribute, weight)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The module's output, each group of rows by its slot's parameters. Raise LoraError for several groups and
        more than one tensor as input."""
        if len(self.weights) == 1:
            return self.module(*args, **kwargs)
        if len(args) != 1 or kwargs or not isinstance(args[0], torch.Tensor):
            raise LoraError(
                f"{self.name}: is trained whole and takes more than one input, so adapters can't share a pass; use "
                "ttft.slots=1"
            )
        parts = self.routing.gather(args[0], self.name).chunk(len(self.weights))
        outputs = []
        for weights, part in zip(self.weights, parts, strict=True):
            self._show(weights)
            outputs.append(self.module(part))
        return self.routing.scatter(torch.cat(outputs))
