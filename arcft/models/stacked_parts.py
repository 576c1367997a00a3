"""What a PeftModel is taken apart into, where each weight of an adapter lies in its row of numbers, and low-rank
arithmetic on single layers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence

import peft
import torch
from peft.tuners.lora.layer import Linear as PeftLinear
from peft.tuners.lora.layer import LoraLayer
from peft.utils.other import ModulesToSaveWrapper
from peft.utils.save_and_load import get_peft_model_state_dict
from torch import nn
from transformers import PreTrainedModel

from arcft.models.lora import LoraError
from arcft.models.stacked_layers import Routing, StackedLinear, StackedWhole

# Every weight begins at a multiple of so many numbers: matrix kernels are slow, or copy, where one is not aligned.
_ALIGNMENT = 16
# What PEFT's names begin with, and users' do not.
_PREFIX = "base_model.model."


@dataclasses.dataclass(frozen=True)
class Piece:
    """One weight of an adapter."""

    names: tuple[str, ...]
    """What PEFT saves it as; several names where modules are tied."""

    offset: int
    shape: torch.Size


class Layout:
    """Where the weights of an adapter lie in one row of `size` numbers."""

    def __init__(self, names: Iterable[Sequence[str]], shapes: Iterable[torch.Size]) -> None:
        self.pieces: list[Piece] = []
        self.size = 0
        for own, shape in zip(names, shapes, strict=True):
            self.pieces.append(Piece(tuple(own), self.size, shape))
            self.size += -(-shape.numel() // _ALIGNMENT) * _ALIGNMENT

    def view(self, numbers: torch.Tensor, piece: int) -> torch.Tensor:
        """The weight number `piece` within `numbers` [..., P]: a view, [..., *shape]."""
        place = self.pieces[piece]
        narrow = numbers[..., place.offset : place.offset + place.shape.numel()]
        return narrow.unflatten(-1, place.shape)

    def flatten(self, weights: Sequence[torch.Tensor], like: torch.Tensor) -> torch.Tensor:
        """`weights`, one for each piece, as numbers [P] with device and dtype of `like`."""
        numbers = like.new_zeros(self.size)
        for piece, weight in enumerate(weights):
            self.view(numbers, piece).copy_(weight)
        return numbers


@dataclasses.dataclass
class Parts:
    """A model with stacked layers in place, and the adapter that was on it."""

    model: PreTrainedModel
    config: peft.LoraConfig
    linears: list[tuple[StackedLinear, int, int]] = dataclasses.field(default_factory=list)
    """Each with the numbers of its pieces A and B."""

    wholes: list[tuple[StackedWhole, list[int]]] = dataclasses.field(default_factory=list)
    """Each with the pieces that its parameters are."""

    names: list[list[str]] = dataclasses.field(default_factory=list)
    """PEFT's names of each piece."""

    weights: list[torch.Tensor] = dataclasses.field(default_factory=list)
    """The adapter's, for each piece."""

    pieces: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    """By the path of each adapted module."""

    constants: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)
    """What PEFT saves beside, and no training changes: buffers of whole modules."""


def take_apart(adapted: peft.PeftModel, routing: Routing) -> Parts:
    """Put our layers, which follow `routing`, into the model of `adapted` in place of PEFT's; raises LoraError where
    the adapter is more than LoRA on linear layers and whole modules, before anything is changed."""
    adapter = adapted.active_adapter
    config = adapted.peft_config[adapter]
    _check_config(config)
    taken = list(_taken(adapted, ""))
    for path, module in taken:
        _check_module(path, module)
    # Before anything is replaced, as PEFT finds the names in its own layers.
    saved = get_peft_model_state_dict(adapted, adapter_name=adapter, save_embedding_layers=False)
    parts = _collect(adapted, adapter, taken)
    known = {name for names in parts.names for name in names} | parts.constants.keys()
    for left in sorted(saved.keys() ^ known):
        raise LoraError(f"{left}: is no weight of a plain LoRA adapter, so adapters can't be stacked; use ttft=none")
    _replace(adapted, adapter, taken, parts, routing)
    # PEFT left its mark on the base model.
    vars(parts.model).pop("peft_config", None)
    parts.model.requires_grad_(False)
    parts.model.eval()
    return parts


