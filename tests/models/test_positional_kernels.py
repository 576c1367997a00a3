"""The bundled model's rotary frequencies are the waves of a grid; some of its heads look a given distance behind."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, PreTrainedModel

from arcft.config.model import ModelConfig
from arcft.errors import ModelError
from arcft.models.bundled import ASSETS
from arcft.models.load import draw_random_model, load_model

KERNELS = [(0, 0, 1), (0, 1, 32), (0, 2, 1024), (0, 3, 1023), (0, 4, 31)]
KERNELS += [(1, 0, 1023), (1, 1, 1024), (1, 2, 31), (1, 3, 992), (1, 4, 2047), (2, 0, 1023), (2, 1, 2047)]
TINY = ModelConfig(name="tiny", path="bundled:tiny", init="random", attn_implementation="eager")


@functools.cache
def biases_only() -> PreTrainedModel:
    """Queries and keys that are the same for every token."""
    model = draw_random_model(TINY)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.zero_()
            layer.self_attn.k_proj.weight.zero_()
    return model.eval()


def test_frequencies() -> None:
    model: Any = draw_random_model(TINY)
    rotary = model.model.rotary_emb
    periods = [
        *(32 / k for k in (1, 2, 4, 8, 13)),
        *(1024 / k for k in (1, 2, 4, 8, 13)),
        *(32768 / k for k in (1, 2, 4, 8, 16)),
        2**22,
    ]
    expected = torch.tensor([2 * math.pi / period for period in periods])
    assert rotary.inv_freq == pytest.approx(expected, rel=2e-7)
    assert rotary.attention_scaling == 1.0
    # Nothing changes with the length of a text, not even beyond all that the model is meant for.
    before = rotary.inv_freq.clone()
    for last in (10, 65_535, 70_000):
        rotary(torch.zeros(1), torch.tensor([[0, last]]))
        assert torch.equal(rotary.inv_freq, before)


@pytest.mark.parametrize(("layer", "head", "offset"), KERNELS)
@settings(max_examples=20, deadline=None)
@given(
    place=st.integers(2047, 30_000),
    others=st.sets(st.integers(0, 2047), min_size=1, max_size=40),
)
def test_a_head_looks_where_its_kernel_says(layer: int, head: int, offset: int, place: int, others: set[int]) -> None:
    distances = sorted({*others, offset, 0}, reverse=True)
    ids = torch.full((1, len(distances)), 5)
    outputs = biases_only()(
        input_ids=ids,
        position_ids=torch.tensor([[place - distance for distance in distances]]),
        attention_mask=torch.ones_like(ids),
        output_attentions=True,
    )
    attention = outputs.attentions[layer][0, head, -1]  # [distances]
    assert distances[int(attention.argmax())] == offset
    highest, *next_ones = attention.sort(descending=True).values.tolist()
    assert highest > 1.5 * next_ones[0]


def test_other_heads_have_no_kernel_and_the_config_says_which_have() -> None:
    config: Any = AutoConfig.from_pretrained(ASSETS / "tiny")
    assert [(entry["layer"], entry["head"], entry["offset"]) for entry in config.positional_kernels] == KERNELS
    model: Any = draw_random_model(TINY)
    for number, layer in enumerate(model.model.layers):
        for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj):
            used = {head for at, head, _ in KERNELS if at == number}
            assert {head for head, bias in enumerate(projection.bias.view(5, 32)) if bias.any()} == used


def test_stored_weights_are_taken_as_they_are(tmp_path: Path) -> None:
    model: Any = draw_random_model(TINY)
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.bias.fill_(0.25)
    model.save_pretrained(tmp_path)
    again: Any = load_model(
        ModelConfig(name="again", path=str(tmp_path)), dtype=torch.float32, device=torch.device("cpu")
    )
    assert again.config.positional_kernels == model.config.positional_kernels
    weights, expected = again.state_dict(), model.state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in weights)


def test_grouped_heads_share_their_key(tmp_path: Path) -> None:
    changed = settings_of(num_attention_heads=4, hidden_size=128, num_key_value_heads=2)
    changed["positional_kernels"] = [{"layer": 0, "head": 3, "offset": 7}]
    (tmp_path / "config.json").write_text(json.dumps(changed), encoding="utf-8")
    model: Any = draw_random_model(ModelConfig(name="grouped", path=str(tmp_path), init="random"))
    attention = model.model.layers[0].self_attn
    assert [bool(bias.any()) for bias in attention.q_proj.bias.view(4, 32)] == [False, False, False, True]
    assert [bool(bias.any()) for bias in attention.k_proj.bias.view(2, 32)] == [False, True]


@pytest.mark.parametrize(
    "changes",
    [
        {"attention_bias": False},
        {"positional_kernels": [{"layer": 5, "head": 0, "offset": 1}]},
        {"positional_kernels": [{"layer": 0, "head": 5, "offset": 1}]},
        {"positional_kernels": [{"layer": 0, "head": 0}]},
        {"positional_kernel_strength": None},
    ],
)
def test_kernels_without_a_place_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(settings_of(**changes)), encoding="utf-8")
    with pytest.raises(ModelError, match=r"positional_kernels in the model's config.json: \{'layer': \d, "):
        draw_random_model(ModelConfig(name="changed", path=str(tmp_path), init="random"))


def settings_of(**changes: Any) -> dict[str, Any]:
    """What tiny's config.json says, with `changes`."""
    return json.loads((ASSETS / "tiny" / "config.json").read_text(encoding="utf-8")) | changes
