"""How probable the model finds each grid that was predicted for a test, under several augmentations of the test.

The product of experts of the ARChitects: an answer that is right is probable however the task is turned. Scores are
kept with the predictions, so that grids can be selected by them without the model.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Collection, Iterator, Sequence

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from arcft.arc.task import Grid, Pair, Task
from arcft.config.inference import InferenceConfig
from arcft.inference.decoder import DecodingError
from arcft.inference.predict import AugmentedPrompt, augmented_prompts, predict_tasks
from arcft.scoring.predictions import Prediction, TestKey
from arcft.scoring.voting import GridKey, grid_key
from arcft.text.examples import ExampleBuilder
from arcft.text.tokens import Tokenization

Route = Callable[[Sequence[int]], None]


def predict_and_score(
    model: PreTrainedModel | PeftModel,
    builder: ExampleBuilder,
    tasks: Sequence[Task],
    config: InferenceConfig,
    *,
    views: int | None,
    done: Collection[TestKey] = (),
) -> Iterator[list[Prediction]]:
    """Yield what `predict_tasks` does, with the `scores` of each grid under `views` augmentations; None: without."""
    by_id = {task.id: task for task in tasks}
    for group in predict_tasks(model, builder, tasks, config, done=done):
        yield group if views is None else score_grids(model, builder, by_id[group[0].task_id], group, config, views)


def score_grids(
    model: PreTrainedModel | PeftModel,
    builder: ExampleBuilder,
    task: Task,
    predictions: Sequence[Prediction],
    config: InferenceConfig,
    views: int,
    *,
    route: Route | None = None,
    until: Callable[[], bool] | None = None,
) -> list[Prediction]:
    """`predictions`, one or more, all of one test of `task`, with `scores` on the first one of each grid.

    The augmentations are the first `views` that are dealt for the test. Those that are equal count once, and those
    under which a grid does not fit the context not at all. A grid that is the only one is scored by what it was
    predicted with: there is nothing to choose. `route` is told before each pass which rows it has; a model of several
    adapters chooses by it. `until` is asked before each augmentation; once it is true, the others are left out.
    What it took is added to the predictions' `seconds`.

    Raises DecodingError where the model gives no numbers.
    """
    begun = time.perf_counter()
    grids: dict[GridKey, Grid] = {}
    for prediction in predictions:
        if prediction.grid is not None:
            grids.setdefault(grid_key(prediction.grid), prediction.grid)
    scores: dict[GridKey, list[float]] = {key: [] for key in grids}
    if len(grids) == 1:
        (only,) = scores.values()
        only += [one.logprob for one in predictions if one.grid is not None and one.logprob is not None][:views]
    elif grids:
        prompts = _different(builder, task, predictions[0].test_index, config, views)
        for prompt in prompts:
            if until is not None and until():
                break
            answers = _answers(builder, task, prompt, list(grids.values()))
            if len(prompt.token_ids) + max(map(len, answers)) > _context(builder, config):
                continue
            found = _log_probabilities(model, builder.tokenization, prompt.token_ids, answers, config.batch_size, route)
            for own, score in zip(scores.values(), found, strict=True):
                own.append(score)
    seconds = (time.perf_counter() - begun) / len(predictions)
    return [_with_scores(prediction, scores, seconds) for prediction in predictions]


def _with_scores(prediction: Prediction, scores: dict[GridKey, list[float]], seconds: float) -> Prediction:
    """Takes the scores that it puts on the prediction out of `scores`."""
    own = None if prediction.grid is None else scores.pop(grid_key(prediction.grid), None)
    total = None if prediction.seconds is None else prediction.seconds + seconds
    return dataclasses.replace(prediction, scores=tuple(own) if own else None, seconds=total)


def _different(
    builder: ExampleBuilder, task: Task, test_index: int, config: InferenceConfig, views: int
) -> list[AugmentedPrompt]:
    """Each augmentation of the test once, as a prompt; without those that don't fit."""
    config = dataclasses.replace(config, predictions_per_test=views)
    prompts = {prompt.transform: prompt for prompt in augmented_prompts(builder, task, test_index, config)}
    return [prompt for prompt in prompts.values() if prompt.token_ids]


def _answers(builder: ExampleBuilder, task: Task, prompt: AugmentedPrompt, grids: Sequence[Grid]) -> list[list[int]]:
    """The completions, with their ends, that stand for `grids` under the prompt's augmentation."""
    given = task.test[prompt.test_index].input
    asked = dataclasses.replace(task, test=tuple(Pair(given, grid) for grid in grids))
    outputs = [pair.output for pair in prompt.transform.apply(asked).test]
    texts = [builder.prompts.completion(output) for output in outputs if output is not None]
    return [builder.tokenization.completion_ids(text) for text in texts]


def _context(builder: ExampleBuilder, config: InferenceConfig) -> int:
    return min(builder.max_seq_length, config.max_seq_length or builder.max_seq_length)


@torch.inference_mode()
def _log_probabilities(
    model: PreTrainedModel | PeftModel,
    tokenization: Tokenization,
    prompt: list[int],
    completions: Sequence[list[int]],
    batch_size: int,
    route: Route | None,
) -> list[float]:
    """The summed log-probability of each completion after `prompt`."""
    was_training = model.training
    model.eval()
    try:
        found: list[float] = []
        for start in range(0, len(completions), batch_size):
            batch = completions[start : start + batch_size]
            if route is not None:
                route(range(start, start + len(batch)))
            found += _pass(model, tokenization, prompt, batch)
        return found
    finally:
        model.train(was_training)


def _pass(
    model: PreTrainedModel | PeftModel, tokenization: Tokenization, prompt: list[int], completions: Sequence[list[int]]
) -> list[float]:
    longest = max(map(len, completions))
    rows = [prompt + ids + [tokenization.end_id] * (longest - len(ids)) for ids in completions]
    inputs = {"input_ids": torch.tensor(rows, device=model.device)}
    if tokenization.positions is not None:
        inputs["position_ids"] = torch.tensor([tokenization.positions(row) for row in rows], device=model.device)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    logits = model(**inputs, use_cache=False, logits_to_keep=longest + 1).logits[:, :-1].float()
    targets = inputs["input_ids"][:, len(prompt) :]
    logprobs = logits.log_softmax(dim=-1).gather(2, targets[:, :, None]).squeeze(2)
    sums = [float(own[: len(ids)].double().sum()) for own, ids in zip(logprobs, completions, strict=True)]
    if not all(map(torch.isfinite, torch.tensor(sums))):
        raise DecodingError("the model's logits are not finite numbers; try inference.dtype=float32")
    return sums
