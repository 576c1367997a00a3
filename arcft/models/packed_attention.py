"""Packing: examples side by side in one row, without padding, each attending to itself only.

Attention goes example by example: on a GPU in one call of torch's flash attention for sequences of different lengths,
on a CPU in a call for each. Models whose examples would see each other all the same (in a recurrent state, a
convolution, a mask of their own) are told apart by `packs`.
"""

from __future__ import annotations

import contextlib
import contextvars
import itertools
from collections.abc import Callable, Iterator, Sequence
from inspect import signature
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import and_masks, causal_mask_function, packed_sequence_mask_function, sdpa_mask

from arcft.memory import is_out_of_memory
from arcft.models import folded_attention
from arcft.models.base_model import base_model
from arcft.models.families import known_packing
from arcft.models.measuring import random_texts, relative_error, tolerance_of

try:
    from torch.nn.attention import varlen
except ImportError:
    varlen = None  # type: ignore[assignment]

NAME = "arcft_packed"
"""Its name as `attn_implementation`."""

OURS = ("sdpa", folded_attention.NAME, NAME)
"""Implementations that it can stand in for."""

FLASH = ("flash_attention_2", "flash_attention_3")

_LENGTHS = (33, 20, 27)
_LARGEST_HEAD = 256
"""Of torch's flash attention."""


_lengths: contextvars.ContextVar[tuple[int, ...] | None] = contextvars.ContextVar("lengths", default=None)


def use_packed_attention(model: PreTrainedModel | PeftModel) -> None:
    """Switch sdpa attention to ours, which does the same for rows that are not packed."""
    if model.config._attn_implementation in OURS:
        AttentionInterface.register(NAME, packed_attention)
        AttentionMaskInterface.register(NAME, packed_mask)
        base_model(model).set_attn_implementation(NAME)


@contextlib.contextmanager
def packed(model: Any, lengths: Sequence[int] | None) -> Iterator[dict[str, Any]]:
    """Within this context, a forward pass of one row takes it for examples of these lengths; None for padded rows.

    Yields what the pass needs besides `input_ids` and `position_ids`.
    """
    if lengths is None:
        yield {}
        return
    implementation = model.config._attn_implementation
    if implementation in FLASH:
        ends = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device=model.device)
        longest = max(lengths)
        yield {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}
        return
    token = _lengths.set(tuple(lengths))
    try:
        # flex attention cuts where positions restart, which it looks for only where there is no mask.
        ones = torch.ones(1, sum(lengths), dtype=torch.int64, device=model.device)
        yield {"attention_mask": ones} if implementation == NAME else {}
    finally:
        _lengths.reset(token)


def packed_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    mask_function: Callable[..., Any] = causal_mask_function,
    local_size: int | None = None,
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
    **options: Any,
) -> torch.Tensor | None:
    """The mask as transformers' AttentionMaskInterface asks for it.

    Within `packed`, the ends of the examples, int32 [examples + 1], where each attends to all of itself; if windows or
    special tokens cut it further, bool [1, 1, length, length].
    """
    lengths = _lengths.get()
    others = dict(options, local_size=local_size, use_vmap=use_vmap, device=device)
    if lengths is None or q_length != sum(lengths) or q_length != kv_length or batch_size != 1:
        return sdpa_mask(
            batch_size=batch_size, q_length=q_length, kv_length=kv_length, mask_function=mask_function, **others
        )
    is_plain = mask_function is causal_mask_function or (local_size is not None and max(lengths) <= local_size)
    if is_plain and not use_vmap:
        ends = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device=device)
        ends.lengths = lengths  # type: ignore[attr-defined]
        return ends
    numbers = torch.arange(len(lengths), device=device)
    owners = numbers.repeat_interleave(torch.tensor(lengths, device=device), output_size=q_length)[None]
    inside = and_masks(mask_function, packed_sequence_mask_function(owners))
    others |= {"local_size": None, "allow_is_causal_skip": False}
    return sdpa_mask(batch_size=1, q_length=q_length, kv_length=kv_length, mask_function=inside, **others)


