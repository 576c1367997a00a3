"""A key-value cache with a slot for each sequence, each filled to its own length.

A forward pass writes where each row's own text ends. So rows of different lengths need no padding in front, a row is
truncated by overwriting its end, and a sequence that ends leaves its slot to another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from arcft.errors import DecodingError

GROWTH = 128
"""Columns allocated ahead, so that the cache is reallocated and copied only once per this many tokens."""


class Span:
    """Where a forward pass writes: `tokens` columns of each slot from `first` on, starting at its column in `starts`.

    The slots are adjacent, and `starts` has one entry for each.
    """

    def __init__(self, first: int, starts: Sequence[int], tokens: int, columns: torch.Tensor | None) -> None:
        """`columns` are all columns written, int64 [rows, tokens] on the device; None if all rows start in the same
        one."""
        self.slots = slice(first, first + len(starts))
        self.start = starts[0]
        self.tokens = tokens
        self.width = max(starts) + tokens
        """Columns that the pass attends to."""
        self.columns = columns
        self.rows = None if columns is None else torch.arange(len(starts), device=columns.device)[:, None]


class SlotLayer(DynamicLayer):
    """Keys and values of one layer, each [slots, heads, columns, head size].

    Entries beyond a row's text are finite but arbitrary; an attention mask has to hide them.
    """

    span: Span
    """Where the next pass writes."""

    def __init__(self, slots: int) -> None:
        super().__init__()
        self.slots = slots
        self.buffers: list[torch.Tensor] = []

    def get_seq_length(self) -> int:
        """Columns before the pass; transformers makes masks by it where all rows start in the same column."""
        return self.span.start

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **options: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write `key_states` and `value_states` [rows, heads, tokens, head size]; return all keys and values that the
        pass attends to, each [rows, heads, width, head size]."""
        kind = key_states.device.type
        if torch.is_autocast_enabled(kind):
            # In the dtype of attention, which would otherwise convert the whole cache in every pass.
            dtype = torch.get_autocast_dtype(kind)
            key_states, value_states = key_states.to(dtype), value_states.to(dtype)
        span = self.span
        if not self.buffers or self.buffers[0].shape[2] < span.width:
            self.buffers = [self._grown(0, key_states), self._grown(1, value_states)]
        keys, values = self.buffers[0][span.slots], self.buffers[1][span.slots]
        if span.columns is None:
            keys[:, :, span.start : span.width] = key_states
            values[:, :, span.start : span.width] = value_states
        else:
            keys.transpose(1, 2)[span.rows, span.columns] = key_states.transpose(1, 2)
            values.transpose(1, 2)[span.rows, span.columns] = value_states.transpose(1, 2)
        if span.width == span.tokens:
            return key_states, value_states
        return keys[:, :, : span.width], values[:, :, : span.width]

    def copy(self, source: int, target: int, columns: int) -> None:
        """See SlotCache.copy."""
        for buffer in self.buffers:
            buffer[target, :, :columns] = buffer[source, :, :columns]

    def _grown(self, number: int, states: torch.Tensor) -> torch.Tensor:
        _, heads, _, size = states.shape
        filled = self.buffers[number].shape[2] if self.buffers else 0
        buffer = states.new_empty(self.slots, heads, self.span.width + GROWTH, size)
        # Masked entries still enter the attention product, where a NaN in fresh memory would spread.
        buffer[:, :, filled:] = 0
        if filled:
            buffer[:, :, :filled] = self.buffers[number]
        return buffer


class SlotCache(DynamicCache):
    """The cache of a model; call `begin` before each forward pass."""

    layers: list[SlotLayer]  # type: ignore[assignment]

    def __init__(self, config: PreTrainedConfig, slots: int) -> None:
        """Allocate nothing yet. Raise DecodingError for a model whose cache is more than keys and values of its tokens
        (state-space layers, chunked attention)."""
        super().__init__(config=config)
        text_config: Any = config.get_text_config(decoder=True)
        chunked = getattr(text_config, "attention_chunk_size", None) is not None
        kinds = {type(layer) for layer in self.layers}
        if chunked or not kinds <= {DynamicLayer, DynamicSlidingWindowLayer}:
            names = ", ".join(sorted(kind.__name__ for kind in kinds))
            raise DecodingError(
                f"a model of type {text_config.model_type} does not cache plain keys and values ({names}), so its rows "
                "can't have different lengths; decode goes through transformers' generate"
            )
        self.sliding = [isinstance(layer, DynamicSlidingWindowLayer) for layer in self.layers]
        """For each layer, whether it attends to the last `window` tokens only."""
        self.window: int | None = text_config.sliding_window if any(self.sliding) else None
        self.layers = [SlotLayer(slots) for _ in self.layers]

    def begin(self, span: Span) -> None:
        """Say where the next forward pass writes."""
        for layer in self.layers:
            layer.span = span

    def copy(self, source: int, target: int, columns: int) -> None:
        """Copy the first `columns` columns of slot `source` to slot `target`."""
        if source != target:
            for layer in self.layers:
                layer.copy(source, target, columns)
