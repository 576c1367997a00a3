"""Predict the tests of problems: several augmented prompts each, completed, parsed and un-augmented.

The predictions of a test depend on its problem, the model and the config, and on nothing else in the run: its views and
its random numbers come from (seed, problem id, test index), and a batch holds prompts of one test only. Batches over
several tests would be fuller where there are few prompts per test, but floating-point sums differ in their last bits
with the shape of a batch, so an answer could then change with the problems beside it, or where a run was resumed.
Within a test, prompts of similar length are completed together.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from arcft.config.inference import GenerateConfig, InferenceConfig, SampleConfig, SearchConfig
from arcft.decoding.core.completion import Completion
from arcft.decoding.decode import decode
from arcft.decoding.hf_generate import generate
from arcft.decoding.options import DecodingOptions, RowsChanged
from arcft.decoding.search import search
from arcft.prediction.drafts import DraftSource, before_drafting
from arcft.prediction.prompts import AugmentedPrompt, augmented_prompts, derived_seed
from arcft.protocols import Answer, AnswerError, DealViews, Problem, TestKey
from arcft.scoring.predictions import Prediction
from arcft.text.builder import ExampleBuilder

TOO_LONG = "the prompt does not fit the context, even with one demonstration; raise inference.max_seq_length"


def predict_problems(
    model: PreTrainedModel | PeftModel,
    builder: ExampleBuilder,
    deal_views: DealViews,
    problems: Sequence[Problem],
    config: InferenceConfig,
    *,
    done: Collection[TestKey] = (),
) -> Iterator[list[Prediction]]:
    """Yield the predictions of one test after the other, of `config.predictions_per_test` prompts each, in the order of
    `problems` and prompts; what a search finds for one prompt, the likeliest first.

    Tests in `done` are skipped, so an interrupted run continues where it stopped. The caller decides about arithmetic:
    the model's own dtype, or autocast around the iteration. Raises DecodingError where logits are not finite.
    """
    for problem in problems:
        for test_index in range(len(problem.answers)):
            if (problem.id, test_index) not in done:
                prompts = augmented_prompts(builder, deal_views, problem, test_index, config)
                yield predict_prompts(model, builder, prompts, config)


def predict_prompts(
    model: PreTrainedModel | PeftModel,
    builder: ExampleBuilder,
    prompts: Sequence[AugmentedPrompt],
    config: InferenceConfig,
) -> list[Prediction]:
    """Complete all `prompts`, and return the predictions in the same order."""
    predictions = predict_places(model, builder, prompts, config)
    return [prediction for place in range(len(prompts)) for prediction in predictions[place]]


def predict_places(
    model: PreTrainedModel | PeftModel,
    builder: ExampleBuilder,
    prompts: Sequence[AugmentedPrompt],
    config: InferenceConfig,
    *,
    on_rows_changed: RowsChanged | None = None,
    adapters: Sequence[int] | None = None,
    until: Callable[[], bool] | None = None,
) -> dict[int, list[Prediction]]:
    """Complete `prompts`, of one test or of several, and return the predictions by place in `prompts`: one for each, or
    what a search finds, the likeliest first.

    `on_rows_changed` is called before a forward pass and whenever rows have left, with the places in `prompts` of the
    batch's rows: a model with several adapters routes each row by it. `adapters` has the adapter of each place.
    `until` is called between batches; once it is true, the remaining prompts are left out, and a search ends with what
    it has.
    """
    predictions: dict[int, list[Prediction]] = {}
    fitting = []
    for place, prompt in enumerate(prompts):
        if prompt.token_ids:
            fitting.append(place)
        else:
            predictions[place] = [unasked(prompt, config)]
    drafts = DraftSource(builder) if config.speculates else None
    for number, places in enumerate(_batches(builder, prompts, fitting, config)):
        if number and until is not None and until():
            break
        batch = [prompts[place] for place in places]
        start = time.perf_counter()
        answers = complete_prompts(
            model,
            builder,
            batch,
            config,
            draft_tokens=None if drafts is None else [drafts.draft(prompt) for prompt in batch],
            on_rows_changed=_of_batch(on_rows_changed, places),
            adapters=None if adapters is None else [adapters[place] for place in places],
            until=until,
        )
        seconds = (time.perf_counter() - start) / sum(map(len, answers))
        for place, prompt, completions in zip(places, batch, answers, strict=True):
            predictions[place] = [read_answer(builder, prompt, one, seconds, config) for one in completions]
            if drafts is not None:
                drafts.add(predictions[place])
    return predictions


def complete_prompts(
    model: PreTrainedModel | PeftModel,
    builder: ExampleBuilder,
    batch: Sequence[AugmentedPrompt],
    config: InferenceConfig,
    *,
    draft_tokens: Sequence[list[int] | None] | None = None,
    on_rows_changed: RowsChanged | None = None,
    adapters: Sequence[int] | None = None,
    until: Callable[[], bool] | None = None,
) -> list[list[Completion]]:
    """Complete each prompt of `batch`, one or more; with inference=search in several ways, the likeliest first.

    A search that finds nothing above its threshold gives the greedy completion. `until` ends a search early and is
    ignored otherwise. `draft_tokens`, `on_rows_changed` and `adapters` are those of `decode`.
    """
    tokenization = builder.tokenization
    prompts = [prompt.token_ids for prompt in batch]
    limits = [prompt.max_new_tokens for prompt in batch]
    options = DecodingOptions(
        end_ids=tokenization.end_ids, pad_id=tokenization.end_id, on_rows_changed=on_rows_changed, adapters=adapters
    )
    if isinstance(config, GenerateConfig):
        return [[completion] for completion in generate(model, prompts, options, max_new_tokens=limits)]
    options = dataclasses.replace(
        options, positions=tokenization.positions, grammar=builder.grammar if config.uses_grammar else None
    )
    if isinstance(config, SearchConfig):
        found = search(
            model,
            prompts,
            dataclasses.replace(options, batch_size=config.batch_size),
            threshold=config.threshold,
            max_nodes=config.max_nodes,
            max_new_tokens=limits,
            until=until,
        )
        return [one.completions or [one.greedy] for one in found]
    generators = temperature = top_p = None
    if isinstance(config, SampleConfig):
        temperature, top_p = config.temperature, config.top_p
        generators = [
            torch.Generator().manual_seed(derived_seed(config.seed, *prompt.test, prompt.number)) for prompt in batch
        ]
    completions = decode(
        model,
        prompts,
        options,
        max_new_tokens=limits,
        draft_tokens=draft_tokens,
        temperature=temperature,
        top_p=top_p,
        generator=generators,
    )
    return [[completion] for completion in completions]


def read_answer(
    builder: ExampleBuilder,
    prompt: AugmentedPrompt,
    completion: Completion,
    seconds: float,
    config: InferenceConfig,
) -> Prediction:
    """The completion as an answer to the un-augmented test, or why it is none."""
    answer, error = None, None
    text = builder.tokenization.decode(completion.token_ids)
    if completion.finished:
        try:
            answer = prompt.view.invert(builder.format.parse(text))
        except AnswerError as reason:
            error = str(reason)
    else:
        # What was cut off may still look like an answer, such as a grid that lacks rows.
        error = f"cut off after {completion.num_tokens} tokens, {_what_cuts_off(builder, prompt, config)}"
    return _prediction(
        prompt,
        config,
        answer=answer,
        text=text,
        logprob=completion.logprob,
        num_tokens=completion.num_tokens,
        seconds=seconds,
        error=error,
    )


def unasked(prompt: AugmentedPrompt, config: InferenceConfig) -> Prediction:
    """The prediction for a prompt that does not fit the context."""
    return _prediction(prompt, config, answer=None, error=TOO_LONG)


def _batches(
    builder: ExampleBuilder, prompts: Sequence[AugmentedPrompt], places: Sequence[int], config: InferenceConfig
) -> Iterator[list[int]]:
    """`places` in `prompts` in the order in which they are completed."""
    waves = [list(places)]
    if config.speculates:
        first = before_drafting(builder, prompts, places, config.batch_size)
        waves = [first, [place for place in places if place not in first]]
    for wave in waves:
        # Similar lengths together need little padding, and equal ones none.
        wave.sort(key=lambda place: len(prompts[place].token_ids))
        # A search fills its batch with what it finds.
        size = max(1, len(wave)) if isinstance(config, SearchConfig) else config.batch_size
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
    return "as many as the longest answer takes"


def _prediction(
    prompt: AugmentedPrompt, config: InferenceConfig, *, answer: Answer | None, **outcome: Any
) -> Prediction:
    return Prediction(
        answer=answer,
        task_id=prompt.problem.id,
        test_index=prompt.test_index,
        transform=prompt.view.to_dict(),
        seed=config.seed,
        **outcome,
    )
