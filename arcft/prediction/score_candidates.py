"""How probable the model finds each answer that was predicted for a test, under several augmentations of the test.

The product of experts of the ARChitects: a right answer is probable however the problem is varied. Scores are stored
with the predictions, so that answers can be selected by them without the model.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence

from peft import PeftModel
from transformers import PreTrainedModel

from arcft.config.inference import InferenceConfig
from arcft.decoding.likelihood import score
from arcft.decoding.options import DecodingOptions, RowsChanged
from arcft.prediction.predict import predict_problems
from arcft.prediction.prompts import AugmentedPrompt, augmented_prompts, completions_for
from arcft.protocols import Answer, DealViews, Problem, TestKey
from arcft.scoring.predictions import Prediction
from arcft.text.builder import ExampleBuilder


def predict_and_score(
    model: PreTrainedModel | PeftModel,
    builder: ExampleBuilder,
    deal_views: DealViews,
    problems: Sequence[Problem],
    config: InferenceConfig,
    *,
    num_views: int | None,
    done: Collection[TestKey] = (),
) -> Iterator[list[Prediction]]:
    """Yield what `predict_problems` does, with the `scores` of each answer under `num_views` augmentations; None:
    without scores."""
    by_id = {problem.id: problem for problem in problems}
    for group in predict_problems(model, builder, deal_views, problems, config, done=done):
        if num_views is None:
            yield group
        else:
            yield score_answers(model, builder, deal_views, by_id[group[0].task_id], group, config, num_views)


def score_answers(
    model: PreTrainedModel | PeftModel,
    builder: ExampleBuilder,
    deal_views: DealViews,
    problem: Problem,
    predictions: Sequence[Prediction],
    config: InferenceConfig,
    num_views: int,
    *,
    on_rows_changed: RowsChanged | None = None,
    until: Callable[[], bool] | None = None,
) -> list[Prediction]:
    """`predictions` of one test of `problem` (at least one), with `scores` on the first one of each answer.

    The augmentations are the first `num_views` that are dealt for the test. Equal ones count once, and those under
    which an answer does not fit the context are left out. Probabilities are of the same kind as those of predictions:
    with inference.grammar, shares of what the grammar allows. A single distinct answer is scored by the log-probability
    it was predicted with, since there is nothing to choose. `on_rows_changed` is that of `decode`; all rows have the
    same adapter. `until` is called now and then, when every answer is scored under the same augmentations; once it is
    true, the remaining ones are left out. The time taken is added to the predictions' `seconds`.

    Raises DecodingError where logits are not finite.
    """
    start = time.perf_counter()
    answers: dict[Hashable, Answer] = {}
    for prediction in predictions:
        if prediction.answer is not None:
            answers.setdefault(prediction.answer.key, prediction.answer)
    scores: dict[Hashable, list[float]] = {key: [] for key in answers}
    if len(answers) == 1:
        (only,) = scores.values()
        only += [one.logprob for one in predictions if one.answer is not None and one.logprob is not None][:num_views]
    elif answers:
        prompts = _different(builder, deal_views, problem, predictions[0].test_index, config, num_views)
        asked = [(prompt.token_ids, completions_for(builder, prompt, list(answers.values()))) for prompt in prompts]
        for found in _score_views(model, builder, asked, config, on_rows_changed, until):
            for own, one in zip(scores.values(), found, strict=True):
                own.append(one)
    seconds = (time.perf_counter() - start) / len(predictions)
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
    # As many prompts per call as fill a batch, at least one.
    most = max(1, config.batch_size // max((len(answers) for _, answers in asked), default=1))
    for start in range(0, len(asked), most):
        if until is not None and until():
            return
        some = asked[start : start + most]
        options = DecodingOptions(
            pad_id=builder.tokenization.end_id,
            positions=builder.tokenization.positions,
            grammar=builder.grammar if config.uses_grammar else None,
            batch_size=config.batch_size,
            on_rows_changed=on_rows_changed,
            adapters=[0] * len(some),
        )
        yield from score(model, [prompt for prompt, _ in some], [answers for _, answers in some], options)


def _with_scores(prediction: Prediction, scores: dict[Hashable, list[float]], seconds: float) -> Prediction:
    """The prediction with the scores of its answer, which are removed from `scores`: later equals have none."""
    own = None if prediction.answer is None else scores.pop(prediction.answer.key, None)
    total = None if prediction.seconds is None else prediction.seconds + seconds
    return dataclasses.replace(prediction, scores=tuple(own) if own else None, seconds=total)


def _different(
    builder: ExampleBuilder,
    deal_views: DealViews,
    problem: Problem,
    test_index: int,
    config: InferenceConfig,
    num_views: int,
) -> list[AugmentedPrompt]:
    """Each augmentation of the test once, as a prompt; without those that don't fit."""
    config = dataclasses.replace(config, predictions_per_test=num_views)
    prompts = {prompt.view: prompt for prompt in augmented_prompts(builder, deal_views, problem, test_index, config)}
    return [prompt for prompt in prompts.values() if prompt.token_ids]
