"""Slots hold what transformers' own cache holds for each row by itself, whatever stands beside it."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, MambaConfig, MistralConfig, PreTrainedConfig, Qwen2Config
from transformers.cache_utils import DynamicLayer

from arcft.decoding.core.kv_cache import GROWTH, SlotCache, SlotLayer, Span
from arcft.errors import DecodingError

HEADS, SIZE = 2, 4


def states(generator: torch.Generator, rows: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    keys, values = torch.randn(2, rows, HEADS, tokens, SIZE, generator=generator)
    return keys, values


def span(first: int, starts: list[int], tokens: int) -> Span:
    columns = torch.tensor(starts)[:, None] + torch.arange(tokens)
    return Span(first, starts, tokens, None if len(set(starts)) == 1 else columns)


def test_each_row_holds_what_a_cache_of_its_own_holds() -> None:
    generator = torch.Generator().manual_seed(0)
    layer = SlotLayer(5)
    plain = [DynamicLayer() for _ in range(5)]
    # First slot, columns, tokens in the pass, and how many of them each row keeps.
    passes: list[tuple[int, list[int], int, list[int]]] = [
        (0, [0, 0, 0], 7, [7, 5, 3]),
        (0, [7, 5, 3], 4, [4, 1, 2]),
        (3, [0, 0], 2, [2, 2]),
        (1, [6, 5, 2, 2], GROWTH, [GROWTH, 3, GROWTH, 1]),
        (0, [11], GROWTH, [9]),
        (3, [GROWTH + 2], 1, [1]),
    ]
    for first, starts, tokens, kept in passes:
        new = states(generator, len(starts), tokens)
        layer.span = span(first, starts, tokens)
        assert layer.get_seq_length() == starts[0]
        found = layer.update(*new)
        for row, (start, count) in enumerate(zip(starts, kept, strict=True)):
            whole = plain[first + row].update(*(state[row : row + 1] for state in new))
            for own, expected in zip(found, whole, strict=True):
                assert torch.equal(own[row : row + 1, :, : start + tokens], expected)
            plain[first + row].crop(count - tokens)


def test_a_copy_holds_the_first_columns_and_goes_its_own_way() -> None:
    generator = torch.Generator().manual_seed(0)
    cache = SlotCache(LlamaConfig(num_hidden_layers=2), 3)
    new = [states(generator, 2, 6) for _ in range(2)]
    cache.begin(span(0, [0, 0], 6))
    for number, own in enumerate(new):
        cache.update(*own, number)
    cache.copy(1, 2, 4)
    cache.copy(1, 1, 4)
    more = states(generator, 2, 2)
    cache.begin(span(1, [6, 4], 2))
    for number, (keys, values) in enumerate(new):
        for found, old, added in zip(cache.update(*more, number), (keys, values), more, strict=True):
            assert torch.equal(found[0], torch.cat([old[1], added[0]], dim=1))
            assert torch.equal(found[1, :, :6], torch.cat([old[1, :, :4], added[1]], dim=1))


def test_a_step_does_not_copy_what_came_before() -> None:
    layer = SlotLayer(1)
    places = set()
    for column in range(GROWTH + 1):
        layer.span = span(0, [column], 1)
        keys, _ = layer.update(torch.ones(1, HEADS, 1, SIZE), torch.ones(1, HEADS, 1, SIZE))
        assert keys.shape[2] == column + 1
        places.add(layer.buffers[0].data_ptr())
    assert len(places) == 1


def test_what_was_never_written_is_finite() -> None:
    """It is multiplied by zero, and zero times infinity is no number."""
    layer = SlotLayer(2)
    layer.span = span(0, [GROWTH + 1, 3], 1)
    for found in layer.update(torch.ones(2, HEADS, 1, SIZE), torch.ones(2, HEADS, 1, SIZE)):
        assert found.isfinite().all()


def test_keys_are_kept_as_attention_takes_them() -> None:
    layer = SlotLayer(1)
    layer.span = span(0, [0], 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        keys, values = layer.update(torch.ones(1, HEADS, 2, SIZE), torch.ones(1, HEADS, 2, SIZE).bfloat16())
    assert keys.dtype == values.dtype == layer.buffers[0].dtype == layer.buffers[1].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("config", "sliding", "window"),
    [
        (LlamaConfig(num_hidden_layers=2), [False, False], None),
        (MistralConfig(num_hidden_layers=2, sliding_window=6), [True, True], 6),
        (
            Qwen2Config(num_hidden_layers=2, use_sliding_window=True, sliding_window=6, max_window_layers=1),
            [False, True],
            6,
        ),
    ],
)
def test_it_knows_which_layers_look_back_a_window_only(
    config: PreTrainedConfig, sliding: list[bool], window: int | None
) -> None:
    cache = SlotCache(config, 1)
    assert (cache.sliding, cache.window) == (sliding, window)
    assert cache.is_sliding == [False, False]


def test_a_model_that_keeps_a_state_of_its_own_is_refused() -> None:
    with pytest.raises(DecodingError, match=r"a model of type mamba does not cache plain keys and values"):
        SlotCache(MambaConfig(num_hidden_layers=2), 1)
