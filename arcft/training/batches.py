"""Examples of different lengths as one batch of tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypedDict

import torch

from arcft.protocols import Positions
from arcft.text.tokens import IGNORED, Example

Collate = Callable[[Sequence[Example]], dict[str, torch.Tensor]]


class Batch(TypedDict):
    """Examples whose losses are added up, as the groups in which they pass through the model."""

    groups: list[dict[str, torch.Tensor]]
    """Each as `collate` makes it."""

    tokens: int
    """Of all the examples, without padding."""


def collate_in_groups(examples: Sequence[Example], collate: Collate, max_batch_tokens: int | None) -> Batch:
    """The batch in groups of like length of at most `max_batch_tokens` each; None makes one group of it as it is."""
    groups = [examples] if max_batch_tokens is None else group_by_length(examples, max_tokens=max_batch_tokens)
    return Batch(
        groups=[collate(group) for group in groups], tokens=sum(len(example.input_ids) for example in examples)
    )


def group_by_length(
    examples: Sequence[Example], *, max_tokens: int | None, max_rows: int | None = None
) -> list[list[Example]]:
    """`examples`, the longest first, in as few groups as hold at most `max_tokens` tokens each, padding included, and
    `max_rows` examples; one that is longer by itself is a group of its own. None is no limit."""
    groups: list[list[Example]] = []
    # The longest first, so that memory fails early.
    for example in sorted(examples, key=lambda example: len(example.input_ids), reverse=True):
        rows = len(groups[-1]) + 1 if groups else 1
        padded = rows * len(groups[-1][0].input_ids) if groups else 0
        full = (max_tokens is not None and padded > max_tokens) or (max_rows is not None and rows > max_rows)
        if full or not groups:
            groups.append([])
        groups[-1].append(example)
    return groups


def collate(examples: Sequence[Example], pad_id: int, positions: Positions | None = None) -> dict[str, torch.Tensor]:
    """`input_ids` and `labels` (int64, [batch, length]), padded on the right with `pad_id` and IGNORED.

    There is no attention mask: nothing looks back at padding on the right, and a mask would lose the fast causal
    kernels. With `positions` there are `position_ids` and a mask of ones all over, because transformers takes positions
    that jump, without a mask, for packed documents, and cuts the attention at every jump.

    The first label is never a target, as nothing comes before it, and is IGNORED so that counts of labels are right.
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
