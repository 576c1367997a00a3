"""Batches of tensors from examples of different lengths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypedDict

import torch

from arcft.protocols import Positions
from arcft.text.tokens import IGNORED, Example

Collate = Callable[[Sequence[Example]], dict[str, torch.Tensor]]
"""Makes the tensors of a batch, as `collate` does."""


class Batch(TypedDict):
    """What the data loader yields: examples whose losses are summed, in groups that share a forward pass."""

    groups: list[dict[str, torch.Tensor]]
    """The tensors of each group, as `collate` makes them."""

    tokens: int
    """Tokens of all examples, without padding."""


def collate_in_groups(examples: Sequence[Example], collate: Collate, max_batch_tokens: int | None) -> Batch:
    """Split `examples` into groups of similar length with at most `max_batch_tokens` tokens each, padding included.

    None makes one group, in the order given.
    """
    groups = [examples] if max_batch_tokens is None else group_by_length(examples, max_tokens=max_batch_tokens)
    return Batch(
        groups=[collate(group) for group in groups], tokens=sum(len(example.input_ids) for example in examples)
    )


def group_by_length(
    examples: Sequence[Example], *, max_tokens: int | None, max_rows: int | None = None
) -> list[list[Example]]:
    """Sort `examples`, the longest first, into groups of at most `max_tokens` tokens each, padding included, and
    `max_rows` examples; None is no limit. An example longer than `max_tokens` forms its own group."""
    groups: list[list[Example]] = []
    # The longest first, so that a run that does not fit in memory fails early.
    for example in sorted(examples, key=lambda example: len(example.input_ids), reverse=True):
        rows = len(groups[-1]) + 1 if groups else 1
        padded = rows * len(groups[-1][0].input_ids) if groups else 0
        full = (max_tokens is not None and padded > max_tokens) or (max_rows is not None and rows > max_rows)
        if full or not groups:
            groups.append([])
        groups[-1].append(example)
    return groups


def collate(examples: Sequence[Example], pad_id: int, positions: Positions | None = None) -> dict[str, torch.Tensor]:
    """Pad `examples` on the right to one length.

    Returns:
        `input_ids` and `labels`, int64 [batch, length], padded with `pad_id` and IGNORED. With `positions`, also
        `position_ids` and `attention_mask` of the same shape.

    Without positions there is no attention mask: no token attends to padding on its right, and a mask would rule out
    the fast causal kernels. With positions the mask is all ones, because transformers takes jumping positions without
    a mask for packed documents, and cuts attention at every jump.

    The first label is never a target, since nothing precedes it; it is IGNORED, so that counting labels counts targets.
    """
    length = max(len(example.input_ids) for example in examples)
    input_ids = torch.full((len(examples), length), pad_id)
    labels = torch.full((len(examples), length), IGNORED)
    for row, example in enumerate(examples):
        end = len(example.input_ids)
        input_ids[row, :end] = torch.tensor(example.input_ids)
        labels[row, 1:end] = torch.tensor(example.labels[1:])
    batch = {"input_ids": input_ids, "labels": labels}
    if positions is not None:
        batch["position_ids"] = torch.stack([torch.tensor(positions(row)) for row in input_ids.tolist()])
        batch["attention_mask"] = torch.ones_like(input_ids)
    return batch
