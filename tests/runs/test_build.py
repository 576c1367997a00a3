"""Every option under conf/ builds what it names: real objects, on real tasks. Models of a hub are built with random
weights of their architecture, from the small configs in tests/support/architectures."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from transformers import ByT5Tokenizer

from arcft.checkpoints import Checkpoint
from arcft.config.schema import ConfigError
from arcft.models.lora import trainable_parameters
from arcft.prediction.predict import predict_problems
from arcft.problems.arc.augment.sampler import question_sampler
from arcft.problems.arc.format.cell_tokens import GrammarError
from arcft.problems.arc.kind import ArcKind
from arcft.problems.arc.questions import GridQuestion, ask_output
from arcft.problems.arc.task import Task
from arcft.runs.setup.build import check_answers, example_builder
from arcft.runs.setup.checkpoint_config import TrainedRun
from arcft.runs.setup.restore import restored_builder
from arcft.runs.setup.tasks import task_sets
from arcft.runs.training.model import build_model
from arcft.runs.training.preparation import Prepared, prepare
from arcft.scoring.selection import make_selector
from arcft.text.builder import ExampleBuilder
from arcft.text.tokens import IGNORED, TokenizationError
from arcft.tracking import NoTracker, start_tracker
from arcft.training.batches import collate
from arcft.training.loss import summed_cross_entropy
from arcft.training.optimizers import MuonWithAdamW, build_optimizer
from tests.config.test_config import GROUPS, OPTIONS, train_config
from tests.problems.arc.format.test_grammar import bpe
from tests.runs.test_train_run import real_tasks, write_kaggle
from tests.support.arc import ARC
from tests.support.re_arc_script import make
from tests.support.train_command import ARCHITECTURES, SMALL_MODEL, TASK_IDS, ids

CPU = torch.device("cpu")
TASKS = [ids(*TASK_IDS), "data.held_out=2"]
ARCHITECTURE_OF = {
    "llama3_2_1b": "llama",
    "local": "llama",
    "qwen2_0_5b": "qwen2",
    "qwen2_5_0_5b": "qwen2",
    "qwen2_5_coder_0_5b": "qwen2",
    "qwen3_4b": "qwen3",
    "smollm2_135m": "llama",
}
# Groups whose options are built here; test_every_group_is_built holds it to what there is.
BUILT = {
    "augmentation",
    "data",
    "debug",
    "encoder",
    "experiment",
    "hparams_search",
    "inference",
    "lora",
    "model",
    "optimizer",
    "prompt",
    "scheduler",
    "selection",
    "showcase",
    "tracking",
    "training",
    "ttft",
}


def options(group: str) -> list[str]:
    return [option for name, option in OPTIONS if name == group]


def architecture(name: str) -> list[str]:
    return [f"model.path={ARCHITECTURES / name}", "model.init=random", "model.tokenizer=bundled:tiny"]


def loss_of(model: torch.nn.Module, prepared: Prepared) -> float:
    batch = collate([prepared.stream[0]], 0, prepared.builder.tokenization.positions)
    with torch.no_grad():
        total, count = summed_cross_entropy(model, batch)
    return (total / count).item()


def test_every_group_is_built() -> None:
    assert set(GROUPS) == BUILT
    assert set(options("model")) == {*ARCHITECTURE_OF, "tiny"}


@pytest.mark.parametrize("option", options("model"))
def test_models(option: str) -> None:
    overrides = [] if option == "tiny" else architecture(ARCHITECTURE_OF[option])
    config = train_config(f"model={option}", *overrides, *TASKS)
    prepared = prepare(config)
    model, fingerprint = build_model(config, CPU)
    assert isinstance(model, peft.PeftModel)
    assert (
        type(model.get_base_model()).__name__
        == {
            "llama": "LlamaForCausalLM",
            "qwen2": "Qwen2ForCausalLM",
            "qwen3": "Qwen3ForCausalLM",
            "tiny": "LlamaForCausalLM",
        }[ARCHITECTURE_OF.get(option, option)]
    )
    assert len(fingerprint) == 64
    assert build_model(config, CPU)[1] == fingerprint
    if option == "tiny":
        # The bundled weights know what grids look like.
        assert loss_of(model, prepared) < 1.5
    else:
        # Random weights know nothing: each of 448 tokens is as likely.
        assert loss_of(model, prepared) == pytest.approx(np.log(448), rel=0.1)


@pytest.mark.parametrize("option", options("encoder"))
def test_encoders(option: str) -> None:
    counted = ["model.positions=none", "training.loss_on=completion"]
    prepared = prepare(train_config(f"encoder={option}", *counted, *TASKS))
    for task in real_tasks(*TASK_IDS):
        text = prepared.builder.format.render(ask_output(task, 0))
        assert prepared.builder.format.parse(text.completion) == task.answers[0]
    example = prepared.stream[0]
    assert set(example.labels[: example.prompt_length]) == {IGNORED}
    assert example.labels[example.prompt_length :] == example.input_ids[example.prompt_length :]


def test_a_tokenizer_without_offsets_will_do_for_what_was_trained_with_them(tmp_path: Path) -> None:
    config = train_config("model.positions=none", "training.loss_on=from_second_output", *TASKS)
    slow = ByT5Tokenizer()
    options: dict[str, Any] = {"positions": "none", "max_seq_length": 4096, "loss_on": "from_second_output"}
    with pytest.raises(TokenizationError, match=r"needs a tokenizer that reports character offsets"):
        example_builder(ArcKind(), config.encoder, config.prompt, slow, **options)
    checkpoint = Checkpoint(path=tmp_path, step=1, run_config={}, manifest={}, digest="")
    run = TrainedRun(checkpoint, config, {})
    (task,) = real_tasks(TASK_IDS[0])
    # Inference has prompts and no labels.
    assert restored_builder(run, slow, 4096).prompt(ask_output(task, 0))


@pytest.mark.parametrize("option", options("prompt"))
def test_prompts(option: str) -> None:
    prepared = prepare(train_config(f"prompt={option}", "model.positions=none", *TASKS))
    problem = ask_output(real_tasks(*TASK_IDS)[0], 0)
    example, prompt = prepared.builder.example(problem), prepared.builder.prompt(problem)
    assert example is not None
    assert example.input_ids[: example.prompt_length] == prompt
    # The words around the grids are the tiny vocabulary's own: nothing is spelled byte by byte.
    text = prepared.tokenizer.decode(prompt)
    assert ("puzzle" in text) == (option != "grid_only")
    assert len(prompt) < len(text)


@pytest.mark.parametrize("option", options("augmentation"))
def test_augmentations(option: str) -> None:
    config = train_config(f"augmentation={option}", *TASKS).augmentation
    config = dataclasses.replace(config, input_from_inputs=0.0)
    sampler = question_sampler(config, view="test", cells_are_tokens=False)
    (task,) = real_tasks(TASK_IDS[0])
    rng = np.random.default_rng(0)
    drawn = [sampler.draw(task, rng) for _ in range(40)]
    assert (_pictures(drawn) == _pictures([ask_output(task, 0)])) == (option == "none")
    shapes = {pair.input.shape for question in drawn for pair in question.demonstrations}
    assert (shapes == {pair.input.shape for pair in task.train}) == (option != "composition")


def _pictures(questions: list[GridQuestion]) -> set[bytes]:
    return {b"".join(pair.input.tobytes() for pair in question.demonstrations) for question in questions}


@pytest.mark.parametrize(
    ("option", "scale", "trained"),
    [
        ("default", 2.0, "some"),
        ("rslora", 8.0, "some"),
        ("dora", 2.0, "some"),
        ("pissa", 2.0, "some"),
        ("olora", 2.0, "some"),
        ("none", None, "all"),
    ],
)
def test_adapters(option: str, scale: float | None, trained: str) -> None:
    model, _ = build_model(train_config(f"lora={option}", *SMALL_MODEL, "model.train_modules=[]", *TASKS), CPU)
    total = sum(parameter.numel() for parameter in model.parameters())
    assert (trainable_parameters(model) == total) == (trained == "all")
    scales = {module.scaling["default"] for module in model.modules() if isinstance(module, peft.tuners.lora.Linear)}
    assert scales == (set() if scale is None else {scale})


def test_every_kind_of_adapter_is_tested() -> None:
    assert set(options("lora")) == {"default", "rslora", "dora", "pissa", "olora", "none"}


@pytest.mark.parametrize("option", options("optimizer"))
def test_optimizers(option: str) -> None:
    config = train_config(f"optimizer={option}", *SMALL_MODEL, *TASKS)
    model, _ = build_model(config, CPU)
    optimizer = build_optimizer(model, config.optimizer, 1e-3)
    import bitsandbytes

    kinds = {
        "adamw": torch.optim.AdamW,
        "muon": MuonWithAdamW,
        "adamw_8bit": bitsandbytes.optim.AdamW8bit,
        # There is nothing to page on a CPU.
        "paged_adamw_8bit": bitsandbytes.optim.AdamW8bit,
    }
    assert type(optimizer) is kinds[option]
    held = sum(parameter.numel() for group in optimizer.param_groups for parameter in group["params"])
    assert held == trainable_parameters(model)


@pytest.mark.parametrize("option", options("scheduler"))
def test_schedulers(option: str) -> None:
    factor = train_config(f"scheduler={option}").scheduler.factors(100)
    factors = [factor(step) for step in range(101)]
    assert factors[0] == 0
    assert max(factors) == 1
    assert factors[99] == (1 if option == "constant" else pytest.approx(0, abs=0.03))


def count_nothing(task: Task) -> int:
    return 1


@pytest.mark.parametrize(
    ("option", "train", "held_out"),
    [
        # Of ARC-1's tasks, one more is held out's twin.
        ("arc1", [400 - 40 - 1], 40),
        ("arc2", [1000 - 100], 100),
        ("leave_one_out", [800], 0),
        # ARC-2's training set holds most of ARC-1's, and a held-out task is taken out of both, with its twins.
        ("mix", [355, 898], 101),
        ("kaggle", [9], 1),
        ("folder", [9], 1),
    ],
)
def test_data(tmp_path: Path, option: str, train: list[int], held_out: int) -> None:
    path = []
    if option == "kaggle":
        path = [f"data.path={write_kaggle(tmp_path, real_tasks(*TASK_IDS))}"]
    if option == "folder":
        for name, task in json.loads(write_kaggle(tmp_path, real_tasks(*TASK_IDS)).read_text()).items():
            (tmp_path / "tasks").mkdir(exist_ok=True)
            (tmp_path / "tasks" / f"{name}.json").write_text(json.dumps(task))
        path = [f"data.path={tmp_path / 'tasks'}"]
    sets = task_sets(train_config(f"data={option}", *path).data, count_nothing, None)
    assert ([len(items) for _, items in sets.train], len(sets.held_out)) == (train, held_out)
    assert not {task.id for task in sets.held_out} & set(sets.train_ids)


def test_every_kind_of_data_is_tested() -> None:
    # data=pairs: tests/runs/test_disjoint.py and tests/problems/arc/data/test_pair_cache.py.
    assert set(options("data")) == {"arc1", "arc2", "leave_one_out", "mix", "kaggle", "folder", "pairs", "held_out"}


# inference=vllm: tests/prediction/test_vllm.py.
@pytest.mark.parametrize("option", [option for option in options("inference") if option != "vllm"])
def test_inference_and_selection(option: str) -> None:
    short = ["inference.max_new_tokens=3", "inference.predictions_per_test=3", "model.positions=none"]
    config = train_config(f"inference={option}", *short, *SMALL_MODEL, *TASKS)
    assert config.selection.name in options("selection")
    prepared = prepare(config)
    model, _ = build_model(config, CPU)
    tasks = real_tasks(*TASK_IDS[:2])
    groups = list(predict_problems(model, prepared.builder, prepared.deal_views, tasks, config.inference))
    assert len(groups) == sum(len(task.test) for task in tasks)
    assert all(len(group) >= 3 if option == "search" else len(group) == 3 for group in groups)
    assert all(prediction.num_tokens <= 3 for group in groups for prediction in group)
    found = [prediction for group in groups for prediction in group]
    assert set(make_selector(config.selection, ARC).attempts(tasks, found, 2)) == {
        (task.id, index) for task in tasks for index in range(len(task.test))
    }


def test_what_can_not_be_answered_is_refused_before_any_model_is_loaded() -> None:
    config = train_config(*TASKS, "model.positions=none", "encoder=minimal")
    builder = prepare(config).builder
    counts, jumps = config.model, dataclasses.replace(config.model, positions="grid")
    check_answers(builder, config.inference, jumps)
    generate = train_config("inference=generate", "model.positions=none").inference
    check_answers(builder, generate, counts)
    with pytest.raises(ConfigError, match=r"inference=generate only counts positions, and this model's jump"):
        check_answers(builder, generate, jumps)
    merging = ExampleBuilder(builder.format, bpe([("0", "0")]), max_seq_length=256, drop_demonstrations=True)
    with pytest.raises(GrammarError, match=r"holds parts of two cells; use inference\.grammar=false"):
        check_answers(merging, config.inference, counts)
    check_answers(merging, generate, counts)
    # Training says so too, where it will predict.
    config = dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, allow_uneven_tokens=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("arcft.runs.training.preparation.load_tokenizer", lambda model: bpe([("0", "0")]).tokenizer)
        with pytest.raises(GrammarError):
            prepare(config)
        prepare(dataclasses.replace(config, training=dataclasses.replace(config.training, generation_tasks=0)))


def test_tracking(tmp_path: Path) -> None:
    assert set(options("tracking")) == {"none", "wandb"}  # wandb: tests/test_tracking.py, tests/cli/test_train_cli.py
    tracker = start_tracker(
        train_config("tracking=none").tracking, run_config={}, folder=tmp_path, job="train", name="x"
    )
    assert isinstance(tracker, NoTracker)


def test_ttft() -> None:
    # Each is run in tests/runs/test_ttft_run.py.
    assert set(options("ttft")) == {"none", "per_task", "whole_set", "split"}


def test_showcase() -> None:
    # Each is run in tests/runs/test_showcase.py.
    assert set(options("showcase")) == {"none", "ttft"}


@pytest.mark.parametrize("option", options("experiment"))
def test_experiments(tmp_path: Path, option: str) -> None:
    changes = [*architecture("qwen2"), *TASKS]
    if option.startswith("pretrain"):
        # The whole recipe is run in small in tests/runs/test_disjoint.py.
        make(tmp_path, pairs=8, diff_lb=0.1, diff_ub=0.25)
        changes = ["model.tokenizer=null", f"data.path={tmp_path}", "data.held_out=0"]
    config = train_config(f"experiment={option}", *changes)
    prepared = prepare(config)
    model, _ = build_model(config, CPU)
    assert loss_of(model, prepared) == pytest.approx(np.log(448), rel=0.1)
    assert len(prepared.stream) == (
        config.training.max_steps
        * config.training.per_device_train_batch_size
        * config.training.gradient_accumulation_steps
    )
