"""Decoding with a grammar and with drafts, against a loop of plain forward passes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    PreTrainedModel,
)

from arcft.decoding.core.completion import Completion
from arcft.errors import DecodingError
from arcft.protocols import Grammar, Positions
from tests.decoding.test_decoder import (
    KINDS,
    PAD,
    SIZES,
    forward_logprob,
    generated,
    make_model,
    many_prompts,
    produced,
    rows_of_four,
)
from tests.support.decoding import decode
from tests.support.toy_grammar import END, Automaton, random_automaton, table

PROMPTS = [[5, 6, 7, 8, 9, 10, 11, 12], [20, 21, 22], [30], [40, 41, 42, 43, 44]]


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return make_model("qwen2_tied")


def unusual_model(kind: str) -> PreTrainedModel:
    """Something is done to the logits after the head, or the head has a bias."""
    makers: dict[str, Callable[[], PreTrainedModel]] = {
        "soft_cap": lambda: Gemma2ForCausalLM._from_config(
            Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=2.0, sliding_window=6),
            attn_implementation="eager",
        ),
        "scaled": lambda: GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=7.0)),
        "gpt2": lambda: GPT2LMHeadModel(
            GPT2Config(vocab_size=61, n_positions=256, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3)
        ),
    }
    with torch.random.fork_rng():
        torch.manual_seed(8)
        return makers[kind]().eval()


def biased_model() -> PreTrainedModel:
    model = make_model("qwen2_untied")
    with torch.random.fork_rng():
        torch.manual_seed(8)
        head = torch.nn.Linear(32, 61)
        head.weight = model.lm_head.weight
        torch.nn.init.normal_(head.bias)
    model.lm_head = head
    return model


def plainly(
    model: PreTrainedModel,
    prompt: list[int],
    grammar: Grammar,
    limit: int,
    positions: Positions | None = None,
    *,
    end: int = END,
) -> Completion:
    """One token after the other, each from a forward pass over the whole text."""
    ids, cursor, total, count = list(prompt), grammar(), 0.0, 0
    while count < limit:
        choices = list(cursor.choices)
        with torch.no_grad():
            logits = model(
                input_ids=torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                position_ids=None if positions is None else torch.tensor([positions(ids)]),
                use_cache=False,
            ).logits[0, -1]
        logprobs = logits.double()[choices].log_softmax(dim=-1)
        best = int(logprobs.argmax())
        total, count = total + float(logprobs[best]), count + 1
        if choices[best] == end:
            return Completion(ids[len(prompt) :], total, count, True)
        ids.append(choices[best])
        cursor.advance(choices[best])
    return Completion(ids[len(prompt) :], total, count, False)


def assert_equal(found: Sequence[Completion], expected: Sequence[Completion], *, abs: float = 1e-4) -> None:
    for own, other in zip(found, expected, strict=True):
        assert own.token_ids == other.token_ids
        assert (own.num_tokens, own.finished) == (other.num_tokens, other.finished)
        assert own.logprob == pytest.approx(other.logprob, abs=abs)


def write(model: PreTrainedModel, prompts: Sequence[list[int]], limit: int = 40, **options: Any) -> list[Completion]:
    return decode(model, prompts, max_new_tokens=limit, end_ids=[END], pad_id=PAD, **options)


def count_passes(model: PreTrainedModel, run: Callable[[], object]) -> int:
    count = 0

    def add(*_: object) -> None:
        nonlocal count
        count += 1

    hook = model.register_forward_pre_hook(add)
    try:
        run()
    finally:
        hook.remove()
    return count


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(4))
def test_a_grammar_is_followed_as_one_token_at_a_time_would(kind: str, seed: int) -> None:
    model = make_model(kind)
    grammars = [random_automaton(10 * seed + number) for number in range(len(PROMPTS))]
    expected = [plainly(model, prompt, own, 40) for prompt, own in zip(PROMPTS, grammars, strict=True)]
    assert_equal(write(model, PROMPTS, grammar=grammars), expected)
    assert_equal(write(model, PROMPTS, grammar=grammars, batch_size=2), expected)


def test_the_automatons_have_what_they_are_for(model: PreTrainedModel) -> None:
    """Some texts end and some are cut off; some tokens are forced."""
    grammars = [random_automaton(seed) for seed in range(16)]
    completions = write(model, [PROMPTS[0]] * 16, grammar=grammars)
    assert {completion.finished for completion in completions} == {True, False}
    assert len({completion.num_tokens for completion in completions}) > 4
    assert any(len(ways) == 1 for own in grammars for ways in own.states.values())


@pytest.mark.parametrize("kind", ["soft_cap", "scaled", "gpt2"])
def test_what_is_done_to_logits_after_the_head_counts(kind: str) -> None:
    model = unusual_model(kind)
    grammars = [random_automaton(number) for number in range(len(PROMPTS))]
    expected = [plainly(model, prompt, own, 30) for prompt, own in zip(PROMPTS, grammars, strict=True)]
    assert_equal(write(model, PROMPTS, 30, grammar=grammars), expected)


def test_a_bias_of_the_head_counts() -> None:
    model = biased_model()
    expected = [plainly(model, prompt, table(3, 3), 30) for prompt in PROMPTS]
    assert_equal(write(model, PROMPTS, 30, grammar=table(3, 3)), expected)


def test_the_head_is_computed_for_allowed_tokens_only(model: PreTrainedModel) -> None:
    sizes: list[int] = []
    hook = model.lm_head.register_forward_hook(lambda _, args, output: sizes.append(output.numel()))
    try:
        write(model, PROMPTS, grammar=table(3, 3))
    finally:
        hook.remove()
    # The first pass shows what the head is.
    assert sizes[0] == len(PROMPTS) * 61
    assert set(sizes[1:]) == {0}


def test_forced_tokens_ride_along(model: PreTrainedModel) -> None:
    grammar = table(4, 3)
    completions: list[Completion] = []
    assert count_passes(model, lambda: completions.extend(write(model, PROMPTS, grammar=grammar))) == 4 * 3
    for completion in completions:
        assert completion.finished
        assert completion.num_tokens == 1 + 4 * (1 + 3 + 1) + 1 == len(completion.token_ids) + 1
        assert completion.token_ids[::5] == [31, 30, 30, 30, 30]


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 6, 7, 21])
def test_a_limit_may_fall_among_forced_tokens(model: PreTrainedModel, limit: int) -> None:
    expected = [plainly(model, prompt, table(4, 3), limit) for prompt in PROMPTS]
    assert not any(completion.finished for completion in expected)
    assert_equal(write(model, PROMPTS, limit, grammar=table(4, 3)), expected)


def test_where_all_is_forced_the_model_is_not_asked(model: PreTrainedModel) -> None:
    completions: list[Completion] = []
    grammar = table(2, 2, cells=(10,))
    assert count_passes(model, lambda: completions.extend(write(model, PROMPTS, grammar=grammar))) == 0
    expected = Completion([31, 20, 10, 10, 30, 21, 10, 10, 30], 0.0, 10, True)
    assert completions == [expected] * len(PROMPTS)


def drafts_of(rows: Sequence[Completion]) -> dict[str, list[list[int] | None]]:
    """Good and bad ones for what will be written."""
    right = [list(row.token_ids) for row in rows]
    generator = torch.Generator().manual_seed(3)
    return {
        "right": [list(row) for row in right],
        "right with the end": [[*row, END] for row in right],
        "one wrong": [[*row[:7], row[7] % 40 + 1, *row[8:]] if len(row) > 7 else row for row in right],
        "every fourth wrong": [[t % 40 + 1 if i % 4 == 3 else t for i, t in enumerate(row)] for row in right],
        "shifted": [row[1:] for row in right],
        "cut": [row[: len(row) // 2] for row in right],
        "too long": [row + row for row in right],
        "garbage": [torch.randint(0, 61, (50,), generator=generator).tolist() for _ in right],
        "mixed": [None if number % 2 else row for number, row in enumerate(right)],
        "none": [None, [], None, []][: len(right)] + [None] * (len(right) - 4),
    }


DRAFTS = list(drafts_of([]))


@pytest.mark.parametrize("kind", ["qwen2_tied", "llama_eager", "eager_some_sliding", "mistral_sliding"])
@pytest.mark.parametrize("draft", DRAFTS)
def test_drafts_change_nothing(kind: str, draft: str) -> None:
    model, prompts = make_model(kind), many_prompts()
    plain = decode(model, prompts, max_new_tokens=40, end_ids=[], pad_id=PAD)
    drafts = drafts_of(plain)[draft]
    assert_equal(decode(model, prompts, max_new_tokens=40, end_ids=[], pad_id=PAD, draft_tokens=drafts), plain)
    some = decode(model, prompts, max_new_tokens=[7] * 11, end_ids=[], pad_id=PAD, draft_tokens=drafts, batch_size=3)
    assert [completion.token_ids for completion in some] == [completion.token_ids[:7] for completion in plain]


@pytest.mark.parametrize("draft", DRAFTS)
def test_drafts_change_nothing_under_a_grammar(model: PreTrainedModel, draft: str) -> None:
    prompts = many_prompts()
    grammars = [table(5, 4) if number % 2 else random_automaton(number) for number in range(len(prompts))]
    plain = write(model, prompts, grammar=grammars)
    assert_equal(plain, [plainly(model, prompt, own, 40) for prompt, own in zip(prompts, grammars, strict=True)])
    drafts = drafts_of(plain)[draft]
    assert_equal(write(model, prompts, grammar=grammars, draft_tokens=drafts), plain)
    assert_equal(write(model, prompts, grammar=grammars, draft_tokens=drafts, batch_size=4), plain)


def test_drafts_and_grammars_go_with_positions_that_jump(model: PreTrainedModel) -> None:
    expected = [plainly(model, prompt, table(5, 4), 40, rows_of_four) for prompt in PROMPTS]
    plain = write(model, PROMPTS, grammar=table(5, 4), positions=rows_of_four)
    assert_equal(plain, expected)
    for drafts in drafts_of(plain).values():
        assert_equal(write(model, PROMPTS, grammar=table(5, 4), positions=rows_of_four, draft_tokens=drafts), expected)


def test_a_good_draft_saves_passes_and_a_bad_one_is_given_up(model: PreTrainedModel) -> None:
    prompt = many_prompts()[6:7]
    (plain,) = decode(model, prompt, max_new_tokens=100, end_ids=[], pad_id=PAD)
    options: dict[str, Any] = {"max_new_tokens": 100, "end_ids": [], "pad_id": PAD}
    passes = {
        name: count_passes(model, lambda own=own: decode(model, prompt, **options, draft_tokens=own))  # type: ignore[misc]
        for name, own in drafts_of([plain]).items()
    }
    # Chunks of 8, 16, and then 24 drafted tokens, each with the token that follows them.
    assert passes["right"] == 5
    assert passes["one wrong"] <= 8
    assert passes["cut"] <= 54
    assert passes["shifted"] == passes["garbage"] == passes["none"] == 100
    tokens: list[int] = []
    hook = model.register_forward_pre_hook(
        lambda _, args, inputs: tokens.append(inputs["input_ids"].shape[1]), with_kwargs=True
    )
    try:
        decode(model, prompt, **options, draft_tokens=drafts_of([plain])["garbage"])
    finally:
        hook.remove()
    assert [count for count in tokens[1:] if count > 1] == [9, 9]


def test_a_draft_is_not_followed_beyond_the_limit() -> None:
    """Where a model has no more positions, that would be an error."""
    config = GPT2Config(vocab_size=61, n_positions=24, n_embd=32, n_layer=1, n_head=4, initializer_range=0.3)
    with torch.random.fork_rng():
        torch.manual_seed(8)
        model = GPT2LMHeadModel(config).eval()
    limit = 24 - len(PROMPTS[0])
    (plain,) = decode(model, PROMPTS[:1], max_new_tokens=limit, end_ids=[], pad_id=PAD)
    for draft in (plain.token_ids * 2, plain.token_ids[:-1] + [1] * 20):
        (found,) = decode(model, PROMPTS[:1], max_new_tokens=limit, end_ids=[], pad_id=PAD, draft_tokens=[draft])
        assert found.token_ids == plain.token_ids


def test_an_end_that_was_drafted_too_early_does_not_end(model: PreTrainedModel) -> None:
    expected = generated(model, PROMPTS, 20, [])
    drafts = [[*row[:5], END, *row[6:]] for row in expected]
    completions = write(model, PROMPTS, 20, draft_tokens=drafts)
    assert [produced(completion, [END]) for completion in completions] == generated(model, PROMPTS, 20, [END])


def test_an_end_comes_where_the_draft_goes_on(model: PreTrainedModel) -> None:
    (row,) = generated(model, PROMPTS[:1], 20, [])
    end = row.index(list(dict.fromkeys(row))[4])
    assert end > 3
    (completion,) = decode(model, PROMPTS[:1], max_new_tokens=20, end_ids=[row[end]], pad_id=PAD, draft_tokens=[row])
    assert completion.token_ids == row[:end]
    assert (completion.num_tokens, completion.finished) == (end + 1, True)
    assert completion.logprob == pytest.approx(forward_logprob(model, PROMPTS[0], row[: end + 1]), abs=1e-4)


def test_sampling_follows_the_distribution_over_allowed_tokens(model: PreTrainedModel) -> None:
    allowed, count = (3, 17, 25, 41), 20_000
    grammar = Automaton({0: dict.fromkeys(allowed, 1), 1: {END: -1}, -1: {}})
    with torch.no_grad():
        logits = model(torch.tensor(PROMPTS[:1])).logits[0, -1].double()
    expected = (logits[list(allowed)] / 0.8).softmax(dim=-1)
    completions = write(
        model, PROMPTS[:1] * count, grammar=grammar, temperature=0.8, generator=torch.Generator().manual_seed(0)
    )
    seen = Counter(completion.token_ids[0] for completion in completions)
    for token, probability in zip(allowed, expected.tolist(), strict=True):
        deviation = (count * probability * (1 - probability)) ** 0.5
        assert abs(seen[token] - count * probability) <= 5 * deviation
    logprobs = dict(zip(allowed, logits[list(allowed)].log_softmax(dim=-1).tolist(), strict=True))
    for completion in completions[:20]:
        assert completion.logprob == pytest.approx(logprobs[completion.token_ids[0]], abs=1e-4)
        assert (completion.num_tokens, completion.finished) == (2, True)


def test_what_is_drawn_does_not_depend_on_the_batch(model: PreTrainedModel) -> None:
    prompts = many_prompts()
    found = [
        write(
            model,
            prompts,
            grammar=[random_automaton(number) for number in range(11)],
            temperature=1.3,
            generator=[torch.Generator().manual_seed(seed) for seed in range(11)],
            batch_size=batch_size,
        )
        for batch_size in (1, 3, None)
    ]
    assert_equal(found[0], found[2])
    assert_equal(found[1], found[2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"draft_tokens": [[1]] * 4, "temperature": 1.0, "generator": torch.Generator()},
            "draft_tokens need greedy decoding",
        ),
        ({"draft_tokens": [[1]]}, "1 draft_tokens for 4 prompts; give one for each"),
        ({"grammar": [table(1, 1)]}, "1 grammars for 4 prompts; give one for each"),
        ({"adapters": [1]}, "1 adapters for 4 prompts; give one for each"),
        (
            {"grammar": Automaton({0: {59: -1}, -1: {}})},
            "prompt 0: the grammar ends with token 59, which is not in end_ids",
        ),
    ],
)
def test_bad_input_is_refused(model: PreTrainedModel, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DecodingError, match=message):
        write(model, PROMPTS, **options)
