"""Predict the tests of tasks: several augmented prompts each, completed, parsed and turned back.

What is predicted for a test depends on its task, the model and the config, and on nothing else in the run: its
transforms and its random numbers come from (seed, task id, test index), and a batch holds prompts of one test only.
Batches over several tests would be fuller where there are few prompts a test, but floating-point sums differ in their
last bits with the shape of a batch, so an answer could then change with the tasks beside it, or where a run was
resumed. Within a test, prompts of similar length are completed together.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel

from arcft.config.inference import InferenceConfig
from arcft.decoding.core.completion import Completion
from arcft.decoding.options import RowsChanged
from arcft.prediction.asking import complete_prompts
from arcft.prediction.drafts import DraftSource, before_guessing
from arcft.prediction.prompts import AugmentedPrompt, augmented_prompts
from arcft.problems.arc.format.encoders import GridParseError
from arcft.problems.arc.format.examples import ExampleBuilder
from arcft.problems.arc.task import Task
from arcft.scoring.predictions import Prediction, TestKey

TOO_LONG = "the prompt does not fit the context, even with one demonstration; raise inference.max_seq_length"


def predict_tasks(
    model: PreTrainedModel | PeftModel,
    builder: ExampleBuilder,
    tasks: Sequence[Task],
    config: InferenceConfig,
    *,
    done: Collection[TestKey] = (),
) -> Iterator[list[Prediction]]:
    """Yield the predictions of one test after the other, of `config.predictions_per_test` prompts each, in the order of
    `tasks` and prompts; what a search finds for one prompt, the likeliest first.

    Tests in `done` are left out, so an interrupted run goes on where it was. Arithmetic is as the caller has it: the
    model's own dtype, or autocast around the iteration. Raises DecodingError where the model gives no numbers.
    """
    for task in tasks:
        for test_index in range(len(task.test)):
            if (task.id, test_index) not in done:
                asked = augmented_prompts(builder, task, test_index, config)
                yield predict_prompts(model, builder, asked, config)


def predict_prompts(
    model: PreTrainedModel | PeftModel,
    builder: ExampleBuilder,
    asked: Sequence[AugmentedPrompt],
    config: InferenceConfig,
) -> list[Prediction]:
    """Ask `model` everything in `asked`, and return the predictions in the same order."""
    predictions = predict_places(model, builder, asked, config)
    return [prediction for place in range(len(asked)) for prediction in predictions[place]]


def predict_places(
    model: PreTrainedModel | PeftModel,
    builder: ExampleBuilder,
    asked: Sequence[AugmentedPrompt],
    config: InferenceConfig,
    *,
    on_rows_changed: RowsChanged | None = None,
    adapters: Sequence[int] | None = None,
    until: Callable[[], bool] | None = None,
) -> dict[int, list[Prediction]]:
    """Ask `model` what is in `asked`, of one test or of several, and return the predictions by place in it: one for
    each, or what a search finds, the likeliest first.

    `on_rows_changed` is called, before a forward pass and whenever rows have left, with the places in `asked` of the
    rows of the batch: a model of several adapters routes each row by it. `adapters` has the adapter of each place.
    `until` is asked between batches; once it is true, the remaining prompts are left out, and a search ends with what
    it has.
    """
    predictions: dict[int, list[Prediction]] = {}
    fitting = []
    for place, prompt in enumerate(asked):
        if prompt.token_ids:
            fitting.append(place)
        else:
            predictions[place] = [unasked(prompt, config)]
    carried = DraftSource(builder) if config.speculate else None
    for number, places in enumerate(_batches(asked, fitting, config)):
        if number and until is not None and until():
            break
        batch = [asked[place] for place in places]
        begun = time.perf_counter()
        answers = complete_prompts(
            model,
            builder,
            batch,
            config,
            draft_tokens=None if carried is None else [carried.guess(prompt) for prompt in batch],
            on_rows_changed=_of_batch(on_rows_changed, places),
            adapters=None if adapters is None else [adapters[place] for place in places],
            until=until,
        )
        seconds = (time.perf_counter() - begun) / sum(map(len, answers))
        for place, prompt, completions in zip(places, batch, answers, strict=True):
            predictions[place] = [read_answer(builder, prompt, one, seconds, config) for one in completions]
            if carried is not None:
                carried.add(predictions[place])
    return predictions


def read_answer(
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
        error = f"cut off after {completion.num_tokens} tokens, {_what_cuts_off(builder, prompt, config)}"
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


def unasked(prompt: AugmentedPrompt, config: InferenceConfig) -> Prediction:
    """What stands for the answer to a prompt that does not fit the context."""
    return _prediction(prompt, config, grid=None, error=TOO_LONG)


def _batches(asked: Sequence[AugmentedPrompt], places: Sequence[int], config: InferenceConfig) -> Iterator[list[int]]:
    """`places` in `asked` in the order in which they are asked."""
    waves = [list(places)]
    if config.speculate:
        first = before_guessing(asked, places, config.batch_size)
        waves = [first, [place for place in places if place not in first]]
    for wave in waves:
        # Similar lengths together need little padding, and equal ones none.
        wave.sort(key=lambda place: len(asked[place].token_ids))
        # A search fills its batch with what it finds.
        size = max(1, len(wave)) if config.name == "search" else config.batch_size
        for start in range(0, len(wave), size):
            yield wave[start : start + size]


def _of_batch(on_rows_changed: RowsChanged | None, places: Sequence[int]) -> RowsChanged | None:
    return None if on_rows_changed is None else lambda rows: on_rows_changed([places[row] for row in rows])


def _what_cuts_off(builder: ExampleBuilder, prompt: AugmentedPrompt, config: InferenceConfig) -> str:
    if prompt.max_new_tokens == config.max_new_tokens:
        return "all that inference.max_new_tokens allows"
    context = min(builder.max_seq_length, config.max_seq_length or builder.max_seq_length)
    if len(prompt.token_ids) + prompt.max_new_tokens == context:
        return "all that the context leaves"
    return "as many as a 30x30 grid takes"


def _prediction(prompt: AugmentedPrompt, config: InferenceConfig, **outcome: Any) -> Prediction:
    return Prediction(
        task_id=prompt.task.id,
        test_index=prompt.test_index,
        transform=prompt.transform.to_dict(),
        seed=config.seed,
        **outcome,
    )
