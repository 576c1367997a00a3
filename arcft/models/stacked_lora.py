"""Several adapters of one shape on one frozen base model, trained and used side by side.

Their weights are stacked: A [K, r, in] and B [K, out, r] for each adapted layer, so that one forward and backward pass
serves K tasks. All weights of an adapter are one row of a [K, P] tensor, and so are their gradients.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import peft
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel

from arcft.models.adapter_config import LoraError, read_adapter_config, sort_names
from arcft.models.lora import WEIGHTS_FILE, read_adapter_weights
from arcft.models.stacked_layers import Routing
from arcft.models.stacked_parts import Layout, lower_factors, merged_weight, take_apart
from arcft.models.stacked_views import SlotWeights, slot_leaves, slot_views
from arcft.models.vocabulary import pruned_vocabulary

Route = Callable[[Sequence[int]], None]
"""Assigns a slot to each row of the batches to come."""


class StackedLora:
    """Adapters in slots 0 to K - 1 of one base model. Each starts as the adapter of a PeftModel, the initial adapter.

    Forward passes have to run within one of the contexts `training`, `routed` and `merged`.

    Trained is a float32 master copy of the weights (float64 for a float64 model). Products use a copy in the dtype of
    the base, the compute copy; for a float32 base the two are the same tensor. LoRA dropout is not applied.
    """

    model: PreTrainedModel
    """The base model with our layers."""

    slots: int
    """K, the number of slots."""

    adapts_parameters: bool
    """Whether fused experts or routers are adapted. Then adapters can't share a pass, because an expert serves all rows
    at once, and their ranks can't be lowered."""

    can_merge: bool
    """Whether adapters can be merged into the base weights; False if those are quantised, or in half precision, where
    rounding would take back most of what a young adapter changes."""

    merge_bytes: int
    """Memory in bytes that `merged` takes while it is open: a copy of the adapted weights."""

    _initial: torch.Tensor  # [P]
    _master: torch.Tensor  # [K, P]
    _compute: torch.Tensor  # [K, P]
    _gradient: torch.Tensor  # [K, P]

    def __init__(self, adapted: peft.PeftModel, slots: int) -> None:
        """Take `adapted` apart: its LoRA layers are replaced in place by layers of ours, and only `model` may be used
        from then on. Raise LoraError unless it is plain LoRA on linear layers and parameters, and modules that are
        trained whole."""
        self._routing = Routing()
        self._parts = take_apart(adapted, self._routing)
        self._config = copy.deepcopy(self._parts.config)
        self.model = self._parts.model
        self.model.register_forward_pre_hook(self._routing.record_shape, with_kwargs=True)
        base: list[torch.Tensor] = [layer.weight for layer, _, _ in self._parts.linears]
        base += [one.weight for layer, _ in self._parts.parameters for one in layer.parameters_adapted]
        self.adapts_parameters = bool(self._parts.parameters)
        self.can_merge = all(weight.dtype in (torch.float32, torch.float64) for weight in base)
        self.merge_bytes = sum(weight.numel() * weight.element_size() for weight in base)
        self.compute_dtype = _main_dtype(self.model)
        dtype = torch.float64 if self.compute_dtype == torch.float64 else torch.float32
        self.device = self.model.device
        empty = torch.empty(0, dtype=dtype, device=self.device)
        self._anchor = torch.zeros((), device=self.device, requires_grad=True)
        self._layout = Layout(self._parts.names, [weight.shape for weight in self._parts.weights])
        self._initial = self._layout.flatten(self._parts.weights, like=empty)
        self._parts.weights = []
        self._clear()
        self.resize(slots)

    @property
    def size(self) -> int:
        """P, the numbers in an adapter, including the padding that aligns each weight."""
        return self._layout.size

    @property
    def rank(self) -> int:
        """r, the LoRA rank of all slots."""
        return self._config.r

    # Slots

    def resize(self, slots: int) -> None:
        """Change the number of slots. Remaining slots keep their weights, new ones get the initial adapter.

        If memory runs out, the error is passed on, and everything is as before.
        """
        kept, fewer = min(slots, self.slots), slots < self.slots
        if fewer:
            # Freed before anything is allocated: shrinking is how memory is regained.
            self._gradient = self._gradient[:0, :0].clone()
            self._forget_views()
        master = self._initial.new_empty(slots, self.size)
        master[:kept].copy_(self._master[:kept])
        master[kept:].copy_(self._initial)
        if fewer:
            self._master = master
        compute = master.to(self.compute_dtype)
        gradient = torch.zeros_like(compute)
        self._master, self._compute, self._gradient, self.slots = master, compute, gradient, slots
        self._forget_views()

    def reset(self, slot: int) -> None:
        """Reset `slot` to the initial adapter."""
        self._change(slot, self._initial)

    def move(self, source: int, target: int) -> None:
        """Copy the weights of slot `source` to slot `target`."""
        self._change(target, self._master[source])

    def publish(self, slot: int) -> None:
        """Update the compute copy of `slot`; call this after each change of its master weights."""
        if self._compute is not self._master:
            self._compute[slot].copy_(self._master[slot])

    def master(self, slot: int) -> torch.Tensor:
        """The master weights of `slot`: a view [P], float32 or float64, valid until the next `resize`."""
        return self._master[slot]

    def gradient(self, slot: int) -> torch.Tensor:
        """The gradients of `slot`: a view [P] in the compute dtype, valid until the next `resize`."""
        return self._gradient[slot]

    def _change(self, slot: int, numbers: torch.Tensor) -> None:
        self._master[slot].copy_(numbers)
        self.publish(slot)

    def _clear(self) -> None:
        self.slots = 0
        self._master = self._initial.new_empty(0, self.size)
        self._compute = self._gradient = self._master.to(self.compute_dtype)

    def _forget_views(self) -> None:
        """Drop cached views, which keep replaced tensors alive."""
        self._leaves: dict[tuple[int, int], SlotWeights] = {}
        self._hold(slot_views(self._parts, self._layout, self._compute, 0, 1))

    # Files

    def named(self, numbers: torch.Tensor) -> dict[str, torch.Tensor]:
        """The weights in `numbers` [P], as from `master` or `gradient`: views by PEFT's names."""
        pieces = self._layout.pieces
        return {name: self._layout.view(numbers, i) for i, piece in enumerate(pieces) for name in piece.names}

    def state(self, slot: int) -> dict[str, torch.Tensor]:
        """Copies of the slot's weights by the names under which PEFT saves them, in the master's dtype on the CPU."""
        weights = {name: weight.clone() for name, weight in self.named(self._master[slot].cpu()).items()}
        weights |= {name: value.cpu() for name, value in self._parts.constants.items()}
        vocabulary = pruned_vocabulary(self.model)
        return weights if vocabulary is None else vocabulary.widen(weights)

    def save(self, slot: int, folder: Path) -> None:
        """Write `slot` as PEFT does: adapter_config.json and adapter_model.safetensors."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.state(slot), folder / WEIGHTS_FILE, metadata={"format": "pt"})
        config = copy.deepcopy(self._config)
        config.inference_mode = True
        sort_names(config)
        config.save_pretrained(str(folder))

    def load(self, slot: int, folder: Path) -> None:
        """Read a saved adapter into `slot`. Raise LoraError if it does not fit.

        Another scale, or a lower rank, is converted exactly; a higher rank is approximated as by `lower_rank`.
        """
        config = read_adapter_config(folder)
        if self.adapts_parameters and _ranks(config) != _ranks(self._config):
            raise LoraError(f"{folder}: its ranks or scales are not those of this run's adapters")
        ranked = {piece for _, *factors in self._parts.linears for piece in factors}
        shapes = {name: value.shape for name, value in self._parts.constants.items()}
        for piece, place in enumerate(self._layout.pieces):
            shape = list(place.shape)
            if piece in ranked:
                shape[0 if place.names[0].endswith("lora_A.weight") else 1] = config.r
            shapes |= dict.fromkeys(place.names, torch.Size(shape))
        state = read_adapter_weights(folder, shapes, pruned_vocabulary(self.model))
        weights = [state[place.names[0]].to(self._initial) for place in self._layout.pieces]
        ratio = _scale(config) / _scale(self._config)
        for _, _, factor_b in self._parts.linears:
            weights[factor_b] = weights[factor_b] * ratio
        self._lower(weights, self.rank)
        self._change(slot, self._layout.flatten(weights, self._initial))

    # Forward passes

    @contextmanager
    def training(self, first: int, count: int) -> Iterator[None]:
        """Within this context, a batch is `count` equal groups of rows, and group i trains slot `first + i`.

        The backward pass, which adds to the slots' gradients, belongs inside too. A forward pass raises LoraError if a
        layer does not receive whole groups.
        """
        leaves = self._leaves.get((first, count))
        if leaves is None:
            # They are cached, so they must not be created under inference mode or no_grad.
            with torch.inference_mode(False), torch.enable_grad():
                leaves = self._leaves[first, count] = slot_leaves(
                    self._parts, self._layout, self._compute, self._gradient, first, count
                )
        self._hold(leaves)
        self._routing.groups = count
        self._routing.anchor = self._anchor if torch.is_grad_enabled() else None
        try:
            yield
        finally:
            self._routing.close()

    @contextmanager
    def routed(self) -> Iterator[Route]:
        """Within this context, rows use the slots last assigned by the yielded function; no gradients."""
        try:
            yield self._route
        finally:
            self._routing.close()

    @contextmanager
    def merged(self, slot: int) -> Iterator[None]:
        """Within this context, the adapter of `slot` is merged into the base weights, for all rows; no gradients.

        The original weights are set aside and restored, bit for bit. Raise LoraError unless `can_merge`.
        """
        if not self.can_merge:
            raise LoraError("an adapter can't be merged into weights that are quantised or in half precision")
        aside = [(layer, layer.weight) for layer, _, _ in self._parts.linears]
        try:
            for layer, factor_a, factor_b in self._parts.linears:
                factors = (self._layout.view(self._master[slot], piece) for piece in (factor_a, factor_b))
                layer.base_layer.weight = nn.Parameter(merged_weight(layer, *factors), requires_grad=False)
            self._hold(slot_views(self._parts, self._layout, self._master, slot, slot + 1))
            for module, _ in self._parts.parameters:
                module.show(module.adapted())
            self._hold(slot_views(self._parts, self._layout, self._compute, slot, slot + 1))
            self._routing.groups, self._routing.is_merged = 1, True
            yield
        finally:
            self._routing.close()
            for layer, weight in aside:
                layer.base_layer.weight = weight
            for module, _ in self._parts.parameters:
                module.show([one.weight for one in module.parameters_adapted])

    def _route(self, slots_of_rows: Sequence[int]) -> None:
        low, high = min(slots_of_rows), max(slots_of_rows) + 1
        self._routing.assign([slot - low for slot in slots_of_rows], self.device)
        self._hold(slot_views(self._parts, self._layout, self._compute, low, high))

    def _hold(self, leaves: SlotWeights) -> None:
        for (layer, _, _), factors in zip(self._parts.linears, leaves.factors, strict=True):
            layer.factors = factors
        for (module, _), pairs in zip(self._parts.parameters, leaves.pairs, strict=True):
            module.factors = pairs
        for (whole, _), copies in zip(self._parts.wholes, leaves.copies, strict=True):
            whole.hold(copies)

    # Rank

    def lower_rank(self, rank: int) -> None:
        """Replace the initial adapter and all slots by their best approximations of a lower rank (Eckart, Young 1936).

        The scale stays the same, so alpha falls with the rank. If memory runs out, the error is passed on, and
        everything is as before. Raise ValueError for a rank below 1 or not below the present one, or if
        parameters are adapted.
        """
        if self.adapts_parameters:
            raise ValueError("adapted parameters have ranks of their own, which can't be lowered")
        if not 1 <= rank < self.rank:
            raise ValueError(f"rank {rank}: at least 1 and below the present {self.rank}")
        scale, slots = _scale(self._config), self.slots
        layout, (initial, *lowered) = self._lowered(rank)
        self._layout, self._initial = layout, initial.to(self.device)
        self._config.r = rank
        # PEFT annotates int, but computes with any number.
        self._config.lora_alpha = scale * (math.sqrt(rank) if self._config.use_rslora else rank)  # type: ignore
        self._clear()
        self.resize(slots)
        for slot, numbers in enumerate(lowered):
            self._change(slot, numbers)

    def _lowered(self, rank: int) -> tuple[Layout, list[torch.Tensor]]:
        """The initial adapter and all slots at the lower rank, on the CPU until the old ones are freed: memory may be
        why the rank is lowered."""
        lowered = []
        for numbers in (self._initial, *self._master):
            weights = [self._layout.view(numbers, piece) for piece in range(len(self._layout.pieces))]
            self._lower(weights, rank)
            layout = Layout(self._parts.names, [weight.shape for weight in weights])
            lowered.append(layout.flatten(weights, like=self._initial).cpu())
        return layout, lowered

    def _lower(self, weights: list[torch.Tensor], rank: int) -> None:
        for _, factor_a, factor_b in self._parts.linears:
            weights[factor_a], weights[factor_b] = lower_factors(weights[factor_a], weights[factor_b], rank)


def _scale(config: peft.LoraConfig) -> float:
    return config.lora_alpha / (math.sqrt(config.r) if config.use_rslora else config.r)


def _ranks(config: peft.LoraConfig) -> tuple[object, ...]:
    """All that ranks and scales depend on."""
    return config.r, config.lora_alpha, config.use_rslora, config.rank_pattern, config.alpha_pattern


def _main_dtype(model: PreTrainedModel) -> torch.dtype:
    """The dtype of most weights. Quantised ones don't count: products with them use the dtype of the others."""
    counts: Counter[torch.dtype] = Counter()
    for parameter in model.parameters():
        if parameter.is_floating_point():
            counts[parameter.dtype] += parameter.numel()
    return counts.most_common(1)[0][0]
