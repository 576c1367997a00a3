"""The search against all completions that there are, each valued by plain forward passes."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from arcft.decoding.core.completion import Completion
from arcft.decoding.search import SearchResult
from arcft.errors import DecodingError
from arcft.protocols import Grammar, Positions
from tests.decoding.test_decoder import PAD, SIZES, make_model, many_prompts, rows_of_four
from tests.decoding.test_decoder_grammar import PROMPTS, count_passes, plainly
from tests.support.decoding import decode, search
from tests.support.toy_grammar import END, Automaton, random_automaton, table

Texts = dict[tuple[int, ...], float]
"""Completions with their end tokens, and their log-probabilities."""

TOY_END = 5
TOY_PROMPTS = [[1, 2, 3], [4], [2, 2, 4, 1, 0, 3, 3], [1, 2, 3]]


@functools.cache
def toy_model() -> PreTrainedModel:
    """Of six tokens."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return Qwen2ForCausalLM(Qwen2Config(**SIZES | {"vocab_size": 6}, tie_word_embeddings=False)).eval()


@functools.cache
def model(kind: str = "qwen2_tied") -> PreTrainedModel:
    """One that is rather sure of what comes next, so that long texts reach a threshold."""
    own = make_model(kind)
    with torch.no_grad():
        own.get_parameter("model.norm.weight").mul_(10)
    return own


def all_texts(
    model: PreTrainedModel,
    prompt: list[int],
    limit: int,
    end_ids: Sequence[int],
    grammar: Grammar | None = None,
    positions: Positions | None = None,
    least: float = -math.inf,
) -> Texts:
    """One forward pass over all beginnings of one length that are worth `least`."""
    begun: Texts = {(): 0.0}
    ended: Texts = {}
    for _ in range(limit):
        beginnings = list(begun)
        if not beginnings:
            break
        ids = torch.tensor([[*prompt, *tokens] for tokens in beginnings])
        places = None if positions is None else torch.tensor([positions(row) for row in ids.tolist()])
        with torch.no_grad():
            inputs = {"input_ids": ids, "position_ids": places, "attention_mask": torch.ones_like(ids)}
            logits = model(**inputs, use_cache=False).logits[:, -1].double()
        longer: Texts = {}
        for tokens, own in zip(beginnings, logits, strict=True):
            choices = list(range(len(own)))
            if grammar is not None:
                cursor = grammar()
                for token in tokens:
                    cursor.advance(token)
                choices = list(cursor.choices)
            for token, logprob in zip(choices, own[choices].log_softmax(dim=-1).tolist(), strict=True):
                texts = ended if token in end_ids else longer
                texts[*tokens, token] = begun[tokens] + logprob
        begun = {tokens: logprob for tokens, logprob in longer.items() if logprob >= least}
    return ended


@functools.cache
def texts_after(
    kind: str,
    prompt: tuple[int, ...],
    limit: int,
    grammar: Callable[[], Automaton],
    positions: Callable[..., list[int]] | None,
    threshold: float,
) -> Texts:
    return all_texts(model(kind), list(prompt), limit, [END], grammar(), positions, least=math.log(threshold))


def assert_found(found: SearchResult, texts: Texts, threshold: float, *, abs: float = 1e-4) -> None:
    """Exactly those of `texts`, the likeliest first."""
    floor = math.log(threshold)
    assert min((math.fabs(logprob - floor) for logprob in texts.values()), default=1.0) > 1e-4, "too close to call"
    expected = sorted(((logprob, tokens) for tokens, logprob in texts.items() if logprob >= floor), reverse=True)
    assert found.is_complete
    assert [one.token_ids for one in found.completions] == [list(tokens[:-1]) for _, tokens in expected]
    assert [one.logprob for one in found.completions] == pytest.approx([one for one, _ in expected], abs=abs)
    for one in found.completions:
        assert (one.finished, one.num_tokens) == (True, len(one.token_ids) + 1)


def find(prompts: Sequence[list[int]] = PROMPTS, **options: Any) -> list[SearchResult]:
    own: dict[str, Any] = {"max_nodes": 10_000, "max_new_tokens": 40, "end_ids": [END], "pad_id": PAD}
    return search(model(), prompts, **own | options)


def find_toys(threshold: float, prompts: Sequence[list[int]] = TOY_PROMPTS, **options: Any) -> list[SearchResult]:
    own: dict[str, Any] = {"max_nodes": 10_000, "max_new_tokens": 5, "end_ids": [TOY_END], "pad_id": 0}
    return search(toy_model(), prompts, threshold=threshold, **own | options)


