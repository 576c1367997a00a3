"""The decoder against transformers' own `generate`, against plain forward passes, and against bad input."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from arcft.config.model import ModelConfig
from arcft.decoding.core.completion import Completion
from arcft.decoding.core.sampling import Sampler
from arcft.errors import DecodingError
from arcft.models.load import load_model, load_tokenizer
from tests.support.decoding import decode

PAD = 0
UNEQUAL = [[5, 6, 7, 8, 9, 10, 11, 12], [20, 21, 22], [30], [40, 41, 42, 43, 44]]
EQUAL = [[5, 6, 7, 8], [20, 21, 22, 23], [30, 31, 32, 33]]
SIZES: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 256,
    # Wide enough that a random model says something else at every step, with clear winners.
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}


def make_model(kind: str) -> PreTrainedModel:
    some_sliding: dict[str, Any] = {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}
    makers: dict[str, Callable[[], PreTrainedModel]] = {
        "qwen2_tied": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=True)),
        "qwen2_untied": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=False)),
        "llama_eager": lambda: LlamaForCausalLM._from_config(LlamaConfig(**SIZES), attn_implementation="eager"),
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
        "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=8)),
        "mistral_sliding": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=6)),
        "qwen2_some_sliding": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES, **some_sliding)),
        "eager_some_sliding": lambda: Qwen2ForCausalLM._from_config(
            Qwen2Config(**SIZES, **some_sliding), attn_implementation="eager"
        ),
    }
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return makers[kind]().eval()


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return make_model("qwen2_tied")


def generated(
    model: PreTrainedModel | PeftModel, prompts: list[list[int]], limit: int, end_ids: list[int]
) -> list[list[int]]:
    """What transformers' generate writes after left-padded `prompts`, the end token included."""
    width = max(map(len, prompts))
    padded = torch.tensor([[PAD] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    output: torch.Tensor = model.generate(  # type: ignore[operator]
        input_ids=padded,
        attention_mask=mask,
        do_sample=False,
        max_new_tokens=limit,
        eos_token_id=end_ids or None,
        pad_token_id=PAD,
    )
    rows = []
    for row in output[:, width:].tolist():
        ends = [place for place, token in enumerate(row) if token in end_ids]
        rows.append(row[: ends[0] + 1] if ends else row)
    return rows


def produced(completion: Completion, end_ids: list[int]) -> list[int]:
    """All tokens of a completion, its end token put back (the tests use one end token where rows end)."""
    return completion.token_ids + (end_ids if completion.finished else [])


def forward_logprob(model: PreTrainedModel, prompt: list[int], tokens: list[int]) -> float:
    with torch.no_grad():
        logits = model(torch.tensor([prompt + tokens])).logits[0].double().log_softmax(dim=-1)
    return sum(float(logits[len(prompt) - 1 + place, token]) for place, token in enumerate(tokens))


def end_that_comes_early(model: PreTrainedModel | PeftModel, prompts: list[list[int]], limit: int) -> int:
    """A token that `generate` writes in some rows but not in all, so that rows end at different times."""
    rows = generated(model, prompts, limit, [])
    places = {token: [row.index(token) if token in row else None for row in rows] for row in rows for token in row}
    spread = {token: len(set(found)) for token, found in places.items() if any(found)}
    best = max(spread, key=lambda token: (spread[token], token))
    assert spread[best] >= min(3, len(prompts))
    return best


KINDS = [
    "qwen2_tied",
    "qwen2_untied",
    "llama_eager",
    "llama",
    "qwen3",
    "mistral_sliding",
    "qwen2_some_sliding",
    "eager_some_sliding",
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prompts", [UNEQUAL, EQUAL, [[3, 1, 4, 1, 5]]], ids=["unequal", "equal", "one"])
def test_greedy_equals_generate(kind: str, prompts: list[list[int]]) -> None:
    model = make_model(kind)
    completions = decode(model, prompts, max_new_tokens=40, end_ids=[], pad_id=PAD)
    assert [completion.token_ids for completion in completions] == generated(model, prompts, 40, [])
    assert [(completion.finished, completion.num_tokens) for completion in completions] == [(False, 40)] * len(prompts)


@pytest.mark.parametrize("prompts", [UNEQUAL, EQUAL], ids=["unequal", "equal"])
@pytest.mark.parametrize("kind", ["qwen2_tied", "mistral_sliding"])
def test_rows_that_end_early_leave_the_others_as_they_are(kind: str, prompts: list[list[int]]) -> None:
    model = make_model(kind)
    end_ids = [end_that_comes_early(model, prompts, 40)]
    completions = decode(model, prompts, max_new_tokens=40, end_ids=end_ids, pad_id=PAD)
    expected = generated(model, prompts, 40, end_ids)
    assert [produced(completion, end_ids) for completion in completions] == expected
    assert [completion.num_tokens for completion in completions] == [len(row) for row in expected]
    assert [completion.finished for completion in completions] == [row[-1] in end_ids for row in expected]
    assert len({completion.num_tokens for completion in completions}) > 1


def many_prompts() -> list[list[int]]:
    """Of all lengths, in no order; some equal, some with 40 tokens and some with 70 in common, some with nothing."""
    generator = torch.Generator().manual_seed(11)
    drawn = torch.randint(1, 61, (12, 90), generator=generator).tolist()
    shared, longer = drawn[0][:40], drawn[0][:70]
    return [
        longer + drawn[1][:9],
        drawn[2][:3],
        shared + drawn[3][:30],
        longer,
        longer + drawn[1][:9],
        drawn[4],
        shared + drawn[5][:2],
        shared,
        longer + drawn[6][:1],
        drawn[7][:20],
        longer + drawn[1][:9],
    ]


@pytest.mark.parametrize("kind", ["qwen2_tied", "llama_eager", "qwen2_some_sliding", "eager_some_sliding"])
def test_nothing_depends_on_what_is_decoded_side_by_side(kind: str) -> None:
    model, prompts = make_model(kind), many_prompts()
    end_ids = [end_that_comes_early(model, prompts, 30)]
    expected = generated(model, prompts, 30, end_ids)
    assert len({len(row) for row in expected}) > 3
    logprobs = [forward_logprob(model, prompt, row) for prompt, row in zip(prompts, expected, strict=True)]
    for batch_size in (1, 2, 4, None):
        for share_prefixes in (True, False):
            completions = decode(
                model,
                prompts,
                max_new_tokens=30,
                end_ids=end_ids,
                pad_id=PAD,
                batch_size=batch_size,
                share_prefixes=share_prefixes,
            )
            assert [produced(completion, end_ids) for completion in completions] == expected
            assert [completion.logprob for completion in completions] == pytest.approx(logprobs, abs=1e-4)


def fed(model: PreTrainedModel, **options: Any) -> list[tuple[int, int]]:
    """Rows and tokens of each pass over `many_prompts`."""
    shapes: list[tuple[int, int]] = []
    passes = model.register_forward_pre_hook(
        lambda _, args, inputs: shapes.append(tuple(inputs["input_ids"].shape)), with_kwargs=True
    )
    try:
        decode(model, many_prompts(), max_new_tokens=1, end_ids=[], pad_id=PAD, **options)
    finally:
        passes.remove()
    return shapes


def test_what_prompts_have_in_common_is_fed_once(model: PreTrainedModel) -> None:
    prompts = many_prompts()
    # The tree of their beginnings, without equal prompts' last tokens, which are fed for each.
    beginnings = {tuple(prompt[: length + 1]) for prompt in prompts for length in range(len(prompt) - 1)}
    whole = sum(map(len, prompts))
    alone = sum(rows * tokens for rows, tokens in fed(model, batch_size=1))
    assert len(beginnings) <= alone <= 0.6 * whole
    assert sum(rows * tokens for rows, tokens in fed(model, batch_size=1, share_prefixes=False)) == whole
    together = sum(rows * tokens for rows, tokens in fed(model))
    assert together < 0.9 * whole  # with padding
    assert max(rows for rows, _ in fed(model, batch_size=4)) <= 4


def test_prompts_of_unlike_length_are_not_padded_much(model: PreTrainedModel) -> None:
    prompts = [[number % 61] * (200 if number % 3 else 9) for number in range(12)]
    tokens = []
    passes = model.register_forward_pre_hook(
        lambda _, args, inputs: tokens.append(inputs["input_ids"].numel()), with_kwargs=True
    )
    try:
        decode(model, prompts, max_new_tokens=1, end_ids=[], pad_id=PAD)
    finally:
        passes.remove()
    assert 1 < len(tokens) < 4
    assert sum(tokens) <= 1.25 * sum(map(len, prompts))


def test_so_many_tokens_are_fed_in_a_pass_at_most(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = [len(prompt) for prompt in many_prompts()]
    monkeypatch.setattr("arcft.decoding.core.forward._MAX_TOKENS_ON_CPU", 150)
    for share_prefixes in (True, False):
        shapes = fed(model, share_prefixes=share_prefixes)
        assert all(rows == 1 or rows * tokens <= 150 for rows, tokens in shapes)
        assert max(rows for rows, _ in shapes) > 1
    assert sum(rows for rows, _ in shapes) == len(lengths)
    expected = generated(model, many_prompts(), 20, [])
    completions = decode(model, many_prompts(), max_new_tokens=20, end_ids=[], pad_id=PAD)
    assert [completion.token_ids for completion in completions] == expected


def test_rows_of_different_adapters_share_nothing(model: PreTrainedModel) -> None:
    """What route gives a row goes into its keys and values."""
    prompt = many_prompts()[0]
    prompts, adapters = [prompt] * 4, [0, 1, 0, 1]
    live: list[int] = []

    def shifted(module: torch.nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        strengths = torch.tensor([0.5 * adapters[number] for number in live])
        return output + strengths[:, None, None] * output.roll(1, dims=-1)

    def routed(**options: Any) -> list[Completion]:
        return decode(
            model,
            prompts,
            max_new_tokens=9,
            end_ids=[],
            pad_id=PAD,
            on_rows_changed=lambda now: live.__setitem__(slice(None), now),
            **options,
        )

    layer = model.get_submodule("model.layers.0.self_attn.v_proj").register_forward_hook(shifted)
    try:
        found = [routed(), routed(adapters=adapters), routed(adapters=adapters, batch_size=2)]
    finally:
        layer.remove()
    for completions in found:
        tokens = [completion.token_ids for completion in completions]
        assert tokens[0] == tokens[2] != tokens[1] == tokens[3]
        assert tokens == [completion.token_ids for completion in found[0]]


def test_any_of_several_end_tokens_ends(model: PreTrainedModel) -> None:
    (row,) = generated(model, [UNEQUAL[0]], 12, [])
    distinct = list(dict.fromkeys(row))
    first = row.index(distinct[2])
    (completion,) = decode(model, [UNEQUAL[0]], max_new_tokens=12, end_ids=[distinct[4], distinct[2]], pad_id=PAD)
    assert completion.token_ids == row[:first]
    assert (completion.num_tokens, completion.finished) == (first + 1, True)


def test_each_row_has_its_own_limit(model: PreTrainedModel) -> None:
    limits = [3, 11, 1, 7]
    completions = decode(model, UNEQUAL, max_new_tokens=limits, end_ids=[], pad_id=PAD)
    rows = generated(model, UNEQUAL, 11, [])
    assert [completion.token_ids for completion in completions] == [
        row[:limit] for row, limit in zip(rows, limits, strict=True)
    ]


def test_an_end_token_at_the_limit_counts_as_finished(model: PreTrainedModel) -> None:
    (row,) = generated(model, [UNEQUAL[1]], 12, [])
    last = row.index(list(dict.fromkeys(row))[4])
    (completion,) = decode(model, [UNEQUAL[1]], max_new_tokens=last + 1, end_ids=[row[last]], pad_id=PAD)
    assert completion.token_ids == row[:last]
    assert (completion.num_tokens, completion.finished) == (last + 1, True)


@pytest.mark.parametrize("prompts", [UNEQUAL, EQUAL], ids=["unequal", "equal"])
@pytest.mark.parametrize("temperature", [None, 0.7])
def test_logprob_equals_a_plain_forward_pass(
    model: PreTrainedModel, prompts: list[list[int]], temperature: float | None
) -> None:
    end_ids = [end_that_comes_early(model, prompts, 25)]
    generator = None if temperature is None else torch.Generator().manual_seed(1)
    completions = decode(
        model,
        prompts,
        max_new_tokens=25,
        end_ids=end_ids,
        pad_id=PAD,
        temperature=temperature,
        top_p=None if temperature is None else 0.9,
        generator=generator,
    )
    for prompt, completion in zip(prompts, completions, strict=True):
        expected = forward_logprob(model, prompt, produced(completion, end_ids))
        assert completion.logprob == pytest.approx(expected, abs=1e-4)


def lora_model() -> PeftModel:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return get_peft_model(
            make_model("qwen2_tied"),
            LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, lora_dropout=0.5),
        )


def test_a_lora_model_decodes_like_generate_and_like_its_merged_weights(model: PreTrainedModel) -> None:
    adapted = lora_model().train()
    completions = decode(adapted, UNEQUAL, max_new_tokens=20, end_ids=[], pad_id=PAD)
    assert adapted.training  # put back; a mode left in training would also have dropped half of the adapter's inputs
    tokens = [completion.token_ids for completion in completions]
    assert tokens == generated(adapted.eval(), UNEQUAL, 20, [])
    assert tokens != generated(model, UNEQUAL, 20, [])
    merged = adapted.merge_and_unload()
    assert [c.token_ids for c in decode(merged, UNEQUAL, max_new_tokens=20, end_ids=[], pad_id=PAD)] == tokens


def test_training_goes_on_after_decoding(model: PreTrainedModel) -> None:
    adapted = lora_model().train()
    decode(adapted, UNEQUAL, max_new_tokens=3, end_ids=[], pad_id=PAD)
    batch = torch.tensor(EQUAL)
    loss = adapted(input_ids=batch, labels=batch).loss
    loss.backward()
    gradients = [weight.grad for weight in adapted.parameters() if weight.requires_grad]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


def sample(model: PreTrainedModel, prompts: list[list[int]], generator: object, **options: float) -> list[list[int]]:
    completions = decode(
        model,
        prompts,
        max_new_tokens=8,
        end_ids=[],
        pad_id=PAD,
        generator=generator,  # type: ignore[arg-type]
        **{"temperature": 1.0, **options},  # type: ignore[arg-type]
    )
    return [completion.token_ids for completion in completions]


def test_sampling_is_reproducible_and_apart_from_the_global_generator(model: PreTrainedModel) -> None:
    before = torch.get_rng_state()
    first = sample(model, UNEQUAL, torch.Generator().manual_seed(5))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert sample(model, UNEQUAL, torch.Generator().manual_seed(5)) == first
    assert sample(model, UNEQUAL, torch.Generator().manual_seed(6)) != first


def test_with_a_generator_each_a_row_does_not_depend_on_its_neighbours(model: PreTrainedModel) -> None:
    together = sample(model, UNEQUAL, [torch.Generator().manual_seed(seed) for seed in range(4)])
    alone = [sample(model, [prompt], [torch.Generator().manual_seed(seed)])[0] for seed, prompt in enumerate(UNEQUAL)]
    assert together == alone


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, None), (0.6, 0.8), (1.5, 0.5), (None, 0.9)])
def test_sampling_follows_the_distribution(
    model: PreTrainedModel, temperature: float | None, top_p: float | None
) -> None:
    prompt, count = UNEQUAL[3], 20_000
    with torch.no_grad():
        logits = model(torch.tensor([prompt])).logits[0, -1].double()
    expected = (logits / (temperature or 1.0)).softmax(dim=-1)
    if top_p is not None:
        # The smallest set of likeliest tokens that together reach top_p (Holtzman et al. 2019).
        nucleus: list[int] = []
        for token in expected.argsort(descending=True).tolist():
            nucleus.append(token)
            if float(expected[nucleus].sum()) >= top_p:
                break
        assert 1 < len(nucleus) < len(expected)
        kept = torch.zeros_like(expected)
        kept[nucleus] = expected[nucleus]
        expected = kept / kept.sum()
    completions = decode(
        model,
        [prompt] * count,
        max_new_tokens=1,
        end_ids=[],
        pad_id=PAD,
        temperature=temperature,
        top_p=top_p,
        generator=torch.Generator().manual_seed(0),
    )
    seen = Counter(completion.token_ids[0] for completion in completions)
    assert set(seen) <= {token for token, probability in enumerate(expected.tolist()) if probability > 0}
    for token, probability in enumerate(expected.tolist()):
        deviation = math.sqrt(count * probability * (1 - probability))
        assert abs(seen[token] - count * probability) <= 5 * deviation + 1e-9


def test_a_very_low_temperature_is_greedy(model: PreTrainedModel) -> None:
    assert sample(model, UNEQUAL, torch.Generator().manual_seed(0), temperature=1e-4) == generated(
        model, UNEQUAL, 8, []
    )


def rows_of_four(token_ids: Sequence[int], after: int = -1) -> list[int]:
    """A jumping rule, made up: tokens lie in rows of four, and rows are 10 positions apart."""
    places = []
    for _ in token_ids:
        after += 7 if after % 10 == 3 else 1
        places.append(after)
    return places


@pytest.mark.parametrize("prompts", [UNEQUAL, EQUAL], ids=["unequal", "equal"])
def test_positions_may_jump(model: PreTrainedModel, prompts: list[list[int]]) -> None:
    completions = decode(model, prompts, max_new_tokens=12, end_ids=[], pad_id=PAD, positions=rows_of_four)
    for prompt, completion in zip(prompts, completions, strict=True):
        ids = list(prompt)
        for _ in range(12):
            with torch.no_grad():
                logits = model(
                    input_ids=torch.tensor([ids]),
                    attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                    position_ids=torch.tensor([rows_of_four(ids)]),
                    use_cache=False,
                ).logits
            ids.append(int(logits[0, -1].argmax()))
        assert completion.token_ids == ids[len(prompt) :]
    plain = decode(model, prompts, max_new_tokens=12, end_ids=[], pad_id=PAD)
    assert [c.token_ids for c in plain] != [c.token_ids for c in completions]


@pytest.mark.parametrize("value", [math.nan, math.inf], ids=["nan", "inf"])
@pytest.mark.parametrize("temperature", [None, 1.0])
def test_logits_that_are_not_finite_are_refused(value: float, temperature: float | None) -> None:
    broken = make_model("qwen2_untied")
    with torch.no_grad():
        broken.lm_head.weight[17, 3] = value
    generator = None if temperature is None else torch.Generator()
    with pytest.raises(DecodingError, match=r"logits are not finite after 0 tokens.*inference\.dtype=float32"):
        decode(broken, EQUAL, max_new_tokens=4, end_ids=[], pad_id=PAD, temperature=temperature, generator=generator)


@pytest.mark.parametrize("generator", [None, torch.Generator().manual_seed(2)], ids=["greedy", "sampled"])
def test_the_rows_that_are_left_are_told(model: PreTrainedModel, generator: torch.Generator | None) -> None:
    told: list[list[Any]] = []
    passes = model.register_forward_pre_hook(lambda *_: told.append(["pass"]))
    try:
        completions = decode(
            model,
            UNEQUAL,
            max_new_tokens=[3, 1, 4, 3],
            end_ids=[],
            pad_id=PAD,
            temperature=None if generator is None else 1.0,
            generator=generator,
            on_rows_changed=lambda live: told.append(list(live)),
        )
    finally:
        passes.remove()
    # The last row fills a gap.
    assert told == [[0, 1, 2, 3], ["pass"], [0, 3, 2], ["pass"], ["pass"], [2], ["pass"]]
    assert [completion.num_tokens for completion in completions] == [3, 1, 4, 3]


def test_the_mode_is_put_back_after_an_error() -> None:
    broken = make_model("qwen2_untied").train()
    with torch.no_grad():
        broken.lm_head.weight.fill_(math.nan)
    with pytest.raises(DecodingError):
        decode(broken, EQUAL, max_new_tokens=4, end_ids=[], pad_id=PAD)
    assert broken.training


def test_no_prompts_no_completions(model: PreTrainedModel) -> None:
    assert decode(model, [], max_new_tokens=4, end_ids=[], pad_id=PAD) == []


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([[1], []], {}, "prompt 1 is empty"),
        ([[1]], {"max_new_tokens": 0}, "max_new_tokens=0 for prompt 0: at least 1"),
        ([[1]], {"batch_size": 0}, "batch_size=0: at least 1"),
        ([[1], [2]], {"max_new_tokens": [3]}, "1 values of max_new_tokens for 2 prompts"),
        ([[1]], {"temperature": 0.0, "generator": torch.Generator()}, r"temperature=0\.0: above 0"),
        ([[1]], {"top_p": 1.5, "generator": torch.Generator()}, r"top_p=1\.5: above 0, at most 1"),
        ([[1]], {"temperature": 1.0}, "sampling needs a generator"),
        ([[1]], {"generator": torch.Generator()}, "no effect on greedy decoding"),
        ([[1], [2]], {"temperature": 1.0, "generator": [torch.Generator()]}, "1 generators for 2 prompts"),
    ],
)
def test_bad_input_is_refused(
    model: PreTrainedModel, prompts: list[list[int]], options: dict[str, object], message: str
) -> None:
    arguments = {"max_new_tokens": 4, "end_ids": [], "pad_id": PAD, **options}
    with pytest.raises(DecodingError, match=message):
        decode(model, prompts, **arguments)  # type: ignore[arg-type]


