"""model.prune_vocabulary: which tokens a run can use, and so which its tokenizer and its model keep."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from arcft.config.data import DataConfig
from arcft.config.model import ModelConfig
from arcft.errors import ModelError
from arcft.models.source import load_architecture, model_path
from arcft.protocols import Item, Kind, Problem, ProblemError, ProblemFormat, ProblemPool, PromptText, Question
from arcft.runs.setup.build import example_builder
from arcft.runs.setup.tasks import load_sources
from arcft.text.pruned_tokenizer import prune_tokenizer
from arcft.text.tokens import Tokenization

_VARIATIONS = 8
"""How often each problem of a kind without closed texts is varied to see its tokens."""


def run_tokenizer(
    kind: Kind,
    model: ModelConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    encoder: Any,
    prompt: Any,
    data: DataConfig,
    augmentation: Any,
) -> PreTrainedTokenizerBase:
    """`tokenizer`, or with model.prune_vocabulary one whose ids are those of the pruned model; the others are the
    groups of the run's config.

    What is kept depends on these alone, so that a resumed run, or a worker, keeps the same. Raise ModelError where the
    tokenizer belongs to another model.
    """
    if not model.prune_vocabulary:
        return tokenizer
    builder = example_builder(kind, encoder, prompt, tokenizer, positions=model.positions, max_seq_length=1)
    format, tokenization = builder.format, builder.tokenization
    closed = format.closed_texts()
    texts = _sampled(kind, format, data, augmentation) if closed is None else closed.prompts
    used = {token for text in texts for token in _tokens(tokenization, text)}
    rows = load_architecture(model).get_text_config(decoder=True).vocab_size
    if max(used) >= rows:
        raise ModelError(
            f"model.tokenizer={model.tokenizer or model.path}: writes token {max(used)}, but the model at "
            f"{model_path(model)} has embeddings for {rows} tokens only; give the tokenizer that belongs to it"
        )
    return prune_tokenizer(tokenization, used, characters="" if closed is None else closed.characters, rows=rows)


def _tokens(tokenization: Tokenization, text: PromptText) -> list[int]:
    prompt = tokenization.prompt_ids(text.system, text.user, text.opener)
    return prompt + tokenization.completion_ids(text.completion)


def _sampled(kind: Kind, format: ProblemFormat, data: DataConfig, augmentation: Any) -> Iterator[PromptText]:
    """The texts of all problems of the sets that `data` names, as they are and varied, with the answers known."""
    rng = np.random.default_rng(0)
    everything = load_sources(dataclasses.replace(data, task_ids=None, exclude=[]))
    for item in (item for _, items in everything for item in items):
        for question in _questions(kind, format, item, augmentation, rng):
            text = format.render(question)
            yield text
            for answer in (*format.shown_answers(question), *format.likely_answers(question)):
                yield dataclasses.replace(text, completion=format.completion(answer))


def _questions(
    kind: Kind, format: ProblemFormat, item: Item, augmentation: Any, rng: np.random.Generator
) -> Iterator[Question]:
    problems: list[Problem] = [item.draw(rng) for _ in range(_VARIATIONS)] if isinstance(item, ProblemPool) else [item]
    deal = kind.deal_views(kind.augmentations)
    for problem in problems:
        for view in deal(problem, _VARIATIONS, rng):
            varied = view.apply(problem)
            yield from (format.question(varied, index) for index in range(len(varied.answers)))
    ways: tuple[Literal["test", "leave_one_out"], ...] = ("test", "leave_one_out")
    for way in ways:
        sampler = kind.sampler(augmentation, format, view=way)
        with contextlib.suppress(ProblemError):  # nothing to learn from it in this way
            for problem in sampler.problems(item, rng):
                yield from (sampler.draw(problem, rng) for _ in range(_VARIATIONS))
