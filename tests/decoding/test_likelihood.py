"""Scores of given completions against plain forward passes, and against what the decoder reports."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from arcft.decoding import likelihood
from arcft.decoding.core import batch
from arcft.decoding.core.completion import Completion
from arcft.errors import DecodingError
from tests.decoding.test_decoder import KINDS, PAD, forward_logprob, make_model, many_prompts, rows_of_four
from tests.decoding.test_decoder_grammar import PROMPTS, unusual_model, write
from tests.support.decoding import decode, score
from tests.support.toy_grammar import END, random_automaton, table


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return make_model("qwen2_tied")


def some_completions(count: int, seed: int = 0) -> list[list[list[int]]]:
    """For each prompt none to four, of one token to thirty; some begin alike."""
    generator = torch.Generator().manual_seed(seed)
    groups = []
    for number in range(count):
        drawn = torch.randint(0, 61, (4, 30), generator=generator).tolist()
        group = [drawn[0], drawn[0][:1], drawn[1][:17], drawn[0][:20] + drawn[2][:5]]
        groups.append(group[: number % 5])
    return groups


def flat(groups: Sequence[Sequence[float]]) -> list[float]:
    return [value for group in groups for value in group]


@pytest.mark.parametrize("kind", KINDS)
def test_a_score_is_a_plain_forward_pass(kind: str) -> None:
    model, prompts = make_model(kind), many_prompts()
    completions = some_completions(len(prompts))
    expected = [
        forward_logprob(model, prompt, one) for prompt, group in zip(prompts, completions, strict=True) for one in group
    ]
    assert len(expected) == 20
    options: list[dict[str, Any]] = [{}, {"batch_size": 1}, {"batch_size": 4}, {"share_prefixes": False}]
    for own in options:
        found = score(model, prompts, completions, pad_id=PAD, **own)
        assert list(map(len, found)) == list(map(len, completions))
        assert flat(found) == pytest.approx(expected, abs=1e-4)


def test_long_ones_are_read_in_pieces(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, completions = many_prompts(), some_completions(11)
    expected = flat(score(model, prompts, completions, pad_id=PAD))
    lengths: list[int] = []
    hook = model.register_forward_pre_hook(
        lambda _, args, inputs: lengths.append(inputs["input_ids"].shape[1]), with_kwargs=True
    )
    try:
        monkeypatch.setattr(likelihood, "_MAX_LOGITS", 20 * 61 * 5)
        assert flat(score(model, prompts, completions, pad_id=PAD)) == pytest.approx(expected, abs=1e-4)
        assert max(lengths) <= max(map(len, prompts)) + 4
        monkeypatch.setattr(batch, "_MAX_MASK_ENTRIES", 2000)
        lengths.clear()
        assert flat(score(model, prompts, completions, pad_id=PAD)) == pytest.approx(expected, abs=1e-4)
        assert lengths.count(1) > 20
    finally:
        hook.remove()


def test_a_prompt_is_read_once_for_all_its_completions(model: PreTrainedModel) -> None:
    prompt = many_prompts()[5]
    completions = [[number] * 5 for number in range(6)]
    tokens: list[int] = []
    hook = model.register_forward_pre_hook(
        lambda _, args, inputs: tokens.append(inputs["input_ids"].numel()), with_kwargs=True
    )
    try:
        score(model, [prompt], [completions], pad_id=PAD)
    finally:
        hook.remove()
    # Of a completion, the last token is not fed, and of the prompt, the last one is fed for each.
    assert tokens == [len(prompt) + 4, 5 * 5]


def with_end(completion: Completion) -> list[int]:
    return completion.token_ids + ([END] if completion.finished else [])


@pytest.mark.parametrize("kind", ["qwen2_tied", "eager_some_sliding", "scaled"])
def test_a_score_is_what_the_decoder_reports(kind: str) -> None:
    model = unusual_model(kind) if kind == "scaled" else make_model(kind)
    prompts = many_prompts()
    grammars = [table(5, 4) if number % 2 else random_automaton(number) for number in range(len(prompts))]
    for options in ({"grammar": grammars}, {}):
        written = [
            write(model, prompts, **options),
            write(model, prompts, **options, temperature=2.0, generator=torch.Generator().manual_seed(1)),
        ]
        completions = [[with_end(one), with_end(other)] for one, other in zip(*written, strict=True)]
        found = score(model, prompts, completions, pad_id=PAD, **options)
        for number, own in enumerate(found):
            assert own == pytest.approx([each[number].logprob for each in written], abs=1e-4)


def test_positions_may_jump(model: PreTrainedModel) -> None:
    prompts = many_prompts()
    written = decode(model, prompts, max_new_tokens=20, end_ids=[], pad_id=PAD, positions=rows_of_four)
    found = score(model, prompts, [[one.token_ids] for one in written], pad_id=PAD, positions=rows_of_four)
    assert flat(found) == pytest.approx([one.logprob for one in written], abs=1e-4)


def test_what_is_forced_is_certain(model: PreTrainedModel) -> None:
    completion = [31, 20, 10, 10, 30, END]
    assert score(model, PROMPTS, [[completion]] * 4, pad_id=PAD, grammar=table(1, 2, cells=(10,))) == [[0.0]] * 4


def test_all_texts_of_a_grammar_add_up_to_one(model: PreTrainedModel) -> None:
    cells = (10, 12, 40)
    texts = [[31, 20, one, other, third, 30, END] for one in cells for other in cells for third in cells]
    (found,) = score(model, PROMPTS[:1], [texts], pad_id=PAD, grammar=table(1, 3, cells=cells), batch_size=10)
    assert sum(map(math.exp, found)) == pytest.approx(1.0, abs=1e-5)


def test_rows_are_routed_by_their_prompts(model: PreTrainedModel) -> None:
    told: list[list[int]] = []
    options: dict[str, Any] = {"pad_id": PAD, "on_rows_changed": lambda now: told.append(list(now))}
    completions = [[[1, 2]], [[3, 4], [5, 6], [7]], [], [[8, 9]]]
    score(model, PROMPTS, completions, **options)
    assert told[0] == [0, 1, 1, 1, 3]
    told.clear()
    prompts = [many_prompts()[0]] * 4
    expected = flat(score(model, prompts, completions, pad_id=PAD))
    assert flat(score(model, prompts, completions, **options, adapters=[0, 1, 1, 1])) == pytest.approx(
        expected, abs=1e-4
    )
    assert told == [[0, 1], [1, 1, 3]]


@pytest.mark.parametrize("value", [math.nan, math.inf], ids=["nan", "inf"])
def test_logits_that_are_not_finite_are_refused(value: float) -> None:
    broken = make_model("qwen2_untied")
    with torch.no_grad():
        broken.lm_head.weight[17] = value
    with pytest.raises(DecodingError, match=r"prompt 0: .* not finite; .*inference\.dtype=float32"):
        score(broken, PROMPTS, [[[1]]] * 4, pad_id=PAD)


@pytest.mark.parametrize(
    ("prompts", "completions", "options", "message"),
    [
        ([[1]], [[[]]], {}, "prompt 0 or one of its completions is empty"),
        ([[1], []], [[[1]], [[2]]], {}, "prompt 1 or one of its completions is empty"),
        ([[1]], [], {}, "0 groups of completions for 1 prompts; give one for each"),
        ([[1]], [[[1]]], {"grammar": []}, "0 grammars for 1 prompts; give one for each"),
        ([[1]], [[[1]]], {"adapters": [1, 2]}, "2 adapters for 1 prompts; give one for each"),
        (
            [[1]],
            [[[31, 20, 9]]],
            {"grammar": table(1, 1)},
            "prompt 0: token 2 of a completion, 9, is not one of the 5 that the grammar allows there; score it without",
        ),
    ],
)
def test_bad_input_is_refused(
    model: PreTrainedModel,
    prompts: list[list[int]],
    completions: list[list[list[int]]],
    options: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(DecodingError, match=message):
        score(model, prompts, completions, pad_id=PAD, **options)


def test_nothing_to_score(model: PreTrainedModel) -> None:
    assert score(model, [], [], pad_id=PAD) == []
    assert score(model, PROMPTS, [[]] * 4, pad_id=PAD) == [[]] * 4
