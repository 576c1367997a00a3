"""Rows with adapters of their own are completed and scored as each would be by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model

from tests.decoding.test_decoder import make_model
from tests.decoding.test_decoder_grammar import PROMPTS, assert_equal, drafts_of, plainly, write
from tests.models.test_stacked_lora import make_stacked
from tests.support.decoding import decode, score
from tests.support.plain_adaptation import PAD, adapted
from tests.support.small_training import TRAIN_MODULES, small_model
from tests.support.toy_grammar import END, random_automaton

SLOTS = [2, 0, 1, 1, 0, 2, 2, 0]
LONG = [7, 8, 9, 10] * 12
TEXTS = [[5, 6, 7, 8, 9], LONG, [*LONG, 20], [30], LONG, [12, 13], [*LONG, 21, 22], [*LONG, 20]]
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "whole": {"train_modules": TRAIN_MODULES},
    "whole head": {"train_modules": ["lm_head", "embed_tokens"]},
    "adapted head": {"target_modules": ["q_proj", "lm_head"]},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("has_grammar", [False, True])
def test_side_by_side_and_alone_are_the_same(variant: str, has_grammar: bool) -> None:
    options = dict(VARIANTS[variant])
    train_modules = options.pop("train_modules", [])
    stacked = make_stacked(
        lambda: adapted(small_model(seed=3, initializer_range=0.3, vocab_size=61), train_modules, **options)
    )
    grammars = [random_automaton(seed) for seed in range(8)] if has_grammar else None
    written: dict[str, Any] = {"max_new_tokens": 20, "end_ids": [END], "pad_id": PAD}
    alone = []
    for number, slot in enumerate(SLOTS):
        with stacked.merged(slot):
            own = None if grammars is None else grammars[number]
            alone += decode(stacked.model, TEXTS[number : number + 1], **written, grammar=own)
    assert len({tuple(completion.token_ids) for completion in alone}) > 5
    with stacked.routed() as route:

        def follow(live: Sequence[int]) -> None:
            route([SLOTS[row] for row in live])

        shared: dict[str, Any] = {"grammar": grammars, "on_rows_changed": follow}
        for drafts in (None, drafts_of(alone)["every fourth wrong"], drafts_of(alone)["mixed"]):
            for own in ({}, {"adapters": SLOTS}, {"adapters": SLOTS, "batch_size": 3}):
                assert_equal(decode(stacked.model, TEXTS, **written, **shared, **own, draft_tokens=drafts), alone)
        texts = [[*one.token_ids, END] if one.finished else one.token_ids for one in alone]
        found = score(stacked.model, TEXTS, [[text] for text in texts], pad_id=PAD, **shared, adapters=SLOTS)
        assert [one for (one,) in found] == pytest.approx([one.logprob for one in alone], abs=1e-4)


def test_an_adapter_on_the_head_counts_under_a_grammar() -> None:
    config = LoraConfig(r=4, target_modules=["q_proj", "lm_head"], init_lora_weights=False)
    model = get_peft_model(make_model("qwen2_untied"), config).eval()
    grammar = random_automaton(3)
    expected = [plainly(model, prompt, grammar, 20) for prompt in PROMPTS]  # type: ignore[arg-type]
    assert_equal(write(model, PROMPTS, 20, grammar=grammar), expected)  # type: ignore[arg-type]
    drafts = drafts_of(expected)["right"]
    assert_equal(write(model, PROMPTS, 20, grammar=grammar, draft_tokens=drafts), expected)  # type: ignore[arg-type]