# Compiled, its loops would be unrolled for every number of examples.
@torch.compiler.disable
def packed_attention(
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
    """Attention as transformers' AttentionInterface calls it; see folded_attention for the shapes.

    With the ends of examples as mask, within each example; otherwise like sdpa.
    """
    dtype = _dtype(query)
    # In float32 too it is faster, but what is not packed keeps the figures that it has always had.
    is_split = attention_mask is not None and attention_mask.dim() == 1
    folds = query.device.type == "cpu" and (dtype == torch.bfloat16 or (dtype == torch.float32 and is_split))
    attend = folded_attention.folded_attention if folds else sdpa_attention_forward
    if attention_mask is None or not is_split:
        return attend(module, query, key, value, attention_mask, dropout, scaling, is_causal, **options)
    lengths = getattr(attention_mask, "lengths", None) or attention_mask.diff().tolist()
    if not dropout and options.get("position_bias") is None and _varlen_works(query, value, dtype):
        return _varlen(query.to(dtype), key.to(dtype), value.to(dtype), attention_mask, max(lengths), scaling), None
    parts = zip(*(tensor.split(lengths, dim=2) for tensor in (query, key, value)), strict=True)
    outputs = [attend(module, q, k, v, None, dropout, scaling, True, **options)[0] for q, k, v in parts]
    return torch.cat(outputs, dim=1), None


def _varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    ends: torch.Tensor,
    longest: int,
    scaling: float | None,
) -> torch.Tensor:
    grouped = query.shape[1] != key.shape[1]
    query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    output = varlen.varlen_attn(
        query, key, value, ends, ends, longest, longest, scale=scaling, window_size=(-1, 0), enable_gqa=grouped
    )
    assert isinstance(output, torch.Tensor)
    return output[None]


def _varlen_works(query: torch.Tensor, value: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether torch's flash attention takes sequences of different lengths here, with all the arguments it needs."""
    if varlen is None or not query.is_cuda or dtype not in (torch.bfloat16, torch.float16):
        return False
    fits = query.shape[-1] == value.shape[-1] <= _LARGEST_HEAD
    # Its kernels begin with Ampere GPUs.
    is_new = torch.cuda.get_device_capability(query.device) >= (8, 0)
    needed = {"scale", "window_size", "enable_gqa"}
    return fits and is_new and needed <= signature(varlen.varlen_attn).parameters.keys()


def _dtype(tensor: torch.Tensor) -> torch.dtype:
    """The dtype that attention computes in."""
    kind = tensor.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else tensor.dtype


def packs(model: PreTrainedModel | PeftModel) -> bool:
    """Whether packed examples have the logits that each has alone: known by the architecture, or measured."""
    base = base_model(model)
    if not can_pack(base):
        return False
    own_code = not type(base).__module__.startswith("transformers.")
    known = None if own_code else known_packing(base.config)
    return measure_packing(base) if known is None else known


def can_pack(model: PreTrainedModel) -> bool:
    """Whether the model's attention is one that keeps packed examples apart."""
    return model.config._attn_implementation in (*OURS, *FLASH, "flex_attention")


def measure_packing(model: PreTrainedModel) -> bool:
    """`packs`, always measured. The model's attention is as before afterwards."""
    was_training, before = model.training, model.config._attn_implementation
    if not can_pack(model):
        return False
    model.eval()
    try:
        use_packed_attention(model)
        with torch.inference_mode():
            return _measure(model)
    # Each architecture fails in its own way where it is fed what it does not expect.
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return False
    finally:
        model.set_attn_implementation(before)
        model.train(was_training)


def _measure(model: PreTrainedModel) -> bool:
    texts = [torch.tensor([text], device=model.device) for text in random_texts(model.config, _LENGTHS)]
    lengths = [text.shape[1] for text in texts]
    positions = torch.cat([torch.arange(length) for length in lengths])[None].to(model.device)
    with packed(model, lengths) as inputs:
        together = model(input_ids=torch.cat(texts, dim=1), position_ids=positions, use_cache=False, **inputs).logits
    tolerance = tolerance_of(model.dtype)
    for text, found in zip(texts, together[0].split(lengths), strict=True):
        expected = model(input_ids=text, use_cache=False).logits[0]
        # A convolution looks back a few tokens only, so the first are compared by themselves.
        errors = (relative_error(found[:4], expected[:4]), relative_error(found, expected))
        if max(errors) > tolerance:
            return False
    return True
