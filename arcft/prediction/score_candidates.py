"""How probable the model finds each grid that was predicted for a test, under several augmentations of the test.

The product of experts of the ARChitects: an answer that is right is probable however the task is turned. Scores are
kept with the predictions, so that grids can be selected by them without the model.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Collection, Iterator, Sequence

from peft import PeftModel
from transformers import PreTrainedModel

from arcft.config.inference import InferenceConfig
from arcft.decoding.likelihood import score
from arcft.decoding.options import DecodingOptions, RowsChanged
from arcft.prediction.predict import predict_tasks
from arcft.prediction.prompts import AugmentedPrompt, augmented_prompts, completions_for
from arcft.problems.arc.format.examples import ExampleBuilder
from arcft.problems.arc.task import Grid, Task
from arcft.scoring.predictions import Prediction, TestKey
from arcft.scoring.voting import GridKey, grid_key


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
    on_rows_changed: RowsChanged | None = None,
    until: Callable[[], bool] | None = None,
) -> list[Prediction]:
    """`predictions`, one or more, all of one test of `task`, with `scores` on the first one of each grid.

    The augmentations are the first `views` that are dealt for the test. Those that are equal count once, and those
    under which a grid does not fit the context not at all. Probabilities are of the same kind as those of predictions,
    with inference.grammar shares of what the grammar allows. A grid that is the only one is scored by what it was
    predicted with: there is nothing to choose. `on_rows_changed` is that of `decode`; all rows have the same adapter.
    `until` is asked now and then, after every grid was scored under the same augmentations; once it is true, the others
    are left out. What it took is added to the predictions' `seconds`.

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
        asked = [(prompt.token_ids, completions_for(builder, prompt, list(grids.values()))) for prompt in prompts]
        for found in _score_views(model, builder, asked, config, on_rows_changed, until):
            for own, one in zip(scores.values(), found, strict=True):
                own.append(one)
    seconds = (time.perf_counter() - begun) / len(predictions)
    return [_with_scores(prediction, scores, seconds) for prediction in predictions]


def _score_views(
    model: PreTrainedModel | PeftModel,
    builder: ExampleBuilder,
    asked: Sequence[tuple[list[int], list[list[int]]]],
    config: InferenceConfig,
    on_rows_changed: RowsChanged | None,
    until: Callable[[], bool] | None,
) -> Iterator[list[float]]:
    """Yield the log-probabilities of the completions of one prompt after the other; without those that don't fit."""
    room = min(builder.max_seq_length, config.max_seq_length or builder.max_seq_length)
    asked = [(prompt, answers) for prompt, answers in asked if len(prompt) + max(map(len, answers)) <= room]
    # As many prompts in a call as fill a batch, and one at least.
    most = max(1, config.batch_size // max((len(answers) for _, answers in asked), default=1))
    for start in range(0, len(asked), most):
        if until is not None and until():
            return
        some = asked[start : start + most]
        options = DecodingOptions(
            pad_id=builder.tokenization.end_id,
            positions=builder.tokenization.positions,
            grammar=builder.grammar if config.grammar else None,
            batch_size=config.batch_size,
            on_rows_changed=on_rows_changed,
            adapters=[0] * len(some),
        )
        yield from score(model, [prompt for prompt, _ in some], [answers for _, answers in some], options)


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
