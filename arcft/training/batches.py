"""Examples of different lengths as one batch of tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from arcft.text.tokens import IGNORED, Example, Positions


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
