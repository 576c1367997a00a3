"""Predict tests by an engine that reads models by itself, in batches over tests and adapters.

A test's predictions depend on what else is in a batch, by the rounding of sums: not to the bit on the task alone, as
those that arcft's own decoder makes.
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
from arcft.problems.arc.format.examples import ExampleBuilder
from arcft.problems.arc.task import Task
from arcft.scoring.predictions import Prediction, TestKey


@dataclasses.dataclass(frozen=True)
class Served:
    """Where an engine finds a model."""

    model: str
    """Hub id or folder of the base model."""

    adapter: str | None = None
    """The folder of an adapter in PEFT's format."""

    rank: int = 0
    """Of the adapter."""


@dataclasses.dataclass(frozen=True)
class ServedTasks:
    """Tasks that one model answers."""

    served: Served
    builder: ExampleBuilder
    tasks: Sequence[Task]


def predict_served(
    shares: Sequence[ServedTasks],
    config: InferenceConfig,
    complete: Callable[[list[Request]], list[Completion]],
    *,
    done: Collection[TestKey] = (),
) -> Iterator[list[Prediction]]:
    """Yield the predictions of one test after the other, in the order of `shares`; those in `done` are left out.

    As many tests are asked together as it takes to fill a batch.
    """
    waiting: list[tuple[ServedTasks, list[AugmentedPrompt]]] = []
    for share in shares:
        for task in share.tasks:
            for test_index in range(len(task.test)):
                if (task.id, test_index) not in done:
                    waiting.append((share, augmented_prompts(share.builder, task, test_index, config)))
                    if sum(len(prompts) for _, prompts in waiting) >= config.batch_size:
                        yield from _answered(waiting, config, complete)
                        waiting = []
    yield from _answered(waiting, config, complete)


def _answered(
    waiting: Sequence[tuple[ServedTasks, list[AugmentedPrompt]]],
    config: InferenceConfig,
    complete: Callable[[list[Request]], list[Completion]],
) -> Iterator[list[Prediction]]:
    requests = [
        Request(prompt.token_ids, prompt.max_new_tokens, share.builder.tokenization.end_ids, share.served.adapter)
        for share, prompts in waiting
        for prompt in prompts
        if prompt.token_ids
    ]
    begun = time.perf_counter()
    completions = iter(complete(requests) if requests else [])
    seconds = (time.perf_counter() - begun) / max(1, len(requests))
    for share, prompts in waiting:
        yield [
            read_answer(share.builder, prompt, next(completions), seconds, config)
            if prompt.token_ids
            else unasked(prompt, config)
            for prompt in prompts
        ]
