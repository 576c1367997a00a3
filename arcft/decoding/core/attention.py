"""Attention for one or a few new tokens: query heads that share a key head are folded into queries of one head.

With a mask, transformers repeats keys and values for each query head, which takes longer than the attention itself. A
layer with 9 query heads and 3 key heads, 8 rows at 700 columns, float32 on one core: one token takes 0.7 ms folded and
3.5 ms repeated, 16 tokens 4.5 and 18 ms; in bfloat16 one token takes 0.7 and 6.8 ms.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from arcft.models.folded_attention import folded_attention

NAME = "arcft_decoding"
"""Its name as `attn_implementation`."""

BLOCKWISE_FROM = 32
"""Queries per key head from which folded_attention, which works block by block, is faster in bfloat16 on a CPU."""


@contextlib.contextmanager
def decoding_attention(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Switch `model` to grouped attention while the context is open, unless it is eager or its attention is fixed."""
    config: Any = model.config
    before = config._attn_implementation
    if before == "eager" or not model._can_set_attn_implementation():
        yield
        return
    AttentionInterface.register(NAME, grouped_attention)
    # Without registered masks, padding would be attended to.
    AttentionMaskInterface.register(NAME, sdpa_mask)
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def grouped_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as transformers' AttentionInterface calls it.

    Args:
        module: The attention layer.
        query: [batch, heads, queries, head size].
        key: [batch, key heads, keys, head size].
        value: Like `key`.
        attention_mask: bool [batch or 1, 1, queries, keys], true where a query attends; None for causal attention.
        dropout: Passed on to other kernels; decoding has none.
        scaling: Factor of the scores; None for 1 / sqrt(head size).
        is_causal: Passed on to other kernels.
        options: Passed on to other kernels.

    Returns:
        The output [batch, queries, heads, head size], and None for the weights.
    """
    batch, heads, length, size = query.shape
    key_heads = key.shape[1]
    group = heads // key_heads
    slow = query.device.type == "cpu" and _dtype(query) == torch.bfloat16
    whole = attention_mask is None and length > 1
    unusual = options.get("position_bias") is not None or (attention_mask is not None and attention_mask.shape[1] > 1)
    if whole or unusual or (slow and group * length >= BLOCKWISE_FROM and group > 1):
        attend = folded_attention if slow else sdpa_attention_forward
        return attend(module, query, key, value, attention_mask, dropout, scaling, is_causal, **options)
    folded = query.reshape(batch, key_heads, group * length, size)
    if attention_mask is not None and group > 1:
        attention_mask = attention_mask.repeat(1, 1, group, 1)
    odd = slow and group * length in (1, 3)
    if odd:
        # torch's bfloat16 kernel takes more than twice as long for one row as for two; three are affected too.
        folded = torch.cat([folded, folded[:, :, -1:]], dim=2)
        if attention_mask is not None:
            attention_mask = torch.cat([attention_mask, attention_mask[:, :, -1:]], dim=2)
    output = scaled_dot_product_attention(folded, key, value, attn_mask=attention_mask, scale=scaling)
    if odd:
        output = output[:, :, :-1]
    return output.reshape(batch, heads, length, -1).transpose(1, 2).contiguous(), None


def _dtype(tensor: torch.Tensor) -> torch.dtype:
    """The dtype that attention computes in."""
    kind = tensor.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else tensor.dtype
