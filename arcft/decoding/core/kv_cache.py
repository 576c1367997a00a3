"""A key-value cache with a row of room, a slot, for each sequence, each filled up to a length of its own.

What a pass adds is written where each row's own text ends, so rows of different lengths need no padding in front, a row
may be cut back by writing over its end, and a sequence that ends leaves its slot to another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from arcft.errors import DecodingError

ROOM = 128
"""Columns allocated ahead: one copy of the cache each so many tokens."""


class Span:
    """Where the tokens of a pass go: `tokens` of them to each of the slots from `first` on, from the columns `starts`
    [rows] on."""

    def __init__(self, first: int, starts: Sequence[int], tokens: int, columns: torch.Tensor | None) -> None:
        """`columns` [rows, tokens] on the device, where the rows do not all begin in the same one."""
        self.slots = slice(first, first + len(starts))
        self.start = starts[0]
        self.tokens = tokens
        self.width = max(starts) + tokens
        """Columns that the pass looks at."""
        self.columns = columns
        self.rows = None if columns is None else torch.arange(len(starts), device=columns.device)[:, None]


class SlotLayer(DynamicLayer):
    """Keys and values of a layer, each [slots, heads, columns, head size]; `span` says where the next pass writes.

    What lies right of a row's text is finite and not cleared: a mask has to keep a pass from looking there.
    """

    span: Span

    def __init__(self, slots: int) -> None:
        super().__init__()
        self.slots = slots
        self.rooms: list[torch.Tensor] = []

    def get_seq_length(self) -> int:
        """Columns before the pass, for masks that transformers makes where all rows begin in the same column."""
        return self.span.start

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **options: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        kind = key_states.device.type
        if torch.is_autocast_enabled(kind):
            # As attention would have them, at every pass anew.
            dtype = torch.get_autocast_dtype(kind)
            key_states, value_states = key_states.to(dtype), value_states.to(dtype)
        span = self.span
        if not self.rooms or self.rooms[0].shape[2] < span.width:
            self.rooms = [self._grown(0, key_states), self._grown(1, value_states)]
        keys, values = self.rooms[0][span.slots], self.rooms[1][span.slots]
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
        for room in self.rooms:
            room[target, :, :columns] = room[source, :, :columns]

    def _grown(self, number: int, states: torch.Tensor) -> torch.Tensor:
        _, heads, _, size = states.shape
        filled = self.rooms[number].shape[2] if self.rooms else 0
        room = states.new_empty(self.slots, heads, self.span.width + ROOM, size)
        room[:, :, filled:] = 0
        if filled:
            room[:, :, :filled] = self.rooms[number]
        return room


class SlotCache(DynamicCache):
    """Slots for a model; `begin` before each pass.

    Raises DecodingError for a model that keeps more of a text than keys and values of its tokens.
    """

    layers: list[SlotLayer]  # type: ignore[assignment]

    def __init__(self, config: PreTrainedConfig, slots: int) -> None:
        super().__init__(config=config)
        text_config: Any = config.get_text_config(decoder=True)
        chunked = getattr(text_config, "attention_chunk_size", None) is not None
        kinds = {type(layer) for layer in self.layers}
        if chunked or not kinds <= {DynamicLayer, DynamicSlidingWindowLayer}:
            names = ", ".join(sorted(kind.__name__ for kind in kinds))
            raise DecodingError(
                f"a model of type {text_config.model_type} does not keep plain keys and values of what it has read "
                f"({names}), so its rows can't be of different lengths; use inference=generate"
            )
        self.sliding = [isinstance(layer, DynamicSlidingWindowLayer) for layer in self.layers]
        """Whether each layer looks at no more than the last `window` tokens."""
        self.window: int | None = text_config.sliding_window if any(self.sliding) else None
        self.layers = [SlotLayer(slots) for _ in self.layers]

    def begin(self, span: Span) -> None:
        for layer in self.layers:
            layer.span = span

    def copy(self, source: int, target: int, columns: int) -> None:
        """Fill the first `columns` columns of slot `target` with those of slot `source`."""
        if source != target:
            for layer in self.layers:
                layer.copy(source, target, columns)
