"""Initial query and key biases that make attention heads look a given distance back before any training.

Rotary attention between a query at position p and a key at position q sums, over pairs of a head's dimensions, products
that rotate with (p - q) times the pair's frequency. Biases contribute to each of them, so suitable ones add a sum of
cosines to the score that peaks where p - q equals a chosen offset. Training continues from there. They are ordinary
biases: saving, loading and adapting a model works as always.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from arcft.errors import ModelError


@torch.no_grad()
def set_positional_kernels(model: PreTrainedModel) -> None:
    """Set the biases given by `positional_kernels` in the model's config; without that entry, do nothing.

    The entry is a list of {"layer": from 0, "head": from 0, "offset": in positions}; `positional_kernel_strength` is
    the size of the bias in each pair of dimensions. Dimensions are laid out as in Llama: i is rotated together with
    i + head_dim / 2. Raise ModelError if the model lacks such a head or its biases.
    """
    config: Any = model.config
    for kernel in getattr(config, "positional_kernels", None) or ():
        try:
            _set(model, config, **kernel)
        except (AttributeError, IndexError, TypeError) as error:
            raise ModelError(
                f"positional_kernels in the model's config.json: {kernel}: needs a layer and a head of the model, an "
                f"offset, positional_kernel_strength, and biases in a rotary attention (attention_bias): {error}"
            ) from error


def _set(model: Any, config: Any, *, layer: int, head: int, offset: int) -> None:
    attention = model.model.layers[layer].self_attn
    angles = offset * model.model.rotary_emb.inv_freq.double()  # [pairs]
    strength = config.positional_kernel_strength
    # All pairs of the key point the same way; those of the query are rotated back by the offset, so that rotary
    # embedding aligns the two at exactly this distance.
    key = strength * torch.cat([torch.ones_like(angles), torch.zeros_like(angles)])
    query = strength * torch.cat([angles.cos(), -angles.sin()])
    groups = config.num_attention_heads // config.num_key_value_heads
    for projection, number, values in ((attention.q_proj, head, query), (attention.k_proj, head // groups, key)):
        heads = projection.bias.view(-1, len(values))
        heads[number] = values.to(heads.dtype)
