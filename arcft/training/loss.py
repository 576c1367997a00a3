"""Cross entropy at the supervised tokens; the head runs nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from arcft.models.packed_attention import packed
from arcft.text.tokens import IGNORED
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
