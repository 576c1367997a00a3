"""Attention while decoding equals the plain formula, and is what a model computes with then."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from arcft.decoding.core import attention
from arcft.decoding.core.attention import decoding_attention, grouped_attention
from arcft.models.folded_attention import NAME as FOLDED
from arcft.models.folded_attention import use_folded_attention
from tests.decoding.test_decoder import PAD, SIZES, generated, make_model, many_prompts
from tests.support.decoding import decode


def plain(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """[batch, queries, heads, size], in float64."""
    query, key, value = query.double(), key.double(), value.double()
    group = query.shape[1] // key.shape[1]
    scores = query @ key.repeat_interleave(group, dim=1).mT / math.sqrt(query.shape[-1])
    if mask is None and query.shape[2] > 1:
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return (scores.softmax(dim=-1) @ value.repeat_interleave(group, dim=1)).transpose(1, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "key_heads"), [(5, 5), (9, 3), (14, 2), (4, 1)])
@pytest.mark.parametrize("length", [1, 2, 3, 8, 24])
@pytest.mark.parametrize("masked", ["rows", "one for all", "none"])
def test_it_is_attention(dtype: torch.dtype, heads: int, key_heads: int, length: int, masked: str) -> None:
    generator = torch.Generator().manual_seed(0)
    batch, columns, size = 3, 40, 16
    mask = None
    if masked == "none":
        columns = columns if length == 1 else length
    else:
        starts = torch.tensor([[7], [16], [0]] if masked == "rows" else [[9]])
        mask = (torch.arange(columns) <= (starts + torch.arange(length))[:, :, None])[:, None]
    query = torch.randn(batch, length, heads, size, generator=generator).to(dtype).transpose(1, 2)
    room = torch.randn(2, batch, key_heads, 64, size, generator=generator).to(dtype)
    key, value = room[0, :, :, :columns], room[1, :, :, :columns]
    module = torch.nn.Module()
    module.num_key_value_groups = heads // key_heads  # type: ignore[assignment]
    with torch.inference_mode():
        output, _ = grouped_attention(module, query, key, value, mask)
    tolerance = 1e-5 if dtype == torch.float32 else 0.03
    assert torch.allclose(output.double(), plain(query, key, value, mask), atol=tolerance)


def grouped_model(dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The heads of SmolLM2-135M: nine on three."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        sizes = SIZES | {"hidden_size": 72, "num_attention_heads": 9, "num_key_value_heads": 3}
        return LlamaForCausalLM(LlamaConfig(**sizes)).eval().to(dtype)  # type: ignore[call-arg]


@pytest.mark.parametrize("folded", [False, True])
def test_a_model_computes_with_it_only_meanwhile(monkeypatch: pytest.MonkeyPatch, folded: bool) -> None:
    model = grouped_model()
    if folded:
        use_folded_attention(model)
    shapes: list[tuple[int, int]] = []

    def watched(module: torch.nn.Module, query: torch.Tensor, *args: object, **options: object) -> object:
        shapes.append((query.shape[1], query.shape[2]))
        return grouped_attention(module, query, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(attention, "grouped_attention", watched)
    before = model.config._attn_implementation
    assert before == (FOLDED if folded else "sdpa")
    prompts = [[1, 2, 3], [4]]
    expected = generated(model, prompts, 9, [])
    assert shapes == []
    completions = decode(model, prompts, max_new_tokens=9, end_ids=[], pad_id=PAD)
    assert shapes == 3 * [(9, 3)] + 8 * 3 * [(9, 1)]
    assert model.config._attn_implementation == before
    assert [completion.token_ids for completion in completions] == expected


def test_an_error_puts_it_back() -> None:
    model = grouped_model()

    def fail() -> None:
        with decoding_attention(model):
            assert model.config._attn_implementation == attention.NAME
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert model.config._attn_implementation == "sdpa"


def test_eager_stays_eager() -> None:
    model = make_model("llama_eager")
    with decoding_attention(model):
        assert model.config._attn_implementation == "eager"


def test_in_bfloat16_few_tokens_depend_on_the_shape_of_a_pass() -> None:
    model, prompts = grouped_model(torch.bfloat16), many_prompts()
    options: dict[str, Any] = {"max_new_tokens": 30, "end_ids": [], "pad_id": PAD}
    steps = [completion.token_ids for completion in decode(model, prompts, **options)]
    others: list[dict[str, Any]] = [
        {"draft_tokens": steps},
        {"batch_size": 1, "share_prefixes": False},
        {"batch_size": 3},
    ]
    decided = different = 0
    for own in others:
        for completion, expected in zip(decode(model, prompts, **options, **own), steps, strict=True):
            pairs = zip(completion.token_ids, expected, strict=True)
            # Behind the first difference, two texts have nothing to do with each other.
            same = next((place for place, (one, other) in enumerate(pairs) if one != other), None)
            decided += 30 if same is None else same + 1
            different += same is not None
    # The weights are random, and of 100 tokens rounding decides one or two.
    assert decided > 500
    assert different <= 0.04 * decided
