"""Cross entropy at the supervised tokens, and logits nowhere else."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence

import peft
import torch
from torch import nn

from arcft.text.tokens import IGNORED, Example
from arcft.training.batches import Collate, group_by_length


def summed_cross_entropy(
    model: nn.Module, batch: Mapping[str, torch.Tensor], *, keep_logits: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The summed cross entropy (float32, nats) of the supervised tokens of `batch`, and how many they are (int64).

    `batch` holds `labels` ([batch, length], not shifted, IGNORED where unsupervised) and the model's inputs. With
    `keep_logits` the head runs only in columns where some row is supervised: the vocabulary is by far the widest layer
    and most tokens belong to prompts.
    """
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    targets = batch["labels"][:, 1:]
    columns = (targets != IGNORED).any(dim=0).nonzero().squeeze(1)
    if keep_logits:
        logits = model(**inputs, use_cache=False, logits_to_keep=columns).logits
    else:
        logits = model(**inputs, use_cache=False).logits
    # All of them come from a model that takes `logits_to_keep` and passes over it, as unsloth's do. The last column is
    # never asked for, so what was asked for is always fewer.
    if logits.shape[1] == batch["labels"].shape[1]:
        logits = logits[:, columns]
    targets = targets[:, columns]
    supervised = targets != IGNORED
    loss = nn.functional.cross_entropy(logits[supervised].float(), targets[supervised], reduction="sum")
    return loss, supervised.sum()


def can_keep_logits(model: nn.Module) -> bool:
    """Whether the model's forward pass takes `logits_to_keep`, as most causal models of transformers do."""
    base = model.get_base_model() if isinstance(model, peft.PeftModel) else model
    return "logits_to_keep" in inspect.signature(base.forward).parameters


@torch.no_grad()
def mean_loss(
    model: nn.Module,
    examples: Sequence[Example],
    collate: Collate,
    *,
    batch_size: int,
    keep_logits: bool,
    max_batch_tokens: int | None = None,
) -> float:
    """The mean cross entropy (nats) over all supervised tokens of `examples`, whatever the batches: each of at most
    `batch_size` examples and `max_batch_tokens` tokens, padding included."""
    device = next(model.parameters()).device
    total, count = 0.0, 0
    # Examples of one length waste no computation on padding.
    for group in group_by_length(examples, max_tokens=max_batch_tokens, max_rows=batch_size):
        batch = {name: tensor.to(device) for name, tensor in collate(group).items()}
        loss, tokens = summed_cross_entropy(model, batch, keep_logits=keep_logits)
        total += loss.item()
        count += int(tokens)
    return total / count
