"""Every YAML under conf/ composes and validates, and what is wrong is refused with a message that helps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from arcft.cli.hydra_app import let_unknown_keys_in
from arcft.config import schema
from arcft.config.duration import DurationError, parse_duration
from arcft.config.run import EvaluateConfig, TrainConfig
from arcft.config.training import CurriculumStage
from arcft.runs.common.config_folder import config_folder

GROUPS = sorted(path.name for path in config_folder().iterdir() if path.is_dir() and path.name != "local")
OPTIONS = [(group, path.stem) for group in GROUPS for path in sorted((config_folder() / group).glob("*.yaml"))]
# What an option needs beside itself.
EXTRA = {
    ("data", "kaggle"): ["data.path=tasks.json"],
    ("data", "folder"): ["data.path=tasks"],
    ("data", "pairs"): ["data.path=pairs"],
    ("model", "local"): ["model.path=model"],
}
EXTRA_OF_TRAIN = {**EXTRA, ("inference", "generate"): ["model.positions=none"]}
OF_EVALUATE = (("data", "held_out"), ("inference", "vllm"))


def composed(name: str, *overrides: str) -> dict[str, Any]:
    config_class = {"train": TrainConfig, "evaluate": EvaluateConfig}[name]
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        values = OmegaConf.to_container(compose(name, let_unknown_keys_in(list(overrides), config_class)), resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def train_config(*overrides: str) -> TrainConfig:
    return schema.from_dict(TrainConfig, composed("train", *overrides))


def evaluate_config(*overrides: str) -> EvaluateConfig:
    return schema.from_dict(EvaluateConfig, composed("evaluate", *overrides))


def refusal(*overrides: str) -> list[str]:
    with pytest.raises(schema.ConfigError) as caught:
        train_config(*overrides)
    return caught.value.problems


@pytest.mark.parametrize(
    ("group", "option"), [pair for pair in OPTIONS if pair not in OF_EVALUATE and pair[0] != "ttft"]
)
def test_every_option_of_train_composes(group: str, option: str) -> None:
    config = train_config(f"{group}={option}", *EXTRA_OF_TRAIN.get((group, option), []))
    assert schema.from_dict(TrainConfig, schema.to_dict(config)) == config


@pytest.mark.parametrize(
    ("group", "option"),
    [
        pair
        for pair in OPTIONS
        if pair[0] in ("inference", "selection", "tracking", "ttft", "lora", "augmentation")
        or pair == ("data", "held_out")
    ],
)
def test_every_option_of_evaluate_composes(group: str, option: str) -> None:
    config = evaluate_config(f"{group}={option}", "checkpoint=run")
    assert schema.from_dict(EvaluateConfig, schema.to_dict(config)) == config


@pytest.mark.parametrize("option", [option for group, option in OPTIONS if group == "model"])
def test_a_model_brings_its_encoder_and_prompt_to_both_programs(option: str) -> None:
    extra = EXTRA.get(("model", option), [])
    trained, evaluated = train_config(f"model={option}", *extra), evaluate_config(f"model={option}", *extra)
    assert evaluated.model == trained.model
    assert evaluated.encoder == trained.encoder
    assert evaluated.prompt == trained.prompt
    chosen = train_config(f"model={option}", "encoder=separator", "prompt=priors", *extra)
    assert "GridWithSeparationEncoder" in str(chosen.encoder.grid)
    assert "Topology" in chosen.prompt.intro


def test_the_model_sets_rate_and_length_unless_they_are_set() -> None:
    config = train_config("model=qwen2_5_0_5b")
    assert (config.training.learning_rate, config.training.max_seq_length) == (1e-4, 4096)
    config = train_config("model=qwen2_5_0_5b", "training.learning_rate=2e-4", "training.max_seq_length=2048")
    assert (config.training.learning_rate, config.training.max_seq_length) == (2e-4, 2048)


def test_all_problems_are_told_at_once() -> None:
    problems = refusal("lora.r=0", "scheduler.warmup_ratio=1.5", "+training.steps=3", "data.limit=many")
    assert problems == [
        "lora.r=0: the rank must be at least 1; to train without an adapter use lora=none",
        "data.limit='many': expected a whole number or null, not str",
        "scheduler.warmup_ratio=1.5: a share of the steps, from 0 to below 1",
        "training.steps: there is no such key; did you mean training.max_steps or training.save_steps?",
    ]


def test_a_curriculum_is_written_on_the_command_line() -> None:
    text = "training.curriculum=[{start:0,max_seq_length:512},{start:0.25,max_seq_length:1024}]"
    config = train_config(text, "training.max_seq_length=2048")
    assert config.training.curriculum == [
        CurriculumStage(start=0.0, max_seq_length=512),
        CurriculumStage(start=0.25, max_seq_length=1024),
    ]
    assert schema.from_dict(TrainConfig, schema.to_dict(config)) == config


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ("{start:0.5,max_seq_length:512}", "[0].start=0.5: the first stage starts at 0.0"),
        (
            "{start:0,max_seq_length:512},{start:0,max_seq_length:600}",
            "[1].start=0.0: a share of the run, above that of the stage before (0.0) and below 1",
        ),
        (
            "{start:0,max_seq_length:512},{start:1,max_seq_length:600}",
            "[1].start=1.0: a share of the run, above that of the stage before (0.0) and below 1",
        ),
        (
            "{start:0,max_seq_length:512},{start:0.5,max_seq_length:512}",
            "[1].max_seq_length=512: above that of the stage before (512), as stages grow",
        ),
        ("{start:0,max_seq_length:0}", "[0].max_seq_length=0: at least 1"),
        (
            "{start:0,max_seq_length:512},{start:0.5,max_seq_length:2000}",
            "[1].max_seq_length=2000: at most training.max_seq_length=1024; raise that, or lower this",
        ),
        ("{from:0,max_seq_length:512}", "[0].from: there is no such key; did you mean training.curriculum[0].start"),
        ("512", "[0]=512: expected a group of keys, not int"),
    ],
)
def test_a_mistake_in_a_curriculum_is_told(stages: str, message: str) -> None:
    problems = refusal("training.max_seq_length=1024", f"training.curriculum=[{stages}]")
    assert problems[0].startswith("training.curriculum" + message)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["lora.r=0"], "lora.r=0: the rank must be at least 1; to train without an adapter use lora=none"),
        (["lora.target_modules=q_proj"], "lora.target_modules=q_proj: write a list, [q_proj], or all-linear"),
        (["lora.target_modules=[]"], "lora.target_modules=[]: name at least one linear layer, or use all-linear"),
        (
            ["lora.init_lora_weights=loftq"],
            "lora.init_lora_weights=loftq: one of true, false, gaussian, pissa, olora, orthogonal",
        ),
        (
            ["lora.init_lora_weights=eva"],
            "lora.init_lora_weights=eva: one of true, false, gaussian, pissa, olora, orthogonal",
        ),
        (["lora=none", "lora.r=16"], "lora.r belongs to lora=default; drop it, or use that"),
        (
            ["scheduler.num_cycles=4"],
            "scheduler.num_cycles belongs to scheduler=cosine_with_restarts; drop it, or use that",
        ),
        (["scheduler=cosine_with_restarts", "scheduler.decay=0"], "scheduler.decay=0.0: above 0, at most 1"),
        (
            ["scheduler.decay_ratio=0.3"],
            "scheduler.decay_ratio belongs to scheduler=warmup_stable_decay; drop it, or use that",
        ),
        (
            ["scheduler=warmup_stable_decay", "scheduler.decay_ratio=null"],
            "scheduler.decay_ratio: must not be null; expected a number",
        ),
        (
            ["scheduler=warmup_stable_decay", "scheduler.decay_ratio=1.5"],
            "scheduler.decay_ratio=1.5: a share of the steps, above 0, at most 1",
        ),
        (
            ["scheduler=warmup_stable_decay", "scheduler.decay_ratio=0.8", "scheduler.warmup_ratio=0.3"],
            "scheduler.decay_ratio=0.8: with scheduler.warmup_ratio=0.3 more than the whole run; lower one of the two",
        ),
        (["training.max_batch_tokens=0"], "training.max_batch_tokens=0: at least 1, or null to pass a batch whole"),
        (
            ["inference.temperature=1"],
            "inference.temperature belongs to inference=sample; drop it, or use that",
        ),
        (
            ["inference=generate", "inference.grammar=true"],
            "inference.grammar belongs to inference=greedy, sample or search; drop it, or use one of those",
        ),
        (
            ["inference=sample", "inference.speculate=true"],
            "inference.speculate belongs to inference=greedy; drop it, or use that",
        ),
        (
            ["inference.threshold=0.1"],
            "inference.threshold belongs to inference=search; drop it, or use that",
        ),
        (
            ["inference=search", "inference.threshold=1"],
            "inference.threshold=1.0: a probability, above 0 and below 1",
        ),
        (["inference=search", "inference.max_nodes=0"], "inference.max_nodes=0: at least 1"),
        (["inference=sample", "inference.temperature=nan"], "inference.temperature=nan: must be a finite number"),
        (["inference=sample", "inference.temperature=inf"], "inference.temperature=inf: must be a finite number"),
        (["training.learning_rate=nan"], "training.learning_rate=nan: must be a finite number"),
        (
            ["inference=search", "inference.max_nodes=null"],
            "inference.max_nodes: must not be null; expected a whole number",
        ),
        (["inference.name=sample"], "inference.top_p: is missing; inference=sample needs it, a number"),
        (
            ["inference=generate"],
            "inference=generate only counts positions, and this model's jump (model.positions=grid); use "
            "inference=greedy, with inference.grammar=false if need be",
        ),
        (
            ["inference=vllm", "model.positions=none"],
            "inference=vllm belongs to evaluate.py: it reads models that are saved; use inference=greedy",
        ),
        (
            ["inference@showcase.inference=generate"],
            "showcase: inference=generate only counts positions, and this model's jump (model.positions=grid); use "
            "inference=greedy, with inference.grammar=false if need be",
        ),
        (
            ["tracking=none", "tracking.mode=online"],
            "tracking.mode belongs to tracking=wandb; drop it, or use that",
        ),
        (
            ["model=local"],
            "model.path is not set: give a hub id, a folder or a .gguf file, e.g. model.path=/models/my-model",
        ),
        (["optimizer.momentum=0.9"], "optimizer.momentum belongs to optimizer=muon; drop it, or use that"),
        (
            ["data=kaggle"],
            "data.path is not set: data.source=kaggle reads tasks from there",
        ),
        (
            ["data.task_ids=[5117e062]"],
            "data.task_ids[0]=5.117e+65: expected text, not float; YAML read the id as a number: quote it, "
            "e.g. \"data.task_ids=['007bbfb7']\"",
        ),
        (
            ["training.max_time=90"],
            "training.max_time=90: expected text or null, not int; write hours, minutes and seconds with their "
            "letters, e.g. 90s, 45m, 11h30m",
        ),
        (
            ["training.max_time=soon"],
            "training.max_time=soon: write hours, minutes and seconds with their letters, e.g. 90s, 45m, 11h30m",
        ),
        (["prompt.test=nothing"], "prompt.test: the placeholder {input} is missing"),
        (
            ["prompt.demonstration='{input}{outptu}'"],
            "prompt.demonstration: unknown placeholder {outptu}; known here: {input}, {number}, {output}",
        ),
        (["data=held_out"], "data=held_out belongs to evaluate.py; train.py needs a set of tasks, e.g. data=arc1"),
    ],
)
def test_a_wrong_value_is_refused_with_its_remedy(overrides: list[str], message: str) -> None:
    assert message in refusal(*overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "give exactly one of checkpoint=, model=, predictions=, resume= (none given)"),
        (
            ["checkpoint=a", "predictions=b"],
            "give exactly one of checkpoint=, model=, predictions=, resume= (checkpoint= and predictions= given)",
        ),
        (["predictions=[]"], "predictions=[]: name a file of predictions, or several"),
        (["model=tiny", "adapters=x"], "adapters= needs checkpoint=: the run that the adapters were started from"),
        (
            ["predictions=b", "data=arc1", "ttft=per_task"],
            "ttft=per_task has no effect with predictions=, which are made already; use ttft=none",
        ),
        (
            ["checkpoint=a", "adapters=b", "ttft=whole_set"],
            "ttft=whole_set with adapters=: those were adapted already; drop one of the two",
        ),
        (
            ["checkpoint=a", "ttft=per_task", "ttft.splits=2"],
            "ttft.splits belongs to ttft=split; drop it, or use that",
        ),
        (
            ["checkpoint=a", "ttft=split", "ttft.splits=null"],
            "ttft.splits: must not be null; expected a whole number",
        ),
        (
            ["checkpoint=a", "ttft=per_task", "ttft.num_workers=2"],
            "ttft.num_workers=2 has no effect with ttft.workers=local; use processes or ray",
        ),
        (
            ["checkpoint=a", "ttft=per_task", "ttft.budget=soon"],
            "ttft.budget=soon: write hours, minutes and seconds with their letters, e.g. 90s, 45m, 11h30m",
        ),
        (
            ["checkpoint=a", "ttft.budget=1h"],
            "ttft.budget belongs to ttft=per_task, whole_set or split; drop it, or use one of those",
        ),
        (
            ["checkpoint=a", "ttft=whole_set", "ttft.max_steps=null"],
            "ttft.max_steps: must not be null; expected a whole number",
        ),
        (["checkpoint=a", "inference.augment_colors=false"], "inference.augment_colors is now inference.augmentations"),
        (
            ["checkpoint=a", "inference.augmentations=colors"],
            "inference.augmentations=colors: expected a list of text or all",
        ),
        (["checkpoint=a", "lora.enabled=false"], "lora.enabled is now lora.name"),
        (["checkpoint=a", "ttft=per_task", "ttft.slots=0"], "ttft.slots=0: at least 1, or auto"),
        (
            ["checkpoint=a", "inference=vllm", "inference.restart_seconds=0"],
            "inference.restart_seconds=0.0: above 0",
        ),
        (
            ["checkpoint=a", "ttft=per_task", "inference=vllm"],
            "ttft=per_task with inference=vllm: vLLM serves adapters that are saved; adapt with inference=greedy "
            "ttft.keep_adapters=true, then predict with adapters='FOLDER/adapters/*' inference=vllm",
        ),
        (
            ["checkpoint=a", "selection=score", "inference=vllm"],
            "selection=score with inference=vllm: it gives no log-probabilities of given answers; use selection=vote "
            "or selection=verify, or inference=greedy",
        ),
        (["checkpoint=a", "ttft=per_task", "ttft.max_steps=0"], "ttft.max_steps=0: at least 1"),
        (["checkpoint=a", "ttft=per_task", "ttft.learning_rate=0"], "ttft.learning_rate=0.0: above 0"),
        (
            ["checkpoint=a", "ttft=per_task", "ttft.slots=many"],
            "ttft.slots=many: expected a whole number or auto or null",
        ),
    ],
)
def test_evaluate_takes_exactly_one_subject(overrides: list[str], message: str) -> None:
    with pytest.raises(schema.ConfigError) as caught:
        evaluate_config(*overrides)
    assert message in caught.value.problems


@pytest.mark.parametrize(
    ("override", "owner"),
    [
        ("inference.temperature=0.0", "sample"),
        ("inference.top_p=2.0", "sample"),
        ("inference.threshold=0.0", "search"),
        ("inference.max_nodes=0", "search"),
        ("inference.restart_seconds=-1.0", "vllm"),
    ],
)
def test_a_key_of_another_way_of_predicting_is_reported_once(override: str, owner: str) -> None:
    """Its range does not matter then."""
    with pytest.raises(schema.ConfigError) as caught:
        evaluate_config("checkpoint=a", override)
    key = override.partition("=")[0]
    assert caught.value.problems == [f"{key} belongs to inference={owner}; drop it, or use that"]


def test_unknown_keys_reach_the_validation_with_all_else_that_is_wrong() -> None:
    typed = [
        "lora.rank=3",
        "training.max_step=1,2",
        "lora.r=0",
        "encoder.grid.base=x",
        "hydra.verbose=true",
        "-m",
        "+x=1",
    ]
    # lora.r is no key of lora=none.
    let_in = ["++lora.rank=3", "++training.max_step=1,2", "++lora.r=0", *typed[3:]]
    assert let_unknown_keys_in(typed, TrainConfig) == let_in
    assert refusal("+lora.rank=3", "+training.max_step=1", "lora.r=0", "+encodr=minimal") == [
        "encodr: there is no such key; did you mean encoder?",
        "lora.rank: there is no such key; did you mean lora.r or lora.name?",
        "lora.r=0: the rank must be at least 1; to train without an adapter use lora=none",
        "training.max_step: there is no such key; did you mean training.max_steps or training.max_time?",
    ]


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("45m", 2700), ("11h30m", 41400), ("1h0m0.5s", 3600.5)])
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "12", "h", "1d", "-5m", "0s", "1m1h"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(DurationError):
        parse_duration(text)


def test_every_yaml_opens_with_its_command() -> None:
    for path in Path(config_folder()).rglob("*.yaml"):
        lines = path.read_text(encoding="utf-8").splitlines()
        first = next(line for line in lines if not line.startswith("# @package"))
        assert first.startswith(("# python train.py", "# python evaluate.py")), path