@functools.cache
def toy_texts() -> list[Texts]:
    return [all_texts(toy_model(), prompt, 5, [TOY_END]) for prompt in TOY_PROMPTS]


@pytest.mark.parametrize("batch_size", [1, 3, None, 16])
@pytest.mark.parametrize("threshold", [0.1, 0.02, 0.002])
def test_it_finds_what_there_is(threshold: float, batch_size: int | None) -> None:
    assert {len(texts) for texts in toy_texts()} == {1 + 5 + 5**2 + 5**3 + 5**4}
    found = find_toys(threshold, batch_size=batch_size)
    for own, texts in zip(found, toy_texts(), strict=True):
        assert_found(own, texts, threshold)
    assert sum(len(own.completions) for own in found) > {0.1: 1, 0.02: 15, 0.002: 60}[threshold]


LONG_TABLE = functools.partial(table, 7, 6, cells=(10, 11))


@pytest.mark.parametrize("kind", ["llama_eager", "mistral_sliding", "qwen2_some_sliding"])
@pytest.mark.parametrize("batch_size", [1, 5])
def test_other_kinds_of_attention(kind: str, batch_size: int) -> None:
    prompts = many_prompts()[1:4]
    options: dict[str, Any] = {"max_new_tokens": 80, "end_ids": [END], "pad_id": PAD, "batch_size": batch_size}
    found = search(model(kind), prompts, threshold=0.03, max_nodes=10_000, grammar=LONG_TABLE(), **options)
    for own, prompt in zip(found, prompts, strict=True):
        assert_found(own, texts_after(kind, tuple(prompt), 80, LONG_TABLE, None, 0.03), 0.03, abs=1e-3)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("batch_size", [1, 4, 7])
def test_it_finds_what_a_grammar_allows(seed: int, batch_size: int) -> None:
    makers = AUTOMATONS[4 * seed : 4 * seed + 4]
    grammars = [maker() for maker in makers]
    found = find(threshold=0.01, grammar=grammars, max_new_tokens=20, batch_size=batch_size)
    for own, prompt, maker in zip(found, PROMPTS, makers, strict=True):
        assert_found(own, texts_after("qwen2_tied", tuple(prompt), 20, maker, None, 0.01), 0.01)


AUTOMATONS = [functools.partial(random_automaton, number) for number in range(16)]


@pytest.mark.parametrize("positions", [None, rows_of_four])
@pytest.mark.parametrize("batch_size", [2, None, 12])
def test_long_texts_are_verified_along_each_other(
    positions: Callable[..., list[int]] | None, batch_size: int | None
) -> None:
    """Some prompts begin alike, and two are equal."""
    prompts = [many_prompts()[number] for number in (0, 2, 6, 4)]
    options: dict[str, Any] = {"positions": positions, "batch_size": batch_size, "max_new_tokens": 80}
    found = find(prompts, threshold=0.02, grammar=LONG_TABLE(), **options)
    for own, prompt in zip(found, prompts, strict=True):
        assert_found(own, texts_after("qwen2_tied", tuple(prompt), 80, LONG_TABLE, positions, 0.02), 0.02, abs=1e-3)
    assert sum(len(own.completions) for own in found) > 5


@pytest.mark.parametrize("threshold", [1e-6, 0.9])
def test_the_greedy_completion_is_what_decode_writes(threshold: float) -> None:
    """Also where it is not worth the threshold."""
    prompts, grammars = PROMPTS * 2, [maker() for maker in AUTOMATONS[:8]]
    plain = decode(model(), prompts, max_new_tokens=20, end_ids=[END], pad_id=PAD, grammar=grammars)
    found = find(prompts, threshold=threshold, grammar=grammars, max_new_tokens=20, max_nodes=50)
    for own, expected in zip(found, plain, strict=True):
        assert own.greedy.token_ids == expected.token_ids
        assert (own.greedy.num_tokens, own.greedy.finished) == (expected.num_tokens, expected.finished)
        assert own.greedy.logprob == pytest.approx(expected.logprob, abs=1e-4)
        is_worth_it = own.greedy.finished and own.greedy.logprob >= math.log(threshold)
        assert (own.greedy in own.completions) == is_worth_it
    assert {own.greedy in own.completions for own in found} == {True, False}


def uniform_model() -> PreTrainedModel:
    """All tokens are equally likely, always."""
    own = make_model("qwen2_untied")
    torch.nn.init.zeros_(own.lm_head.weight)
    return own


