"""Taking a PeftModel apart, the layout of an adapter's weights in one row of numbers, and low-rank arithmetic."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import peft
import torch
from peft.tuners.lora.layer import Linear as PeftLinear
from peft.tuners.lora.layer import LoraLayer, ParamWrapper
from peft.utils.other import ModulesToSaveWrapper
from peft.utils.save_and_load import get_peft_model_state_dict
from torch import nn
from transformers import PreTrainedModel

from arcft.models.adapter_config import LoraError
from arcft.models.stacked_layers import Routing, StackedLinear, StackedWhole
from arcft.models.stacked_parameters import AdaptedParameter, StackedParameters

# Each weight starts at a multiple of this many numbers: matrix kernels are slow, or copy, if it is not aligned.
_ALIGNMENT = 16
# The prefix of PEFT's names, left out in messages.
_PREFIX = "base_model.model."


@dataclasses.dataclass(frozen=True)
class Piece:
    """The place of one weight in an adapter's numbers."""

    names: tuple[str, ...]
    """Its names in PEFT's files; several if modules are tied."""

    offset: int
    """Index of its first number."""

    shape: torch.Size


class Layout:
    """The layout of an adapter's weights in one row of P numbers."""

    def __init__(self, names: Iterable[Sequence[str]], shapes: Iterable[torch.Size]) -> None:
        """Lay out weights with these names and shapes, in order."""
        self.pieces: list[Piece] = []
        self.size = 0
        """P, including the padding that aligns each weight."""
        for own, shape in zip(names, shapes, strict=True):
            self.pieces.append(Piece(tuple(own), self.size, shape))
            self.size += -(-shape.numel() // _ALIGNMENT) * _ALIGNMENT

    def view(self, numbers: torch.Tensor, piece: int) -> torch.Tensor:
        """The weight with index `piece` in `numbers` [..., P]: a view [..., *shape]."""
        place = self.pieces[piece]
        narrow = numbers[..., place.offset : place.offset + place.shape.numel()]
        return narrow.unflatten(-1, place.shape)

    def flatten(self, weights: Sequence[torch.Tensor], like: torch.Tensor) -> torch.Tensor:
        """Copy `weights`, one for each piece, into new numbers [P] with the device and dtype of `like`."""
        numbers = like.new_zeros(self.size)
        for piece, weight in enumerate(weights):
            self.view(numbers, piece).copy_(weight)
        return numbers


@dataclasses.dataclass
class Parts:
    """A model with stacked layers in place, and the adapter that it had."""

    model: PreTrainedModel
    config: peft.LoraConfig
    linears: list[tuple[StackedLinear, int, int]] = dataclasses.field(default_factory=list)
    """Adapted linear layers, each with the indices of its pieces A and B."""

    wholes: list[tuple[StackedWhole, list[int]]] = dataclasses.field(default_factory=list)
    """Modules that are trained whole, each with the indices of its parameters' pieces."""

    parameters: list[tuple[StackedParameters, list[tuple[int, int]]]] = dataclasses.field(default_factory=list)
    """Modules with adapted parameters, each with the indices of the pieces A and B of every parameter."""

    names: list[list[str]] = dataclasses.field(default_factory=list)
    """For each piece its names in PEFT's files."""

    weights: list[torch.Tensor] = dataclasses.field(default_factory=list)
    """For each piece the adapter's weight."""

    pieces: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    """By the path of each adapted module, the indices of its pieces."""

    constants: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)
    """By name, what PEFT saves too and training does not change: buffers of modules that are trained whole."""


def take_apart(adapted: peft.PeftModel, routing: Routing) -> Parts:
    """Replace PEFT's layers in the model of `adapted`, in place, by ours, which follow `routing`.

    Raise LoraError, before anything is changed, unless the adapter is plain LoRA on linear layers and parameters, and
    modules that are trained whole.
    """
    adapter = adapted.active_adapter
    config = _checked(adapted.peft_config[adapter])
    taken = list(_adapted_modules(adapted, ""))
    for path, module in taken:
        _check_module(path, module, config)
    # Before anything is replaced: PEFT derives the names from its own layers.
    saved = get_peft_model_state_dict(adapted, adapter_name=adapter, save_embedding_layers=False)
    parts = _collect(adapted, adapter, taken)
    known = {name for names in parts.names for name in names} | parts.constants.keys()
    for left in sorted(saved.keys() ^ known):
        raise LoraError(f"{left}: is not a weight of a plain LoRA adapter, so adapters can't be stacked; use ttft=none")
    _replace(adapted, adapter, taken, parts, routing)
    # PEFT sets this on the base model.
    vars(parts.model).pop("peft_config", None)
    parts.model.requires_grad_(False)
    parts.model.eval()
    return parts


