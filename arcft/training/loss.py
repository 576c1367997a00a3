"""Cross entropy at the supervised tokens; the head runs nowhere else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from arcft.memory import is_out_of_memory, release_memory
from arcft.models.packed_attention import packed
from arcft.text.tokens import IGNORED, Example
from arcft.training import collectives
from arcft.training.batches import Collate, group_by_length
from arcft.training.chunked_loss import cross_entropy_sums


def summed_cross_entropy(model: nn.Module, batch: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """The summed cross entropy of a batch's supervised tokens, and their number.

    Args:
        model: A causal language model of transformers, or a PEFT model around one.
        batch: `labels`, int64 [batch, length], not shifted, IGNORED where unsupervised; the model's inputs, with
            `input_ids` of the same shape among them; and `lengths`, if examples are packed.

    Returns:
        The loss in nats, a float32 scalar (float64 for a float64 model), and the number of supervised tokens, an int64
        scalar.
    """
    inputs = {name: value for name, value in batch.items() if name not in ("labels", "lengths")}
    length = batch["labels"].shape[1]
    targets = batch["labels"][:, 1:]
    rows, columns = (targets != IGNORED).nonzero(as_tuple=True)
    # The vocabulary is by far the widest layer, and most tokens belong to prompts.
    places = (rows * length + columns)[None]
    with packed(model, batch.get("lengths")) as more:
        inputs = {**inputs, **more, "use_cache": False}
        sums = cross_entropy_sums(model, inputs, places, targets[rows, columns][None])
    return sums[0], sums.new_tensor(places.numel(), dtype=torch.int64)


@torch.no_grad()
def mean_loss(
    model: nn.Module,
    examples: Sequence[Example],
    collate: Collate,
    *,
    batch_size: int,
    max_batch_tokens: int | None = None,
    packing: bool = False,
) -> float:
    """The mean cross entropy in nats over all supervised tokens of `examples`.

    It does not depend on how they are batched: at most `batch_size` examples and `max_batch_tokens` tokens at a time,
    grouped as in `group_by_length`. Ranks share them out, and all get the result.
    """
    # Examples of similar length together need little padding.
    groups = group_by_length(examples, max_tokens=max_batch_tokens, max_rows=batch_size, packing=packing)

    def own() -> list[tuple[float, int]]:
        return [_loss_and_tokens(model, group, collate) for group in collectives.own_share(groups)]

    losses = collectives.in_order(collectives.together(own))
    return sum(loss for loss, _ in losses) / sum(tokens for _, tokens in losses)


def _loss_and_tokens(model: nn.Module, group: Sequence[Example], collate: Collate) -> tuple[float, int]:
    """The summed cross entropy of a group and its supervised tokens; in halves where memory runs out."""
    device = next(model.parameters()).device
    try:
        batch = {
            name: value.to(device) if isinstance(value, torch.Tensor) else value
            for name, value in collate(group).items()
        }
        loss, tokens = summed_cross_entropy(model, batch)
        return loss.item(), int(tokens)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error) or len(group) == 1:
            raise
        release_memory(error)
    middle = len(group) // 2
    halves = [_loss_and_tokens(model, half, collate) for half in (group[:middle], group[middle:])]
    return sum(loss for loss, _ in halves), sum(tokens for _, tokens in halves)
