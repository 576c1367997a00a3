"""transformers' own `generate` as one of the ways to predict: what the decoder is held to, token for token."""

from __future__ import annotations

import math

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from arcft.decoding.core.completion import Completion
from arcft.errors import DecodingError
from tests.decoding.test_decoder import PAD, UNEQUAL, end_that_comes_early, make_model
from tests.support.decoding import decode, generate

LIMITS = [20, 3, 11, 20]


def adapted() -> PeftModel:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        model = get_peft_model(make_model("qwen2_tied"), config)
    assert isinstance(model, PeftModel)
    return model.eval()


def check_equal(model: PreTrainedModel | PeftModel, end: int) -> list[Completion]:
    options = {"max_new_tokens": LIMITS, "end_ids": [end], "pad_id": PAD}
    found = generate(model, UNEQUAL, **options)
    expected = decode(model, UNEQUAL, **options)
    for one, other in zip(found, expected, strict=True):
        assert (one.token_ids, one.num_tokens, one.finished) == (other.token_ids, other.num_tokens, other.finished)
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
    return found


@pytest.mark.parametrize("kind", ["llama", "qwen2_tied", "adapted"])
def test_it_writes_what_the_decoder_writes(kind: str) -> None:
    model = adapted() if kind == "adapted" else make_model(kind)
    found = check_equal(model, end_that_comes_early(model, UNEQUAL, 20))
    assert len({(one.finished, one.num_tokens) for one in found}) > 2


@pytest.mark.parametrize("kind", ["qwen2_tied", "adapted"])
def test_what_a_models_own_config_asks_for_is_left_aside(kind: str) -> None:
    model = adapted() if kind == "adapted" else make_model(kind)
    own = model.generation_config
    own.repetition_penalty, own.min_new_tokens = 5.0, 15
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    inner.generation_config = own
    model.train()
    check_equal(model, end_that_comes_early(make_model("qwen2_tied"), UNEQUAL, 20))
    assert inner.generation_config is own
    assert model.training


def test_the_route_is_told_which_prompts_of_equal_length_the_rows_hold() -> None:
    told: list[list[int]] = []
    generate(
        make_model("llama"), [*UNEQUAL, UNEQUAL[1]], max_new_tokens=[4] * 5, end_ids=[], pad_id=PAD,
        on_rows_changed=lambda rows: told.append(list(rows)),
    )  # fmt: skip
    assert told == [[0], [1, 4], [2], [3]]


def test_logits_that_are_no_numbers_are_an_error() -> None:
    model = make_model("llama")
    with torch.no_grad():
        model.lm_head.weight[5] = math.nan
    with pytest.raises(DecodingError, match=r"prompt 0: .*not finite.*try inference\.dtype=float32"):
        generate(model, UNEQUAL, max_new_tokens=[4] * 4, end_ids=[], pad_id=PAD)