@pytest.mark.slow
def test_greedy_equals_generate_on_the_real_smollm2(smollm2_gguf: Path) -> None:
    config = ModelConfig(name="smollm2", path=str(smollm2_gguf))
    tokenizer = load_tokenizer(config)
    real = load_model(config, dtype=torch.float32, device=torch.device("cpu"))
    texts = ["The capital of France is", "1 2 3 4 5 6 7 8", "Write one word that rhymes with cat, then stop."]
    turns = [f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n" for text in texts]
    prompts: list[list[int]] = tokenizer(turns, add_special_tokens=False)["input_ids"]
    assert len({len(prompt) for prompt in prompts}) == 3
    end_ids = tokenizer("<|im_end|>", add_special_tokens=False)["input_ids"]
    assert len(end_ids) == 1
    completions = decode(real, prompts, max_new_tokens=24, end_ids=end_ids, pad_id=PAD)
    assert [produced(completion, end_ids) for completion in completions] == generated(real, prompts, 24, end_ids)
    assert "Paris" in tokenizer.decode(completions[0].token_ids)
    for prompt, completion in zip(prompts, completions, strict=True):
        expected = forward_logprob(real, prompt, produced(completion, end_ids))
        assert completion.logprob == pytest.approx(expected, abs=1e-3)


def test_top_p_ends_with_the_token_that_reaches_it() -> None:
    uniform = torch.linspace(0, 0.99, 50, dtype=torch.float64)[:, None]
    sampler = Sampler(uniform, temperature=1.0, top_p=0.5)
    # Four tokens of a probability of exactly a quarter.
    drawn = sampler.draw(torch.zeros(50, 4), prompts=range(50), steps=[0] * 50)
    assert len(set(drawn.tolist())) == 2
