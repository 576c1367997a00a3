"""Forward passes over slots of the cache: each row is fed a chunk of tokens at its own length."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from arcft.decoding.core.kv_cache import SlotCache, Span
from arcft.decoding.core.lm_head import AllowedTokens, Head, NextTokenLogits
from arcft.decoding.options import RowsChanged

_MAX_TOKENS_ON_CPU, _MAX_TOKENS = 2**12, 2**16
"""Tokens per prefill pass, padding included. On a CPU activations between layers are allocated anew by every operation:
the bundled model prefills 8 prompts of 800 tokens in 5 to 25% less time in two passes than in one. On a GPU larger
passes would fill the memory."""


@dataclasses.dataclass(slots=True)
class TokenChunk:
    """What one row feeds into a forward pass."""

    tokens: list[int]
    start: int
    """Cache column of the first token: how many of the row's tokens are cached."""

    positions: list[int]
    """Position id of each token."""

    logits_at: list[int]
    """Indices into `tokens` after which next-token logits are wanted."""

    allowed: list[AllowedTokens] | None = None
    """The allowed next tokens for each of `logits_at`; None for the whole vocabulary."""

    targets: list[int] = dataclasses.field(default_factory=list)
    """The next token for each of `logits_at`, where the completion is known."""


class ForwardRunner:
    """Runs a model over slots of its cache.

    Shorter chunks are padded at their end. Padding writes keys and values beyond the row's text, where no later pass
    attends before they are overwritten.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        slots: int,
        *,
        pad_id: int,
        on_rows_changed: RowsChanged | None = None,
    ) -> None:
        self.cache = SlotCache(model.config, slots)
        self._head = Head(model)
        self._model = model
        self._device = model.device
        self.max_prefill_tokens = _MAX_TOKENS_ON_CPU if self._device.type == "cpu" else _MAX_TOKENS
        """Prompts beyond this are prefilled in several passes. A single prompt is never split for it."""
        self._takes_additive_mask = model.config._attn_implementation == "eager"
        self._pad_id = pad_id
        self._on_rows_changed = on_rows_changed
        self._prompts: list[int] = []

    def run(self, first: int, prompts: Sequence[int], chunks: Sequence[TokenChunk]) -> NextTokenLogits:
        """Feed `chunks` to the slots from `first` on; `prompts` are the prompt indices of their rows."""
        if self._on_rows_changed is not None and self._prompts != list(prompts):
            self._prompts = list(prompts)
            self._on_rows_changed(self._prompts)
        lengths = [len(chunk.tokens) for chunk in chunks]
        tokens, starts = max(lengths), [chunk.start for chunk in chunks]
        input_ids, positions = [chunk.tokens for chunk in chunks], [chunk.positions for chunk in chunks]
        if min(lengths) < tokens:
            input_ids = [[*own, *[self._pad_id] * (tokens - len(own))] for own in input_ids]
            positions = [[*own, *own[-1:] * (tokens - len(own))] for own in positions]
        elif all(own == positions[0] for own in positions):
            positions = positions[:1]
        columns = mask = None
        aligned = min(starts) == max(starts)
        if not aligned or (tokens > 1 and starts[0] > 0):
            # Rows that start in the same column share one mask.
            begins = torch.tensor(starts[:1] if aligned else starts, device=self._device)
            columns = begins[:, None] + torch.arange(tokens, device=self._device)
            mask = self._masks(columns, max(starts) + tokens)
        self.cache.begin(Span(first, starts, tokens, None if aligned else columns))
        arguments = {
            "input_ids": torch.tensor(input_ids, device=self._device),
            "position_ids": torch.tensor(positions, device=self._device),
            # None where transformers makes the right mask itself: whole prompts, or one token that attends to all.
            "attention_mask": mask,
            "past_key_values": self.cache,
            "use_cache": True,
        }
        allowed = None if chunks[0].allowed is None else [chunk.allowed or [] for chunk in chunks]
        return self._head(arguments, [chunk.logits_at for chunk in chunks], allowed)

    def _masks(self, columns: torch.Tensor, width: int) -> torch.Tensor | dict[str, torch.Tensor]:
        """Attention masks [rows, 1, tokens, width] for tokens in `columns` (int64 [rows, tokens]) of a cache of
        `width` columns; two masks by name where only some layers have a sliding window."""
        own = columns[:, None, :, None]
        keys = torch.arange(width, device=columns.device)
        visible = keys <= own
        if self.cache.window is None:
            return self._mask(visible)
        near = self._mask(visible & (keys > own - self.cache.window))
        if all(self.cache.sliding):
            return near
        return {"full_attention": self._mask(visible), "sliding_attention": near}

    def _mask(self, visible: torch.Tensor) -> torch.Tensor:
        """`visible` (bool, true where a query attends) as the model's attention takes it."""
        if not self._takes_additive_mask:
            return visible
        dtype = self._model.dtype
        return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(
            ~visible, torch.finfo(dtype).min
        )
