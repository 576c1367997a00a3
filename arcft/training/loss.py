"""Cross entropy at the supervised tokens; the head runs nowhere else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from arcft.models.selected_logits import selected_logits
from arcft.text.tokens import IGNORED, Example
from arcft.training.batches import Collate, group_by_length


def summed_cross_entropy(model: nn.Module, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """The summed cross entropy of a batch's supervised tokens, and their number.

    Args:
        model: A causal language model of transformers, or a PEFT model around one.
        batch: `labels`, int64 [batch, length], not shifted, IGNORED where unsupervised; and the model's inputs, with
            `input_ids` of the same shape among them.

    Returns:
        The loss in nats, float32 scalar, and the number of supervised tokens, int64 scalar.
    """
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    rows, length = batch["labels"].shape
    targets = batch["labels"][:, 1:]
    # Logits are computed in columns where some row is supervised: the vocabulary is by far the widest layer, and most
    # tokens belong to prompts.
    columns = (targets != IGNORED).any(dim=0).nonzero().squeeze(1)
    places = length * torch.arange(rows, device=columns.device)[:, None] + columns
    logits = selected_logits(model, {**inputs, "use_cache": False}, places)
    targets = targets[:, columns]
    supervised = targets != IGNORED
    loss = nn.functional.cross_entropy(logits[supervised].float(), targets[supervised], reduction="sum")
    return loss, supervised.sum()


@torch.no_grad()
def mean_loss(
    model: nn.Module,
    examples: Sequence[Example],
    collate: Collate,
    *,
    batch_size: int,
    max_batch_tokens: int | None = None,
) -> float:
    """The mean cross entropy in nats over all supervised tokens of `examples`.

    It does not depend on how they are batched: at most `batch_size` examples and `max_batch_tokens` tokens at a time,
    padding included.
    """
    device = next(model.parameters()).device
    total, count = 0.0, 0
    # Examples of similar length together need little padding.
    for group in group_by_length(examples, max_tokens=max_batch_tokens, max_rows=batch_size):
        batch = {name: tensor.to(device) for name, tensor in collate(group).items()}
        loss, tokens = summed_cross_entropy(model, batch)
        total += loss.item()
        count += int(tokens)
    return total / count
