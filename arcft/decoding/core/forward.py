"""Forward passes over some slots of a cache: a chunk of tokens for each row, in rows of different lengths."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from arcft.decoding.core.kv_cache import SlotCache, Span
from arcft.decoding.core.lm_head import AllowedTokens, Head, NextTokenLogits

_MOST_ON_CPU, _MOST = 2**12, 2**16
"""Tokens in a pass, with padding, from which it had better be divided. On a CPU what lies between two layers is then
allocated anew by every operation: the bundled model reads 8 prompts of 800 tokens in 5 to 25% less time in two passes
than in one. Elsewhere it would fill the memory."""


@dataclasses.dataclass(slots=True)
class TokenChunk:
    """What a row is fed next."""

    tokens: list[int]
    start: int
    """The column of the first of them: how many of the row's tokens were fed before."""

    places: list[int]
    """The positions of the tokens."""

    asked: list[int]
    """After which of the tokens, by place in the chunk, it is asked what comes next."""

    choices: list[AllowedTokens] | None = None
    """The tokens that may come there; None for all."""

    given: list[int] = dataclasses.field(default_factory=list)
    """The tokens that do come there, where that is known."""


class ForwardRunner:
    """Runs `model` over the slots of a cache.

    Shorter chunks are padded at their end. What padding writes lies beyond the row's text, where nothing looks before
    it is overwritten. `route` is told which prompts the rows of a pass hold whenever they are others than before.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        slots: int,
        *,
        pad_id: int,
        route: Callable[[Sequence[int]], None] | None = None,
    ) -> None:
        self.cache = SlotCache(model.config, slots)
        self._head = Head(model)
        self._model = model
        self._device = model.device
        self.most_tokens = _MOST_ON_CPU if self._device.type == "cpu" else _MOST
        """For prompts, which take more than one pass beyond it; a single one is never divided for it."""
        self._takes_additive_mask = model.config._attn_implementation == "eager"
        self._pad_id = pad_id
        self._route = route
        self._told: list[int] = []

    def run(self, first: int, prompts: Sequence[int], chunks: Sequence[TokenChunk]) -> NextTokenLogits:
        """Feed `chunks` to the slots from `first` on, which hold these prompts."""
        if self._route is not None and self._told != list(prompts):
            self._told = list(prompts)
            self._route(self._told)
        lengths = [len(chunk.tokens) for chunk in chunks]
        tokens, starts = max(lengths), [chunk.start for chunk in chunks]
        input_ids, places = [chunk.tokens for chunk in chunks], [chunk.places for chunk in chunks]
        if min(lengths) < tokens:
            input_ids = [[*own, *[self._pad_id] * (tokens - len(own))] for own in input_ids]
            places = [[*own, *own[-1:] * (tokens - len(own))] for own in places]
        elif all(own == places[0] for own in places):
            places = places[:1]
        columns = mask = None
        level = min(starts) == max(starts)
        if not level or (tokens > 1 and starts[0] > 0):
            # All rows at one column need one mask.
            begins = torch.tensor(starts[:1] if level else starts, device=self._device)
            columns = begins[:, None] + torch.arange(tokens, device=self._device)
            mask = self._masks(columns, max(starts) + tokens)
        self.cache.begin(Span(first, starts, tokens, None if level else columns))
        arguments = {
            "input_ids": torch.tensor(input_ids, device=self._device),
            "position_ids": torch.tensor(places, device=self._device),
            # Without one, each row is whole, or one token sees all: transformers knows what to do.
            "attention_mask": mask,
            "past_key_values": self.cache,
            "use_cache": True,
        }
        choices = None if chunks[0].choices is None else [chunk.choices or [] for chunk in chunks]
        return self._head(arguments, [chunk.asked for chunk in chunks], choices)

    def _masks(self, columns: torch.Tensor, width: int) -> torch.Tensor | dict[str, torch.Tensor]:
        """Which of the first `width` columns the token in each of `columns` [rows, tokens] looks at, [rows, 1, tokens,
        width]; two such masks by name where some layers look back a window only."""
        own = columns[:, None, :, None]
        there = torch.arange(width, device=columns.device)
        seen = there <= own
        if self.cache.window is None:
            return self._mask(seen)
        near = self._mask(seen & (there > own - self.cache.window))
        if all(self.cache.sliding):
            return near
        return {"full_attention": self._mask(seen), "sliding_attention": near}

    def _mask(self, seen: torch.Tensor) -> torch.Tensor:
        if not self._takes_additive_mask:
            return seen
        dtype = self._model.dtype
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, torch.finfo(dtype).min)
