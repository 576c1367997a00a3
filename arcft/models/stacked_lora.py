"""Several adapters of one shape on one frozen base model, trained and used side by side.

The weights are stacked: A [K, r, in] and B [K, out, r] for each adapted layer, so that one forward and backward pass
serves K tasks. All numbers of an adapter lie in one row of one [K, P] tensor, and so do their gradients.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
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

from arcft.models.lora import WEIGHTS_FILE, LoraError, read_adapter_config, read_adapter_weights
from arcft.models.stacked_layers import Factors, Routing
from arcft.models.stacked_parts import Layout, lower_factors, merged_weight, take_apart

Route = Callable[[Sequence[int]], None]
"""Says which slot each row of the batch belongs to, from now on."""


class StackedLora:
    """`slots` adapters on one base model, each at first the adapter that a PeftModel holds: START.

    The PeftModel is taken apart: its LoRA layers become layers of ours around the same base layers, in place, and only
    `model` may be used from then on, within one of the contexts `training`, `routed` and `merged`. Products with an
    adapter are computed in the dtype of the base (the compute copy); what is trained is a float32 master copy, float64
    for a float64 model, and for a float32 base the two are one. LoRA dropout is not applied. Raises LoraError for what
    is no plain LoRA on linear layers.
    """

    model: PreTrainedModel
    slots: int
    can_merge: bool
    """Whether an adapter can be added to the base weights; not if they are quantised."""

    merge_bytes: int
    """Memory that `merged` takes while it is open: a copy of the adapted weights."""

    _start: torch.Tensor  # [P]
    _master: torch.Tensor  # [K, P]
    _compute: torch.Tensor  # [K, P]
    _gradient: torch.Tensor  # [K, P]

    def __init__(self, adapted: peft.PeftModel, slots: int) -> None:
        self._routing = Routing()
        self._parts = take_apart(adapted, self._routing)
        self._config = copy.deepcopy(self._parts.config)
        self.model = self._parts.model
        self.model.register_forward_pre_hook(self._routing.see, with_kwargs=True)
        base = [layer.weight for layer, _, _ in self._parts.linears]
        self.can_merge = all(weight.is_floating_point() for weight in base)
        self.merge_bytes = sum(weight.numel() * weight.element_size() for weight in base)
        self.compute_dtype = _main_dtype(self.model)
        dtype = torch.float64 if self.compute_dtype == torch.float64 else torch.float32
        self.device = self.model.device
        empty = torch.empty(0, dtype=dtype, device=self.device)
        self._anchor = torch.zeros((), device=self.device, requires_grad=True)
        self._layout = Layout(self._parts.names, [weight.shape for weight in self._parts.weights])
        self._start = self._layout.flatten(self._parts.weights, like=empty)
        self._parts.weights = []
        self._clear()
        self.resize(slots)

    @property
    def size(self) -> int:
        """P: the numbers of an adapter, with the padding that keeps each weight aligned."""
        return self._layout.size

    @property
    def rank(self) -> int:
        return self._config.r

    # Slots

    def resize(self, slots: int) -> None:
        """Have `slots` slots; those that stay keep their weights, new ones hold START.

        Where there is no memory for more, everything is as before.
        """
        kept, fewer = min(slots, self.slots), slots < self.slots
        if fewer:
            # Gone before anything is made: this is how memory is won back.
            self._gradient = self._gradient[:0, :0].clone()
            self._forget_views()
        master = self._start.new_empty(slots, self.size)
        master[:kept].copy_(self._master[:kept])
        master[kept:].copy_(self._start)
        if fewer:
            self._master = master
        compute = master.to(self.compute_dtype)
        gradient = torch.zeros_like(compute)
        self._master, self._compute, self._gradient, self.slots = master, compute, gradient, slots
        self._forget_views()

    def reset(self, slot: int) -> None:
        """Put START into the slot."""
        self._change(slot, self._start)

    def move(self, source: int, target: int) -> None:
        """Copy the weights of slot `source` into slot `target`."""
        self._change(target, self._master[source])

    def publish(self, slot: int) -> None:
        """Round the slot's master into the compute copy; to be called after every change of the master."""
        if self._compute is not self._master:
            self._compute[slot].copy_(self._master[slot])

    def master(self, slot: int) -> torch.Tensor:
        """The slot's weights, [P], float32 (float64 for a float64 model): a view, until the next `resize`."""
        return self._master[slot]

    def gradient(self, slot: int) -> torch.Tensor:
        """The slot's gradients, [P] in the compute dtype: a view, until the next `resize`."""
        return self._gradient[slot]

    def _change(self, slot: int, numbers: torch.Tensor) -> None:
        self._master[slot].copy_(numbers)
        self.publish(slot)

    def _clear(self) -> None:
        self.slots = 0
        self._master = self._start.new_empty(0, self.size)
        self._compute = self._gradient = self._master.to(self.compute_dtype)

    def _forget_views(self) -> None:
        """Let go of all memory but the present tensors."""
        self._leaves: dict[tuple[int, int], _Leaves] = {}
        self._hold(self._views(0, 1))

    # Files

    def named(self, numbers: torch.Tensor) -> dict[str, torch.Tensor]:
        """The weights within `numbers` [P], such as `master` and `gradient` give: views by PEFT's names."""
        pieces = self._layout.pieces
        return {name: self._layout.view(numbers, i) for i, piece in enumerate(pieces) for name in piece.names}

    def state(self, slot: int) -> dict[str, torch.Tensor]:
        """The slot's weights by the names that PEFT saves them under, in the master's dtype on the CPU."""
        weights = {name: weight.clone() for name, weight in self.named(self._master[slot].cpu()).items()}
        return weights | {name: value.cpu() for name, value in self._parts.constants.items()}

    def save(self, slot: int, folder: Path) -> None:
        """Write the slot as PEFT would: adapter_config.json and adapter_model.safetensors."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.state(slot), folder / WEIGHTS_FILE, metadata={"format": "pt"})
        config = copy.deepcopy(self._config)
        config.inference_mode = True
        if isinstance(config.target_modules, set):
            # A set's order differs from run to run.
            config.target_modules = sorted(config.target_modules)
        config.save_pretrained(str(folder))

    def load(self, slot: int, folder: Path) -> None:
        """Read a saved adapter into the slot; raises LoraError where it does not fit.

        One of another rank or scale is fitted: exactly, or as well as this rank allows.
        """
        config = read_adapter_config(folder)
        ranked = {piece for _, *factors in self._parts.linears for piece in factors}
        shapes = {name: value.shape for name, value in self._parts.constants.items()}
        for piece, place in enumerate(self._layout.pieces):
            shape = list(place.shape)
            if piece in ranked:
                shape[0 if place.names[0].endswith("lora_A.weight") else 1] = config.r
            shapes |= dict.fromkeys(place.names, torch.Size(shape))
        state = read_adapter_weights(folder, shapes)
        weights = [state[place.names[0]].to(self._start) for place in self._layout.pieces]
        ratio = _scale(config) / _scale(self._config)
        for _, _, factor_b in self._parts.linears:
            weights[factor_b] = weights[factor_b] * ratio
        self._lower(weights, self.rank)
        self._change(slot, self._layout.flatten(weights, self._start))

    # Passes

    @contextmanager
    def training(self, first: int, count: int) -> Iterator[None]:
        """Passes hold `count` equal groups of rows: group i is for slot `first` + i, and adds to its gradient.

        The backward pass belongs inside, too. Raises LoraError where a layer is not given whole groups.
        """
        leaves = self._leaves.get((first, count))
        if leaves is None:
            # They are kept, so they must not be marked as made where no gradient was wanted.
            with torch.inference_mode(False), torch.enable_grad():
                leaves = self._leaves[first, count] = self._make_leaves(first, count)
        self._hold(leaves)
        self._routing.groups = count
        self._routing.anchor = self._anchor if torch.is_grad_enabled() else None
        try:
            yield
        finally:
            self._routing.close()

    @contextmanager
    def routed(self) -> Iterator[Route]:
        """Passes without gradient, each row with the slot that the yielded function was told last."""
        try:
            yield self._route
        finally:
            self._routing.close()

    @contextmanager
    def merged(self, slot: int) -> Iterator[None]:
        """Passes without gradient in which the base weights hold the slot's adapter.

        The weights are put aside and put back, so afterwards they are as before, bit for bit. Raises LoraError for a
        quantised base.
        """
        if not self.can_merge:
            raise LoraError("an adapter can't be merged into quantised weights")
        aside = [(layer, layer.weight) for layer, _, _ in self._parts.linears]
        try:
            for layer, factor_a, factor_b in self._parts.linears:
                factors = (self._layout.view(self._master[slot], piece) for piece in (factor_a, factor_b))
                layer.base_layer.weight = nn.Parameter(merged_weight(layer, *factors), requires_grad=False)
            self._hold(self._views(slot, slot + 1))
            self._routing.groups, self._routing.passes = 1, True
            yield
        finally:
            self._routing.close()
            for layer, weight in aside:
                layer.base_layer.weight = weight

    def _route(self, slots_of_rows: Sequence[int]) -> None:
        low, high = min(slots_of_rows), max(slots_of_rows) + 1
        groups = [[row for row, slot in enumerate(slots_of_rows) if slot == own] for own in range(low, high)]
        most = max(map(len, groups))
        # Groups that are too short repeat a row, whose second result nobody fetches.
        order = [row for group in groups for row in group + (most - len(group)) * [0]]
        self._routing.groups = high - low
        self._routing.order = self._routing.inverse = None
        if order != list(range(len(slots_of_rows))):
            inverse: dict[int, int] = {}
            for number, group in enumerate(groups):
                inverse |= {row: number * most + place for place, row in enumerate(group)}
            places = [inverse[row] for row in range(len(slots_of_rows))]
            self._routing.order = torch.tensor(order, device=self.device)
            self._routing.inverse = torch.tensor(places, device=self.device)
        self._hold(self._views(low, high))

    def _hold(self, leaves: _Leaves) -> None:
        for (layer, _, _), factors in zip(self._parts.linears, leaves.factors, strict=True):
            layer.factors = factors
        for (whole, _), copies in zip(self._parts.wholes, leaves.copies, strict=True):
            whole.hold(copies)

    def _views(self, low: int, high: int) -> _Leaves:
        """The compute copy of the slots from `low` to before `high`."""
        rows = low if high - low == 1 else slice(low, high)
        view, compute = self._layout.view, self._compute
        factors = [Factors(view(compute[rows], a), view(compute[rows], b)) for _, a, b in self._parts.linears]
        copies = [
            [[view(compute[slot], piece) for piece in pieces] for slot in range(low, high)]
            for _, pieces in self._parts.wholes
        ]
        return _Leaves(factors, copies)

    def _make_leaves(self, first: int, count: int) -> _Leaves:
        """Views whose gradients are summed up in place in the one buffer."""
        rows = first if count == 1 else slice(first, first + count)
        view, compute, gradient = self._layout.view, self._compute[rows], self._gradient[rows]
        factors = [
            Factors(view(compute, a), view(compute, b), view(gradient, a), view(gradient, b))
            for _, a, b in self._parts.linears
        ]

        @functools.cache
        def leaf(piece: int, slot: int) -> torch.Tensor:
            # Tied weights are one leaf.
            weight = view(self._compute[slot], piece).requires_grad_()
            weight.grad = view(self._gradient[slot], piece)
            return weight

        copies = [
            [[leaf(piece, slot) for piece in pieces] for slot in range(first, first + count)]
            for _, pieces in self._parts.wholes
        ]
        return _Leaves(factors, copies)

    # Rank

    def lower_rank(self, rank: int) -> None:
        """Replace START and all slots by their best approximations of a lower rank (Eckart and Young 1936).

        The scale stays as it is, so alpha falls with the rank. Without the memory for it, everything is as before.
        """
        if not 1 <= rank < self.rank:
            raise ValueError(f"rank {rank}: at least 1 and below the present {self.rank}")
        scale, slots = _scale(self._config), self.slots
        layout, (start, *lowered) = self._lowered(rank)
        self._layout, self._start = layout, start.to(self.device)
        self._config.r = rank
        # PEFT's type says int, and its own arithmetic takes any number.
        self._config.lora_alpha = scale * (math.sqrt(rank) if self._config.use_rslora else rank)  # type: ignore
        self._clear()
        self.resize(slots)
        for slot, numbers in enumerate(lowered):
            self._change(slot, numbers)

    def _lowered(self, rank: int) -> tuple[Layout, list[torch.Tensor]]:
        """START and all slots, on the CPU until the old ones are gone: memory may be why the rank is lowered."""
        lowered = []
        for numbers in (self._start, *self._master):
            weights = [self._layout.view(numbers, piece) for piece in range(len(self._layout.pieces))]
            self._lower(weights, rank)
            layout = Layout(self._parts.names, [weight.shape for weight in weights])
            lowered.append(layout.flatten(weights, like=self._start).cpu())
        return layout, lowered

    def _lower(self, weights: list[torch.Tensor], rank: int) -> None:
        for _, factor_a, factor_b in self._parts.linears:
            weights[factor_a], weights[factor_b] = lower_factors(weights[factor_a], weights[factor_b], rank)


@dataclasses.dataclass(frozen=True)
class _Leaves:
    """The weights of some slots as the layers take them."""

    factors: list[Factors]
    """For each adapted layer."""

    copies: list[list[list[torch.Tensor]]]
    """For each whole module and slot: its parameters."""


def _scale(config: peft.LoraConfig) -> float:
    return config.lora_alpha / (math.sqrt(config.r) if config.use_rslora else config.r)


def _main_dtype(model: PreTrainedModel) -> torch.dtype:
    """The dtype of most weights; quantised ones are not among them, but are computed with in that of the others."""
    counts: Counter[torch.dtype] = Counter()
    for parameter in model.parameters():
        if parameter.is_floating_point():
            counts[parameter.dtype] += parameter.numel()
    return counts.most_common(1)[0][0]
