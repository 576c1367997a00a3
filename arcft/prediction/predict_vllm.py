"""Predict tests with vLLM, an engine that loads models itself, in batches over tests and adapters.

Unlike with arcft's own decoder, a test's predictions depend on what else is in a batch, by the rounding of sums.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Collection, Iterator, Sequence

from arcft.config.inference import InferenceConfig
from arcft.decoding.core.completion import Completion
from arcft.decoding.vllm_engine import Request
from arcft.prediction.predict import read_answer, unasked
from arcft.prediction.prompts import AugmentedPrompt, augmented_prompts
from arcft.protocols import DealViews, Problem, TestKey
from arcft.scoring.predictions import Prediction
from arcft.text.builder import ExampleBuilder


@dataclasses.dataclass(frozen=True, kw_only=True)
class VllmModel:
    """Where the engine finds a model."""

    model: str
    """Hub id or folder of the base model."""

    adapter: str | None = None
    """The folder of an adapter in PEFT's format."""

    rank: int = 0
    """LoRA rank of the adapter."""


@dataclasses.dataclass(frozen=True)
class VllmJob:
    """Problems that one model answers."""

    served: VllmModel
    builder: ExampleBuilder
    deal_views: DealViews
    problems: Sequence[Problem]


def predict_jobs(
    jobs: Sequence[VllmJob],
    config: InferenceConfig,
    complete: Callable[[list[Request]], list[Completion]],
    *,
    done: Collection[TestKey] = (),
) -> Iterator[list[Prediction]]:
    """Yield the predictions of one test after the other, in the order of `jobs`; those in `done` are skipped.

    As many tests are completed together as it takes to fill a batch.
    """
    waiting: list[tuple[VllmJob, list[AugmentedPrompt]]] = []
    for job in jobs:
        for problem in job.problems:
            for test_index in range(len(problem.answers)):
                if (problem.id, test_index) not in done:
                    prompts = augmented_prompts(job.builder, job.deal_views, problem, test_index, config)
                    waiting.append((job, prompts))
                    if sum(len(prompts) for _, prompts in waiting) >= config.batch_size:
                        yield from _completed(waiting, config, complete)
                        waiting = []
    yield from _completed(waiting, config, complete)


def _completed(
    waiting: Sequence[tuple[VllmJob, list[AugmentedPrompt]]],
    config: InferenceConfig,
    complete: Callable[[list[Request]], list[Completion]],
) -> Iterator[list[Prediction]]:
    requests = [
        Request(prompt.token_ids, prompt.max_new_tokens, job.builder.tokenization.end_ids, job.served.adapter)
        for job, prompts in waiting
        for prompt in prompts
        if prompt.token_ids
    ]
    start = time.perf_counter()
    completions = iter(complete(requests) if requests else [])
    seconds = (time.perf_counter() - start) / max(1, len(requests))
    for job, prompts in waiting:
        yield [
            read_answer(job.builder, prompt, next(completions), seconds, config)
            if prompt.token_ids
            else unasked(prompt, config)
            for prompt in prompts
        ]