@pytest.mark.parametrize(("cells", "columns"), [(10, 1), (3, 2), (7, 2), (5, 3)])
@pytest.mark.parametrize("batch_size", [1, 5])
def test_what_is_exactly_at_the_threshold_is_found(cells: int, columns: int, batch_size: int) -> None:
    grammar, count = table(1, columns, cells=tuple(range(cells))), cells**columns
    options: dict[str, Any] = {"max_nodes": 10**6, "max_new_tokens": 9, "end_ids": [END], "pad_id": PAD}
    own = uniform_model()
    (found,) = search(own, [[1]], threshold=1 / count, grammar=grammar, batch_size=batch_size, **options)
    rows = [one.token_ids[2:-1] for one in found.completions]
    assert rows == [list(row) for row in itertools.product(range(cells), repeat=columns)]
    assert [one.logprob for one in found.completions] == pytest.approx([-math.log(count)] * count, abs=1e-12)
    assert found.nodes == sum(cells**column for column in range(columns))
    (found,) = search(own, [[1]], threshold=1.001 / count, grammar=grammar, batch_size=batch_size, **options)
    assert (found.completions, found.is_complete) == ([], True)
    assert found.greedy.token_ids[2:-1] == [0] * columns


@pytest.mark.parametrize("batch_size", [1, 6])
def test_at_a_limit_of_nodes_it_says_so(batch_size: int) -> None:
    (whole,) = find_toys(0.01, TOY_PROMPTS[:1], batch_size=batch_size)
    known = {tuple(one.token_ids): one.logprob for one in whole.completions}
    counts = []
    for max_nodes in range(1, whole.nodes + 2):
        (found,) = find_toys(0.01, TOY_PROMPTS[:1], batch_size=batch_size, max_nodes=max_nodes)
        assert found.is_complete == (found.nodes == whole.nodes)
        # What is fed in a pass, and the greedy completion.
        assert min(max_nodes, whole.nodes) <= found.nodes < max_nodes + batch_size + 5
        assert found.greedy.token_ids == whole.greedy.token_ids
        for one in found.completions:
            assert one.logprob == pytest.approx(known[tuple(one.token_ids)], abs=1e-4)
        counts.append(len(found.completions))
    assert found.is_complete
    assert counts == sorted(counts)
    assert 0 < counts[0] < counts[-1] == len(known)


def test_when_time_is_up_the_greedy_completions_are_there() -> None:
    whole, grammar = find(threshold=0.01, grammar=table(4, 4)), table(4, 4)
    for asked in (0, 5, 20):
        times = itertools.count()
        found = find(threshold=0.01, grammar=grammar, until=lambda: next(times) >= asked)  # noqa: B023
        assert not all(own.is_complete for own in found)
        for own, all_of_them in zip(found, whole, strict=True):
            assert own.greedy.token_ids == all_of_them.greedy.token_ids
            assert {tuple(one.token_ids) for one in own.completions} <= {
                tuple(one.token_ids) for one in all_of_them.completions
            }


def test_branches_of_one_prompt_are_written_side_by_side() -> None:
    def count(batch_size: int, sizes: list[int]) -> int:
        watch = model().register_forward_pre_hook(
            lambda _, args, inputs: sizes.append(inputs["input_ids"].shape[0]), with_kwargs=True
        )
        try:
            return count_passes(model(), lambda: find(PROMPTS[:1], batch_size=batch_size, **options))
        finally:
            watch.remove()

    options: dict[str, Any] = {"threshold": 0.003, "grammar": table(6, 6, cells=(10, 11))}
    (found,) = find(PROMPTS[:1], **options)
    sizes: list[int] = []
    # Without the passes of the greedy completion.
    one_by_one, together = count(1, []) - 36, count(4, sizes) - 36
    assert max(sizes) == 4
    assert together <= 0.5 * one_by_one
    # Each node would take a pass of its own.
    assert one_by_one <= 0.5 * (found.nodes - 36)


def test_a_good_draft_saves_passes() -> None:
    options: dict[str, Any] = {"threshold": 0.9, "grammar": table(5, 5)}
    found = find(**options)
    plain = count_passes(model(), lambda: find(**options))
    drafts = [own.greedy.token_ids for own in found]
    again: list[SearchResult] = []
    assert count_passes(model(), lambda: again.extend(find(**options, draft_tokens=drafts))) <= 0.3 * plain
    assert [own.greedy.token_ids for own in again] == drafts


def test_what_is_cut_off_is_not_found() -> None:
    (found,) = find_toys(0.0001, TOY_PROMPTS[:1], max_new_tokens=2)
    assert_found(found, {text: value for text, value in toy_texts()[0].items() if len(text) <= 2}, 0.0001)
    grammar = table(2, 2)
    for limit in (1, 4, 9):
        (found,) = find(PROMPTS[:1], threshold=1e-9, grammar=grammar, max_new_tokens=limit)
        assert (found.completions, found.is_complete) == ([], True)
        expected = plainly(model(), PROMPTS[0], grammar, limit)
        assert (found.greedy.token_ids, found.greedy.finished) == (expected.token_ids, False)


