"""Predict the tests of tasks: several augmented prompts each, decoded, parsed and turned back.

What is predicted for a test depends on its task, the model and the config, and on nothing else in the run: its
transforms and its random numbers come from (seed, task id, test index), and a batch holds prompts of one test only.
Batches over several tests would be fuller where there are few prompts a test, but floating-point sums differ in their
last bits with the shape of a batch, so an answer could then change with the tasks beside it, or where a run was
resumed. Within a test, prompts of similar length are decoded together.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from transformers import PreTrainedModel

from arcft.arc.task import Task
from arcft.arc.transforms import Transform, deal_transforms
from arcft.arc.views import Problem, test_problem
from arcft.config.inference import InferenceConfig
from arcft.inference.decoder import Completion, decode
from arcft.scoring.predictions import Prediction, TestKey
from arcft.text.encoders import GridParseError
from arcft.text.examples import ExampleBuilder
from arcft.text.tokens import Tokenization

TOO_LONG = "the prompt does not fit the context, even with one demonstration; raise inference.max_seq_length"


@dataclasses.dataclass(frozen=True)
class AugmentedPrompt:
    """One of the questions that are asked about a test."""

    task_id: str
    test_index: int
    number: int
    """Which of the test's prompts, from 0."""

    transform: Transform
    """How the task was varied; the answer is turned back by it."""

    token_ids: list[int]
    """Empty where the prompt does not fit the context."""

    max_new_tokens: int
    """Tokens that the answer may take, its end included; 0 where the prompt does not fit."""


def predict_tasks(
    model: PreTrainedModel | PeftModel,
    builder: ExampleBuilder,
    tasks: Sequence[Task],
    config: InferenceConfig,
    *,
    done: Collection[TestKey] = (),
) -> Iterator[list[Prediction]]:
    """Yield the predictions of one test after the other, `config.predictions_per_test` each, in the order of `tasks`.

    Tests in `done` are left out, so an interrupted run goes on where it was. Arithmetic is as the caller has it: the
    model's own dtype, or autocast around the iteration. Raises DecodingError where the model gives no numbers.
    """
    for task in tasks:
        for test_index in range(len(task.test)):
            if (task.id, test_index) not in done:
                asked = augmented_prompts(builder, task, test_index, config)
                yield predict_prompts(model, builder, asked, config)


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
        dealt.append(AugmentedPrompt(task.id, test_index, number, transform, token_ids, max_new_tokens))
    return dealt


def predict_prompts(
    model: PreTrainedModel | PeftModel,
    builder: ExampleBuilder,
    asked: Sequence[AugmentedPrompt],
    config: InferenceConfig,
) -> list[Prediction]:
    """Ask `model` everything in `asked`, and return a prediction for each, in the same order."""
    predictions = predict_places(model, builder, asked, config)
    return [predictions[place] for place in range(len(asked))]


def predict_places(
    model: PreTrainedModel | PeftModel,
    builder: ExampleBuilder,
    asked: Sequence[AugmentedPrompt],
    config: InferenceConfig,
    *,
    route: Callable[[Sequence[int]], None] | None = None,
    until: Callable[[], bool] | None = None,
) -> dict[int, Prediction]:
    """Ask `model` what is in `asked`, of one test or of several, and return the predictions by place in it.

    `route` is told, before a forward pass and whenever rows have left, which places in `asked` the rows of the batch
    have: a model of several adapters chooses each row's by it. `until` is asked between batches; once it is true, what
    has not been decoded is left out.
    """
    predictions: dict[int, Prediction] = {}
    fitting = []
    for place, prompt in enumerate(asked):
        if prompt.token_ids:
            fitting.append(place)
        else:
            predictions[place] = _prediction(prompt, config, grid=None, error=TOO_LONG)
    # Similar lengths together need little padding, and equal ones none.
    fitting.sort(key=lambda place: len(asked[place].token_ids))
    for start in range(0, len(fitting), config.batch_size):
        if start and until is not None and until():
            break
        places = fitting[start : start + config.batch_size]
        batch = [asked[place] for place in places]
        before = time.perf_counter()
        completions = _decode(model, builder.tokenization, batch, config, _of_batch(route, places))
        seconds = (time.perf_counter() - before) / len(batch)
        for place, prompt, completion in zip(places, batch, completions, strict=True):
            predictions[place] = _read(builder, prompt, completion, seconds, config)
    return predictions


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
    limit = builder.longest_answer if config.max_new_tokens is None else config.max_new_tokens
    context = min(builder.max_seq_length, config.max_seq_length or builder.max_seq_length)
    unused = builder.max_seq_length - context
    fitted = builder.fit(problem, min(likely, limit) + unused)
    if fitted is None:
        return [], 0
    token_ids = builder.prompt(fitted)
    return token_ids, min(limit, context - len(token_ids))


def _decode(
    model: PreTrainedModel | PeftModel,
    tokenization: Tokenization,
    batch: Sequence[AugmentedPrompt],
    config: InferenceConfig,
    route: Callable[[Sequence[int]], None] | None,
) -> list[Completion]:
    generators = None
    if config.do_sample:
        seeds = [derived_seed(config.seed, prompt.task_id, prompt.test_index, prompt.number) for prompt in batch]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return decode(
        model,
        [prompt.token_ids for prompt in batch],
        max_new_tokens=[prompt.max_new_tokens for prompt in batch],
        end_ids=tokenization.end_ids,
        pad_id=tokenization.end_id,  # padding is masked, so any token will do
        temperature=config.temperature,
        top_p=config.top_p,
        generator=generators,
        positions=tokenization.positions,
        route=route,
    )


def _of_batch(
    route: Callable[[Sequence[int]], None] | None, places: Sequence[int]
) -> Callable[[Sequence[int]], None] | None:
    return None if route is None else lambda rows: route([places[row] for row in rows])


def _read(
    builder: ExampleBuilder,
    prompt: AugmentedPrompt,
    completion: Completion,
    seconds: float,
    config: InferenceConfig,
) -> Prediction:
    """The completion as a grid in the test's own orientation and colours, or why it is none."""
    grid, error = None, None
    text = builder.tokenization.decode(completion.token_ids)
    if completion.finished:
        try:
            grid = prompt.transform.invert(builder.prompts.parse(text))
        except GridParseError as reason:
            error = str(reason)
    else:
        # What was cut off may still look like a grid, of fewer rows than were meant.
        error = f"cut off after {completion.num_tokens} tokens"
    return _prediction(
        prompt,
        config,
        grid=grid,
        text=text,
        logprob=completion.logprob,
        num_tokens=completion.num_tokens,
        seconds=seconds,
        error=error,
    )


def _prediction(prompt: AugmentedPrompt, config: InferenceConfig, **outcome: Any) -> Prediction:
    return Prediction(
        task_id=prompt.task_id,
        test_index=prompt.test_index,
        transform=prompt.transform.to_dict(),
        seed=config.seed,
        **outcome,
    )
