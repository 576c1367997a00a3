"""The prompts of a test: its problem, varied in several ways."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence

import numpy as np

from arcft.config.inference import InferenceConfig
from arcft.protocols import Answer, DealViews, Problem, Question, TestKey, View
from arcft.text.builder import ExampleBuilder


@dataclasses.dataclass(frozen=True)
class AugmentedPrompt:
    """One of the prompts of a test."""

    problem: Problem
    """Without augmentation."""

    test_index: int
    number: int
    """Which of the test's prompts, from 0."""

    view: View
    """How the problem was varied; it is undone on the answer."""

    token_ids: list[int]
    """Empty where the prompt does not fit the context."""

    max_new_tokens: int
    """Tokens that the answer may take, its end included; 0 where the prompt does not fit."""

    @property
    def test(self) -> TestKey:
        """The test that it asks about."""
        return self.problem.id, self.test_index


def augmented_prompts(
    builder: ExampleBuilder,
    deal_views: DealViews,
    problem: Problem,
    test_index: int,
    config: InferenceConfig,
    *,
    first: int = 0,
) -> list[AugmentedPrompt]:
    """The prompts for test `test_index` (from 0) of `problem`: the first un-augmented, the others varied.

    More prompts extend fewer: the first 8 of 16 are those of 8, and `first=8` gives the others.
    """
    rng = np.random.default_rng(derived_seed(config.seed, problem.id, test_index))
    views = deal_views(problem, config.predictions_per_test, rng)
    prompts = []
    for number, view in list(enumerate(views))[first:]:
        question = builder.format.question(view.apply(problem), test_index)
        token_ids, max_new_tokens = _fit(builder, question, config)
        prompts.append(AugmentedPrompt(problem, test_index, number, view, token_ids, max_new_tokens))
    return prompts


def demonstrations_left_out(
    builder: ExampleBuilder, deal_views: DealViews, problem: Problem, config: InferenceConfig
) -> int | None:
    """The most demonstrations that a prompt for `problem` lacks, to fit the context; None where one fits in no way.

    A problem of up to half the context is not looked at: no augmentation makes it twice as long.
    """
    if 2 * builder.num_tokens(problem) <= _context(builder, config):
        return 0
    most = 0
    for test_index in range(len(problem.answers)):
        rng = np.random.default_rng(derived_seed(config.seed, problem.id, test_index))
        for view in deal_views(problem, config.predictions_per_test, rng):
            question = builder.format.question(view.apply(problem), test_index)
            fitted = builder.fit(question, _room(builder, question, config)[0])
            if fitted is None:
                return None
            most = max(most, builder.left_out(question, fitted))
    return most


def completions_for(builder: ExampleBuilder, prompt: AugmentedPrompt, answers: Sequence[Answer]) -> list[list[int]]:
    """The completions, with their ends, that stand for `answers` under the prompt's augmentation.

    `answers` are answers to the un-augmented test.
    """
    mapped = prompt.view.map_answers(prompt.problem, prompt.test_index, answers)
    return [builder.tokenization.completion_ids(builder.format.completion(answer)) for answer in mapped]


def derived_seed(*key: int | str) -> int:
    """63 bits that depend on every part of `key`, the same on every machine (Python's own hash is salted)."""
    return int.from_bytes(hashlib.sha256(json.dumps(key).encode()).digest()[:8], "little") >> 1


def _fit(builder: ExampleBuilder, question: Question, config: InferenceConfig) -> tuple[list[int], int]:
    """The prompt's ids and the room for the answer; no ids and no room where not even one demonstration fits.

    The length of the answer is unknown. Demonstrations are dropped only until the longest likely answer would fit; the
    answer may then fill what is left of the context, up to the longest answer.
    """
    room, limit = _room(builder, question, config)
    fitted = builder.fit(question, room)
    if fitted is None:
        return [], 0
    token_ids = builder.prompt(fitted)
    return token_ids, min(limit, _context(builder, config) - len(token_ids))


def _room(builder: ExampleBuilder, question: Question, config: InferenceConfig) -> tuple[int, int]:
    """Tokens of the builder's context that the prompt must leave free, and the most that the answer may take."""
    completions = map(builder.format.completion, builder.format.likely_answers(question))
    lengths = list(map(builder.tokenization.completion_length, completions))
    limit = config.max_new_tokens
    if limit is None:
        limit = builder.grammar.longest if config.uses_grammar else builder.longest_answer
    context = _context(builder, config)
    if limit is None:
        limit = context
    # Without a likely answer, half the context: an answer without a bound must not push out the question.
    room = min(max(lengths, default=context // 2), limit)
    return room + builder.max_seq_length - context, limit


def _context(builder: ExampleBuilder, config: InferenceConfig) -> int:
    """Tokens of prompt and answer together, at most."""
    return min(builder.max_seq_length, config.max_seq_length or builder.max_seq_length)
