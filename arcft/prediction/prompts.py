"""The questions that are asked about a test: its task varied in several ways, each as a prompt."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence

import numpy as np

from arcft.config.inference import InferenceConfig
from arcft.problems.arc.augment.transforms import Transform, deal_transforms
from arcft.problems.arc.format.examples import ExampleBuilder
from arcft.problems.arc.task import Grid, Pair, Task
from arcft.problems.arc.views import Problem, test_problem
from arcft.scoring.predictions import TestKey


@dataclasses.dataclass(frozen=True)
class AugmentedPrompt:
    """One of the questions that are asked about a test."""

    task: Task
    """As it is, before it was varied."""

    test_index: int
    number: int
    """Which of the test's prompts, from 0."""

    transform: Transform
    """How the task was varied; the answer is turned back by it."""

    token_ids: list[int]
    """Empty where the prompt does not fit the context."""

    max_new_tokens: int
    """Tokens that the answer may take, its end included; 0 where the prompt does not fit."""

    @property
    def test(self) -> TestKey:
        """Of which test it asks."""
        return self.task.id, self.test_index


def augmented_prompts(
    builder: ExampleBuilder, task: Task, test_index: int, config: InferenceConfig, *, first: int = 0
) -> list[AugmentedPrompt]:
    """The prompts for test `test_index` (from 0) of `task`: the first as it is, the others varied.

    Asking for more keeps the earlier ones: the first 8 of 16 are those of 8, and with `first=8` the others come.
    """
    rng = np.random.default_rng(derived_seed(config.seed, task.id, test_index))
    transforms = deal_transforms(
        task,
        config.predictions_per_test,
        rng,
        geometric=config.augment_geometric,
        colors=config.augment_colors,
        pair_order=config.augment_pair_order,
    )
    dealt = []
    for number, transform in list(enumerate(transforms))[first:]:
        problem = test_problem(transform.apply(task), test_index)
        token_ids, max_new_tokens = _fit(builder, problem, config)
        dealt.append(AugmentedPrompt(task, test_index, number, transform, token_ids, max_new_tokens))
    return dealt


def completions_for(builder: ExampleBuilder, prompt: AugmentedPrompt, grids: Sequence[Grid]) -> list[list[int]]:
    """The completions, with their ends, that stand for `grids` under the prompt's augmentation.

    `grids` are outputs of the test as it is, before its task was varied.
    """
    given = prompt.task.test[prompt.test_index].input
    asked = dataclasses.replace(prompt.task, test=tuple(Pair(given, grid) for grid in grids))
    outputs = [pair.output for pair in prompt.transform.apply(asked).test]
    texts = [builder.prompts.completion(output) for output in outputs if output is not None]
    return [builder.tokenization.completion_ids(text) for text in texts]


def derived_seed(*key: int | str) -> int:
    """63 bits that depend on every part of `key`, the same on every machine (Python's own hash is salted)."""
    return int.from_bytes(hashlib.sha256(json.dumps(key).encode()).digest()[:8], "little") >> 1


def _fit(builder: ExampleBuilder, problem: Problem, config: InferenceConfig) -> tuple[list[int], int]:
    """The prompt's ids and the room for the answer; no ids and no room where not even one demonstration fits.

    How long the answer will be is not known. Demonstrations are dropped only until the longest output shown, or the
    test input as an answer, would fit: keeping a 30x30 grid's room free would cost small contexts most of their
    demonstrations. The answer may then fill what is left of the context, up to a 30x30 grid.
    """
    shown = [pair.output for pair in problem.demonstrations] + [problem.query]
    likely = max(
        builder.tokenization.completion_length(builder.prompts.completion(grid)) for grid in shown if grid is not None
    )
    limit = config.max_new_tokens
    if limit is None:
        limit = builder.grammar.longest if config.grammar else builder.longest_answer
    context = min(builder.max_seq_length, config.max_seq_length or builder.max_seq_length)
    unused = builder.max_seq_length - context
    fitted = builder.fit(problem, min(likely, limit) + unused)
    if fitted is None:
        return [], 0
    token_ids = builder.prompt(fitted)
    return token_ids, min(limit, context - len(token_ids))
