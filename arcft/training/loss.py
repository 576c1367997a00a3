"""Cross entropy at the supervised tokens; the head runs nowhere else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from arcft.text.tokens import IGNORED, Example
from arcft.training.batches import Collate, group_by_length
from arcft.training.chunked_loss import cross_entropy_sums


def summed_cross_entropy(model: nn.Module, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """The summed cross entropy of a batch's supervised tokens, and their number.

    Args:
        model: A causal language model of transformers, or a PEFT model around one.
        batch: `labels`, int64 [batch, length], not shifted, IGNORED where unsupervised; and the model's inputs, with
            `input_ids` of the same shape among them.

    Returns:
        The loss in nats, a float32 scalar (float64 for a float64 model), and the number of supervised tokens, an int64
        scalar.
    """
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    length = batch["labels"].shape[1]
    targets = batch["labels"][:, 1:]
    rows, columns = (targets != IGNORED).nonzero(as_tuple=True)
    # The vocabulary is by far the widest layer, and most tokens belong to prompts.
    places = (rows * length + columns)[None]
    sums = cross_entropy_sums(model, {**inputs, "use_cache": False}, places, targets[rows, columns][None])
    return sums[0], sums.new_tensor(places.numel(), dtype=torch.int64)


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
