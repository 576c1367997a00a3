"""Several adapters of one shape on one frozen base model, trained and used side by side.

The weights are stacked: A [K, r, in] and B [K, out, r] for each adapted layer, so that one forward and backward pass
serves K tasks. All numbers of an adapter lie in one row of one [K, P] tensor, and so do their gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import peft
import torch
from transformers import PreTrainedModel

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
    size: int
    """P: the numbers of an adapter, padding included that keeps each weight aligned."""
    rank: int
    can_merge: bool
    """Whether an adapter can be added to the base weights; not if they are quantised."""
    merge_bytes: int
    """Memory that `merged` takes while it is open: a copy of the adapted weights."""

    def __init__(self, adapted: peft.PeftModel, slots: int) -> None:
        raise NotImplementedError

    def resize(self, slots: int) -> None:
        """Have `slots` slots; those that stay keep their weights, new ones hold START."""
        raise NotImplementedError

    def reset(self, slot: int) -> None:
        """Put START into the slot."""
        raise NotImplementedError

    def publish(self, slot: int) -> None:
        """Round the slot's master into the compute copy; to be called after every change of the master."""
        raise NotImplementedError

    def move(self, source: int, target: int) -> None:
        """Copy the weights of slot `source` into slot `target`."""
        raise NotImplementedError

    def master(self, slot: int) -> torch.Tensor:
        """The slot's weights, [P], float32 (float64 for a float64 model); a view, until the next `resize`."""
        raise NotImplementedError

    def gradient(self, slot: int) -> torch.Tensor:
        """The slot's gradients, [P] in the compute dtype; a view, until the next `resize`."""
        raise NotImplementedError

    def state(self, slot: int) -> dict[str, torch.Tensor]:
        """The slot's weights by the names that PEFT saves them under, float32 on the CPU."""
        raise NotImplementedError

    def load(self, slot: int, folder: Path) -> None:
        """Read a saved adapter into the slot; raises LoraError where it does not fit."""
        raise NotImplementedError

    def save(self, slot: int, folder: Path) -> None:
        """Write the slot as an adapter of PEFT: adapter_config.json and adapter_model.safetensors."""
        raise NotImplementedError

    @contextmanager
    def training(self, first: int, count: int) -> Iterator[None]:
        """Passes hold `count` equal groups of rows: group i is for slot `first` + i, and adds to its gradient."""
        raise NotImplementedError
        yield

    @contextmanager
    def routed(self) -> Iterator[Route]:
        """Passes without gradient, each row with the slot that the yielded function was told last."""
        raise NotImplementedError
        yield

    @contextmanager
    def merged(self, slot: int) -> Iterator[None]:
        """Passes without gradient in which the base weights hold the slot's adapter; afterwards they are as before,
        bit for bit."""
        raise NotImplementedError
        yield

    def lower_rank(self, rank: int) -> None:
        """Replace START and all slots by their best approximations of a lower rank; the scale stays."""
        raise NotImplementedError
