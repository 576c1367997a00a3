"""Attention heads that look a given distance behind from the start: initial values of query and key biases.

Between a query at position p and a key at position q, rotary attention adds up, over the pairs of a head's dimensions,
products that turn with (p - q) times the pair's frequency. Biases enter every one of them, so with the right ones the
score holds a sum of cosines that has its peak where p - q is the offset that was asked for, and training goes on from
there. They are ordinary biases: what is saved, loaded or adapted need not know where they come from.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from arcft.errors import ModelError


@torch.no_grad()
def set_positional_kernels(model: PreTrainedModel) -> None:
    """Set the biases that `positional_kernels` in the config of `model` asks for; nothing where there is no such entry.

    It is a list of {"layer": from 0, "head": from 0, "offset": in positions}, with `positional_kernel_strength`, the
    size of the bias in each pair of dimensions. The layout is that of Llama and its kin: dimension i of a head is
    turned together with dimension i + head_dim / 2. Raises ModelError where the model has no such head or biases.
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
    # The key's pairs point one way; the query's are turned back by what the key's are turned less, at that distance.
    key = strength * torch.cat([torch.ones_like(angles), torch.zeros_like(angles)])
    query = strength * torch.cat([angles.cos(), -angles.sin()])
    groups = config.num_attention_heads // config.num_key_value_heads
    for projection, number, values in ((attention.q_proj, head, query), (attention.k_proj, head // groups, key)):
        heads = projection.bias.view(-1, len(values))
        heads[number] = values.to(heads.dtype)
