"""A key-value cache with room to grow, so that a decoding step does not copy everything before it."""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

ROOM = 128
"""Columns allocated ahead: one copy of the cache each so many tokens, instead of one a token."""


class RoomyLayer(DynamicLayer):
    """As DynamicLayer, but `keys` and `values` [batch, heads, tokens, head size] are the filled front of larger
    tensors. DynamicLayer joins old and new at every token; on a CPU that is a fifth of a small model's step.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.rooms: list[torch.Tensor] = []

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **options: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            # A prompt that only one token is asked of needs no room.
            return super().update(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        filled = self.keys.shape[-2]
        length = filled + key_states.shape[-2]
        # Where rows were selected since, keys and values are tensors of their own, and the rooms are out of date.
        stale = not self.rooms or self.rooms[0].data_ptr() != self.keys.data_ptr()
        if stale or length > self.rooms[0].shape[-2]:
            self.rooms = [_with_room(old, length + ROOM) for old in (self.keys, self.values)]
        for room, new in zip(self.rooms, (key_states, value_states), strict=True):
            room[..., filled:length, :] = new
        self.keys, self.values = (room[..., :length, :] for room in self.rooms)
        return self.keys, self.values


def _with_room(old: torch.Tensor, length: int) -> torch.Tensor:
    batch, heads, filled, size = old.shape
    room = old.new_empty(batch, heads, length, size)
    room[..., :filled, :] = old
    return room


def make_cache(config: PreTrainedConfig) -> DynamicCache:
    """An empty cache for a model of this `config`; layers with a window or a state of their own stay as they are."""
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
