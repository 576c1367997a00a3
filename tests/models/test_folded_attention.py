"""Folded attention is sdpa attention, rounding apart: outputs, gradients, padding, long contexts, single queries."""

from __future__ import annotations

import weakref

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from arcft.config.model import ModelConfig
from arcft.models import folded_attention
from arcft.models.folded_attention import BLOCK
from arcft.models.load import load_model
from tests.support.train_command import ARCHITECTURES

CPU = torch.device("cpu")


def model_of(architecture: str) -> PreTrainedModel:
    folded_attention.register()
    config = AutoConfig.from_pretrained(ARCHITECTURES / architecture)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=torch.float32)


def tokens(model: PreTrainedModel, rows: int, length: int) -> torch.Tensor:
    return torch.randint(0, model.config.vocab_size, (rows, length), generator=torch.Generator().manual_seed(1))


def logits_and_gradients(
    model: PreTrainedModel, implementation: str, ids: torch.Tensor, mask: torch.Tensor | None
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.set_attn_implementation(implementation)
    model.zero_grad()
    logits = model(ids, attention_mask=mask, use_cache=False).logits
    seen = logits if mask is None else logits[mask.bool()]
    seen.logsumexp(dim=-1).square().mean().backward()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    return seen.detach(), gradients


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_outputs_and_gradients_are_those_of_sdpa(architecture: str, padded: bool) -> None:
    model = model_of(architecture)
    ids = tokens(model, 3, 2 * BLOCK + 11)
    mask = torch.ones_like(ids)
    mask[0, :20] = 0
    mask[1, -5:] = 0
    logits, gradients = logits_and_gradients(model, folded_attention.NAME, ids, mask if padded else None)
    expected, expected_gradients = logits_and_gradients(model, "sdpa", ids, mask if padded else None)
    torch.testing.assert_close(logits, expected, atol=1e-6, rtol=1e-5)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[name], atol=1e-7, rtol=1e-4)


def attended(implementation: str, heads: int, key_heads: int, length: int, keys: int) -> list[torch.Tensor]:
    """Output and the three gradients for random input."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, heads, length, 16), (2, key_heads, keys, 16), (2, key_heads, keys, 16)]
    inputs = [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]
    module = torch.nn.Module()
    module.num_key_value_groups = heads // key_heads
    functions = {"folded": folded_attention.folded_attention, "sdpa": folded_attention.sdpa_attention_forward}
    output, _ = functions[implementation](module, *inputs, None)
    output.square().sum().backward()
    return [output.detach(), *(each.grad for each in inputs if each.grad is not None)]


@pytest.mark.parametrize(
    ("heads", "key_heads", "length", "keys"),
    [(9, 3, 5, 5), (4, 4, BLOCK, BLOCK), (4, 1, BLOCK + 1, BLOCK + 1), (6, 2, 1, 40), (2, 1, 1030, 1030)],
)
def test_any_grouping_and_length(heads: int, key_heads: int, length: int, keys: int) -> None:
    folded = attended("folded", heads, key_heads, length, keys)
    for found, expected in zip(folded, attended("sdpa", heads, key_heads, length, keys), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


# Two heads of 16 queries, which see 1, 2, ..., 16 keys: 2 * 136 probabilities of 2 bytes.
@pytest.mark.parametrize(
    ("length", "most_bytes", "wanted", "dtype", "most"),
    [
        (8, 0, True, torch.bfloat16, 8),
        (16, 543, True, torch.bfloat16, 2),
        (16, 544, True, torch.bfloat16, 16),
        (8, 544, False, torch.bfloat16, 2),
        (8, 544, True, torch.float32, 2),
    ],
)
def test_probabilities_are_kept_where_they_are_few_and_for_gradients_only(
    length: int, most_bytes: int, wanted: bool, dtype: torch.dtype, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folded_attention, "BLOCK", 1)
    monkeypatch.setattr(folded_attention, "BLOCK_16", 1)
    monkeypatch.setattr(folded_attention, "_MAX_SAVED_TOKENS", 8)
    monkeypatch.setattr(folded_attention, "_MAX_SAVED_BYTES", most_bytes)
    made: list[weakref.ref[torch.Tensor]] = []
    alive = []
    plain = folded_attention._Folded.probabilities

    def watched(self: folded_attention._Folded, block: slice, scores: torch.Tensor) -> torch.Tensor:
        probabilities = plain(self, block, scores)
        made.append(weakref.ref(probabilities))
        alive.append(sum(reference() is not None for reference in made))
        return probabilities

    monkeypatch.setattr(folded_attention._Folded, "probabilities", watched)
    query = torch.randn(1, 2, length, 4, dtype=dtype, requires_grad=wanted)
    folded_attention.folded_attention(torch.nn.Module(), query, query, query, None)
    assert max(alive) <= most


def test_dropout_is_left_to_sdpa() -> None:
    query, key, value = torch.randn(3, 1, 2, 70, 16, generator=torch.Generator().manual_seed(0)).unbind()
    outputs = []
    for attend in (folded_attention.folded_attention, folded_attention.sdpa_attention_forward):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            outputs.append(attend(torch.nn.Module(), query, key, value, None, dropout=0.5)[0])
    plain, _ = folded_attention.folded_attention(torch.nn.Module(), query, key, value, None)
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.allclose(outputs[0], plain, atol=0.1)


def test_a_row_that_sees_nothing_is_finite() -> None:
    query, key, value = torch.randn(3, 1, 2, 4, 8).unbind()
    mask = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    mask[..., 2:, 0] = True
    output, _ = folded_attention.folded_attention(torch.nn.Module(), query, key, value, mask)
    assert output.isfinite().all()
    torch.testing.assert_close(output[0, 2:], value[0, :, :1].mT.permute(2, 0, 1).expand(2, 2, 8))


def test_autocast_computes_in_its_own_dtype() -> None:
    query, key, value = torch.randn(3, 1, 2, 70, 16, generator=torch.Generator().manual_seed(0)).unbind()
    query.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        output, _ = folded_attention.folded_attention(torch.nn.Module(), query, key, value, None)
    assert output.dtype == torch.bfloat16
    output.float().sum().backward()
    expected, _ = folded_attention.sdpa_attention_forward(torch.nn.Module(), query.detach(), key, value, None)
    torch.testing.assert_close(output.detach().float(), expected, atol=0.03, rtol=0.03)


@pytest.mark.parametrize(
    ("dtype", "autocast", "asked", "used"),
    [
        (torch.bfloat16, None, "sdpa", folded_attention.NAME),
        (torch.float32, torch.bfloat16, "sdpa", folded_attention.NAME),
        (torch.float32, torch.float32, "sdpa", "sdpa"),
        (torch.float32, None, "sdpa", "sdpa"),
        (torch.bfloat16, None, "eager", "eager"),
    ],
)
def test_it_is_used_for_bfloat16_on_a_cpu(
    dtype: torch.dtype, autocast: torch.dtype | None, asked: str, used: str
) -> None:
    config = ModelConfig(name="small", path=str(ARCHITECTURES / "qwen2"), init="random", attn_implementation=asked)
    model = load_model(config, dtype=dtype, device=CPU, autocast=autocast)
    assert model.config._attn_implementation == used