def _adapted_modules(module: nn.Module, path: str) -> Iterator[tuple[str, LoraLayer | ModulesToSaveWrapper]]:
    for name, child in module.named_children():
        own = f"{path}.{name}" if path else name
        if isinstance(child, LoraLayer | ModulesToSaveWrapper):
            yield own, child
        else:
            yield from _adapted_modules(child, own)


def _checked(config: peft.PeftConfig) -> peft.LoraConfig:
    if not isinstance(config, peft.LoraConfig):
        raise LoraError(f"the adapter is {config.peft_type}, and only LoRA adapters can be stacked; use ttft=none")
    if config.use_dora:
        raise LoraError(
            "the adapter is DoRA (lora.use_dora=true), whose norms can't be stacked: train with lora.use_dora=false, "
            "start afresh with ttft.start=fresh lora.use_dora=false, or use ttft=none"
        )
    return config


def _check_module(path: str, module: LoraLayer | ModulesToSaveWrapper, config: peft.LoraConfig) -> None:
    if isinstance(module, ModulesToSaveWrapper):
        # take_apart finds a LoRA layer inside by its names, which are then left over.
        return
    if isinstance(module, ParamWrapper):
        for wrapper in _wrappers(module):
            if not wrapper.get_param().is_floating_point():
                raise LoraError(
                    f"{path.removeprefix(_PREFIX)}.{wrapper.parameter_name}: is quantised, and an adapter on such a "
                    "parameter can't be stacked; leave it out of lora.target_modules, or use model.quantization=none"
                )
        return
    if set(module.r.values()) != {config.r}:
        raise LoraError("the adapter has other ranks in some layers (rank_pattern, alpha_pattern): use ttft=none")
    # PEFT has separate classes for quantised weights, which compute the same.
    plain = type(module) is PeftLinear or type(module).__name__ in ("Linear4bit", "Linear8bitLt")
    if not plain or module.lora_variant or any(module.lora_bias.values()):
        raise LoraError(
            f"{path.removeprefix(_PREFIX)}: an adapter on {type(module.get_base_layer()).__name__} can't be stacked, "
            "only plain LoRA on linear layers can; leave it out of lora.target_modules, or train it whole "
            "(model.train_modules)"
        )


def _wrappers(module: LoraLayer) -> list[ParamWrapper]:
    """PEFT's wrappers around one module, from the outermost: one for each adapted parameter."""
    found: list[ParamWrapper] = []
    inner: Any = module
    while isinstance(inner, ParamWrapper):
        found.append(inner)
        inner = inner.base_layer
    return found


def _collect(
    adapted: peft.PeftModel, adapter: str, taken: Sequence[tuple[str, LoraLayer | ModulesToSaveWrapper]]
) -> Parts:
    parts = Parts(adapted.get_base_model(), adapted.peft_config[adapter])  # type: ignore[arg-type]
    pieces: dict[int, int] = {}

    def piece_of(weight: torch.Tensor, name: str) -> int:
        # Tied weights are one parameter, and so one piece.
        piece = pieces.setdefault(id(weight), len(pieces))
        if piece == len(parts.weights):
            parts.names.append([])
            parts.weights.append(weight.detach())
        parts.names[piece].append(name)
        return piece

    for path, module in taken:
        if isinstance(module, ModulesToSaveWrapper):
            whole = module.modules_to_save[adapter]
            parameters = dict(whole.named_parameters(remove_duplicate=False))
            parts.pieces[path] = [piece_of(weight, f"{path}.{name}") for name, weight in parameters.items()]
            for name, value in whole.state_dict().items():
                if name not in parameters:
                    parts.constants[f"{path}.{name}"] = value
        elif isinstance(module, ParamWrapper):
            inner = [path + ".base_layer" * depth for depth in range(len(_wrappers(module)))]
            parts.pieces[path] = [
                piece_of(adapted.get_parameter(f"{own}.{name}.{adapter}.weight"), f"{own}.{name}.weight")
                for own in inner
                for name in ("lora_A", "lora_B")
            ]
        else:
            parts.pieces[path] = [
                piece_of(adapted.get_parameter(f"{path}.{name}.{adapter}.weight"), f"{path}.{name}.weight")
                for name in ("lora_A", "lora_B")
            ]
    return parts


