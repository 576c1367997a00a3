"""The decoder with the grammar of grids and positions in two dimensions, on the architecture of the bundled model."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from arcft.decoding.core.completion import Completion
from arcft.decoding.core.completion import Completion as Written
from arcft.problems.arc.questions import ask_output
from arcft.protocols import Grammar
from tests.decoding.test_decoder_grammar import assert_equal, drafts_of, plainly
from tests.problems.arc.format.test_grid_positions import model, rule, tasks, tiny
from tests.support.decoding import decode, score

LIMIT = 40


@functools.cache
def grammar() -> Grammar:
    return tiny().grammar


@functools.cache
def prompts() -> list[list[int]]:
    """Of different lengths; two are equal, and one goes on where another ends."""
    own = [tiny().prompt(ask_output(task, 0)) for task in tasks()[:3]]
    return [*own, own[0], own[1][:-5]]


def options() -> dict[str, Any]:
    return {"max_new_tokens": LIMIT, "end_ids": tiny().tokenization.end_ids, "pad_id": 0, "positions": rule()}


@functools.cache
def expected() -> list[Completion]:
    end = tiny().tokenization.end_id
    return [plainly(model(), prompt, grammar(), LIMIT, rule(), end=end) for prompt in prompts()]


@pytest.mark.parametrize("batch_size", [1, 2, None])
@pytest.mark.parametrize("share_prefixes", [False, True])
def test_a_grid_is_written_as_one_token_at_a_time_would(batch_size: int | None, share_prefixes: bool) -> None:
    found = decode(
        model(), prompts(), **options(), grammar=grammar(), batch_size=batch_size, share_prefixes=share_prefixes
    )
    assert_equal(found, expected(), abs=1e-3)


@pytest.mark.parametrize("draft", ["right", "every fourth wrong", "shifted", "garbage", "mixed"])
def test_drafted_cells_change_nothing(draft: str) -> None:
    found = decode(model(), prompts(), **options(), grammar=grammar(), draft_tokens=drafts_of(expected())[draft])
    assert_equal(found, expected(), abs=1e-3)


def test_what_is_written_to_its_end_is_a_grid_and_worth_its_score() -> None:
    own = options() | {"max_new_tokens": grammar().longest, "end_ids": [tiny().tokenization.end_id]}
    completions: list[Written] = decode(model(), prompts()[:2], **own, grammar=grammar())
    texts = []
    for completion in completions:
        assert completion.finished
        answer = tiny().format.parse(tiny().tokenization.decode(completion.token_ids))
        texts.append([tiny().tokenization.completion_ids(tiny().format.completion(answer))])
        assert texts[-1] == [[*completion.token_ids, tiny().tokenization.end_id]]
    found = score(model(), prompts()[:2], texts, pad_id=0, positions=rule(), grammar=grammar())
    assert [one for (one,) in found] == pytest.approx([one.logprob for one in completions], abs=1e-2)
