"""Logits at selected places only. The output layer is the widest one, and most tokens of a batch need no logits."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

import torch
from torch import nn


def selected_logits(model: Any, inputs: Mapping[str, Any], places: torch.Tensor) -> torch.Tensor:
    """Run `model` and return its logits at `places` of the batch.

    Args:
        model: A causal language model of transformers, or a PEFT model around one.
        inputs: Arguments of its forward pass, with `input_ids` [batch, length] among them.
        places: int64 [rows, selected], indices into the flattened batch: row * length + column.

    Returns:
        [rows, selected, vocabulary] in the model's dtype, differentiable.
    """
    with HeadTap(model.get_output_embeddings(), places) as tap:
        return tap.select(model(**inputs).logits)


class HeadTap:
    """Narrows the input of a model's output layer to selected places while the context is open.

    The hook sits right before the output layer, so whatever the model does to its logits afterwards still happens.
    Models whose forward pass does not call the layer (they multiply by its weight themselves, or have none) compute
    all logits, and `select` picks from them.
    """

    def __init__(self, head: nn.Module | None, places: torch.Tensor, *, skip: bool = False) -> None:
        """`places` is as in selected_logits. With `skip` the layer gets no input at all: only `hidden` is wanted."""
        self.head = head
        self.hidden: torch.Tensor | None = None
        """The layer's input at `places`, [rows, selected, hidden size]; None until the layer is called."""
        self.output: torch.Tensor | None = None
        """The layer's output for it, [rows, selected, vocabulary]; None until the layer is called."""
        self._places = places
        self._skip = skip

    def __enter__(self) -> HeadTap:
        self._handles = []
        if self.head is not None:
            self._handles = [
                self.head.register_forward_pre_hook(self._before),
                self.head.register_forward_hook(self._after),
            ]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def select(self, logits: torch.Tensor) -> torch.Tensor:
        """The model's `logits` at the places, whether or not the layer was narrowed to them."""
        return logits.flatten(0, 1)[self._places] if self.output is None else logits

    def _before(self, head: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        hidden, *others = args
        self.hidden = hidden.flatten(0, 1)[self._places]
        return (self.hidden[:, :0] if self._skip else self.hidden, *others)

    def _after(self, head: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        self.output = output