def _taken(module: nn.Module, path: str) -> Iterator[tuple[str, LoraLayer | ModulesToSaveWrapper]]:
    for name, child in module.named_children():
        own = f"{path}.{name}" if path else name
        if isinstance(child, LoraLayer | ModulesToSaveWrapper):
            yield own, child
        else:
            yield from _taken(child, own)


def _check_config(config: peft.PeftConfig) -> None:
    if not isinstance(config, peft.LoraConfig):
        raise LoraError(f"the adapter is {config.peft_type}, and only LoRA adapters can be stacked; use ttft=none")
    if config.use_dora:
        raise LoraError(
            "the adapter is DoRA (lora.use_dora=true), whose norms can't be stacked: train with lora.use_dora=false, "
            "begin anew with ttft.start=fresh lora.use_dora=false, or use ttft=none"
        )
    if config.rank_pattern or config.alpha_pattern:
        raise LoraError("the adapter has ranks of its own in some layers (rank_pattern, alpha_pattern): use ttft=none")


def _check_module(path: str, module: LoraLayer | ModulesToSaveWrapper) -> None:
    if isinstance(module, ModulesToSaveWrapper):
        # A LoRA layer inside would be saved under names of its own, which are found to be left over.
        return
    # PEFT's layers for quantised weights are classes of their own, which compute the same.
    plain = type(module) is PeftLinear or type(module).__name__ in ("Linear4bit", "Linear8bitLt")
    if not plain or module.lora_variant or any(module.lora_bias.values()):
        raise LoraError(
            f"{path.removeprefix(_PREFIX)}: an adapter on {type(module.get_base_layer()).__name__} can't be stacked, "
            "only plain LoRA on linear layers can; leave it out of lora.target_modules, or train it whole "
            "(model.train_modules)"
        )


def _collect(
    adapted: peft.PeftModel, adapter: str, taken: Sequence[tuple[str, LoraLayer | ModulesToSaveWrapper]]
) -> Parts:
    parts = Parts(adapted.get_base_model(), adapted.peft_config[adapter])  # type: ignore[arg-type]
    pieces: dict[int, int] = {}

    def piece_of(weight: torch.Tensor, name: str) -> int:
        # Tied weights are one parameter, and one piece.
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
        # A layer that the model has in two places stays one.
        new = done.get(id(module))
        name = path.removeprefix(_PREFIX)
        if new is None and isinstance(module, ModulesToSaveWrapper):
            new = StackedWhole(module.modules_to_save[adapter], name, routing)
            parts.wholes.append((new, parts.pieces[path]))
        elif new is None:
            base, transposed = module.get_base_layer(), bool(vars(module)["fan_in_fan_out"])
            new = StackedLinear(base, name, module.scaling[adapter], routing, transposed=transposed)
            factor_a, factor_b = parts.pieces[path]
            parts.linears.append((new, factor_a, factor_b))
        done[id(module)] = new
        adapted.set_submodule(path, new)


def lower_factors(factor_a: torch.Tensor, factor_b: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A [rank, in] and B [out, rank] whose product is closest to that of `factor_a` [r, in] and `factor_b` [out, r].

    The rows of the new A have the mean norm of the old ones, so that a B of zeros goes on to learn.
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
    """The base weight of `layer` with an adapter added, summed up in the dtype of the factors and then rounded."""
    weight = layer.weight.detach()
    change = torch.mm(factor_b, factor_a)
    change = change.mT if layer.transposed else change
    return torch.add(weight.to(change.dtype), change, alpha=layer.scale).to(weight.dtype)