def _replace(
    adapted: peft.PeftModel,
    adapter: str,
    taken: Sequence[tuple[str, LoraLayer | ModulesToSaveWrapper]],
    parts: Parts,
    routing: Routing,
) -> None:
    done: dict[int, nn.Module] = {}
    for path, module in taken:
        # A layer that the model uses in two places stays shared.
        new = done.get(id(module))
        name = path.removeprefix(_PREFIX)
        if new is None and isinstance(module, ModulesToSaveWrapper):
            new = StackedWhole(module.modules_to_save[adapter], name, routing)
            parts.wholes.append((new, parts.pieces[path]))
        elif new is None and isinstance(module, ParamWrapper):
            wrappers = _wrappers(module)
            adapted_parameters = [_adapted_parameter(wrapper, adapter) for wrapper in wrappers]
            new = StackedParameters(wrappers[-1].base_layer, name, routing, adapted_parameters)
            pieces = parts.pieces[path]
            parts.parameters.append((new, list(zip(pieces[::2], pieces[1::2], strict=True))))
        elif new is None:
            base, transposed = module.get_base_layer(), bool(vars(module)["fan_in_fan_out"])
            new = StackedLinear(base, name, module.scaling[adapter], routing, transposed=transposed)
            factor_a, factor_b = parts.pieces[path]
            parts.linears.append((new, factor_a, factor_b))
        done[id(module)] = new
        adapted.set_submodule(path, new)


def _adapted_parameter(wrapper: ParamWrapper, adapter: str) -> AdaptedParameter:
    return AdaptedParameter(
        owner=wrapper.get_base_layer(),
        name=wrapper.parameter_name,
        weight=wrapper.get_param().detach(),
        scale=wrapper.scaling[adapter],
        experts=wrapper.num_experts,
        # PEFT exchanges in and out where experts are stored [out, in], as linear layers are.
        transposed=wrapper.num_experts > 1 and not wrapper._did_swap_in_out_features,
    )


def lower_factors(factor_a: torch.Tensor, factor_b: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Change the rank of a LoRA layer.

    Args:
        factor_a: A, [r, in].
        factor_b: B, [out, r].
        rank: The new rank.

    Returns:
        A [rank, in] and B [out, rank] whose product B A is closest to the old one (truncated SVD); for a rank of r or
        more the same factors padded with zeros. The rows of a new A have the mean norm of the old ones, so that a
        layer whose B is zero can still learn.
    """
    if rank >= factor_a.shape[0]:
        room = rank - factor_a.shape[0]
        return nn.functional.pad(factor_a, (0, 0, 0, room)), nn.functional.pad(factor_b, (0, room))
    basis_a, small_a = torch.linalg.qr(factor_a.mT)
    basis_b, small_b = torch.linalg.qr(factor_b)
    left, values, right = torch.linalg.svd(small_b @ small_a.mT, full_matrices=False)
    kept = min(rank, len(values))
    norm = factor_a.norm() / math.sqrt(factor_a.shape[0])
    norm = torch.where(norm > 0, norm, 1.0)
    lower_a = norm * (basis_a @ right[:kept].mT).mT
    lower_b = (basis_b @ left[:, :kept]) * (values[:kept] / norm)
    return lower_factors(lower_a, lower_b, rank)


def merged_weight(layer: StackedLinear, factor_a: torch.Tensor, factor_b: torch.Tensor) -> torch.Tensor:
    """The base weight of `layer` plus scale * B A, for `factor_a` [r, in] and `factor_b` [out, r].

    Summed in the dtype of the factors, then rounded to the dtype of the base; in its layout.
    """
    weight = layer.weight.detach()
    change = torch.mm(factor_b, factor_a)
    change = change.mT if layer.transposed else change
    return torch.add(weight.to(change.dtype), change, alpha=layer.scale).to(weight.dtype)