def test_where_all_is_forced_the_model_is_not_asked() -> None:
    found: list[SearchResult] = []
    grammar = table(2, 2, cells=(10,))
    assert count_passes(model(), lambda: found.extend(find(threshold=1.0, grammar=grammar))) == 0
    expected = Completion([31, 20, 10, 10, 30, 21, 10, 10, 30], 0.0, 10, True)
    assert found == [SearchResult([expected], expected, True, 0)] * len(PROMPTS)


def test_of_two_ends_the_likelier_counts() -> None:
    ends = [3, TOY_END]
    (found,) = find_toys(0.001, TOY_PROMPTS[:1], end_ids=ends)
    texts = all_texts(toy_model(), TOY_PROMPTS[0], 5, ends)
    best = {text: value for text, value in texts.items() if value == max(texts[*text[:-1], end] for end in ends)}
    assert {text[-1] for text in best if best[text] >= math.log(0.001)} == set(ends)
    assert_found(found, best, 0.001)


def test_prompts_of_different_adapters_share_nothing() -> None:
    prompt = many_prompts()[0]
    prompts, adapters, live = [prompt] * 4, [0, 1, 0, 1], list[int]()

    def shifted(module: torch.nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        strengths = torch.tensor([0.5 * adapters[number] for number in live])
        return output + strengths[:, None, None] * output.roll(1, dims=-1)

    def routed(batch_size: int) -> list[SearchResult]:
        return find(
            prompts,
            threshold=0.01,
            grammar=table(2, 4, cells=(10, 11)),
            on_rows_changed=lambda now: live.__setitem__(slice(None), now),
            adapters=adapters,
            batch_size=batch_size,
        )

    layer = model().get_submodule("model.layers.0.self_attn.v_proj").register_forward_hook(shifted)
    try:
        found = [routed(4), routed(7), routed(2)]
    finally:
        layer.remove()
    plain = find([prompt], threshold=0.01, grammar=table(2, 4, cells=(10, 11)))[0]
    for results in found:
        texts = [[one.token_ids for one in own.completions] for own in results]
        assert texts[0] == texts[2] == [one.token_ids for one in plain.completions]
        assert texts[1] == texts[3] != texts[0]
        logprobs = [[one.logprob for one in own.completions] for own in results]
        assert logprobs[1] == pytest.approx(logprobs[3], abs=1e-4)
        assert logprobs[0] == pytest.approx([one.logprob for one in plain.completions], abs=1e-4)


@pytest.mark.parametrize("value", [math.nan, math.inf], ids=["nan", "inf"])
@pytest.mark.parametrize("grammar", [None, table(3, 3)], ids=["plain", "grammar"])
def test_a_logit_that_is_no_number_is_an_error(value: float, grammar: Automaton | None) -> None:
    own = make_model("qwen2_untied")
    with torch.no_grad():
        own.lm_head.weight[12] = value
    options: dict[str, Any] = {"max_nodes": 100, "max_new_tokens": 9, "end_ids": [END], "pad_id": PAD}
    with pytest.raises(DecodingError, match=r"prompt \d: the model's logits are not finite"):
        search(own, PROMPTS, threshold=0.1, grammar=grammar, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0.0}, "threshold=0.0: above 0, at most 1"),
        ({"threshold": 1.5}, "threshold=1.5: above 0, at most 1"),
        ({"threshold": math.nan}, "threshold=nan: above 0, at most 1"),
        ({"max_nodes": 0}, "max_nodes=0: at least 1"),
        ({"max_new_tokens": 0}, "max_new_tokens=0 for prompt 0: at least 1"),
        ({"prompts": [[5], []]}, "prompt 1 is empty"),
        ({"batch_size": 0}, "batch_size=0: at least 1"),
        ({"grammar": [table(1, 1)]}, "1 grammars for 4 prompts; give one for each"),
        ({"draft_tokens": [[1]]}, "1 draft_tokens for 4 prompts; give one for each"),
        ({"adapters": [1]}, "1 adapters for 4 prompts; give one for each"),
    ],
)
def test_bad_input_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DecodingError, match=message):
        find(**{"threshold": 0.1} | options)


def test_nothing_is_asked_for() -> None:
    run: Callable[[], object] = lambda: find([], threshold=0.1)  # noqa: E731
    assert count_passes(model(), run) == 0
