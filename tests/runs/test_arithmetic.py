"""The dtype that inference.dtype=auto stands for, and that evaluations keep the one they were started with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from arcft.checkpoints import read_run_yaml, write_run_yaml
from arcft.config.model import ModelConfig
from arcft.config.recommended import RecommendedConfig, RecommendedTraining
from arcft.runs.evaluate import evaluate
from arcft.runs.evaluation.results import INDEX_FILE
from arcft.runs.setup.arithmetic import Arithmetics, auto_dtype
from arcft.runs.setup.checkpoint_config import TrainedRun
from tests.config.test_config import evaluate_config, train_config
from tests.support.evaluate_command import SHORT, answers, evaluated, evaluation_tasks, run_json, trained
from tests.support.train_command import SMALL_MODEL, ids

CPU = torch.device("cpu")
FAST = "arcft.runs.setup.arithmetic.fast_bfloat16"
RECOMMENDS = "model.recommended.training.cpu_dtype=auto"
BASE = ["model=tiny", *SMALL_MODEL, RECOMMENDS, *evaluation_tasks()[:2], ids("66e6c45b")]
ADAPTED = ["ttft=per_task", "ttft.max_steps=2", "ttft.predict_before=0"]


def model(cpu_dtype: Any) -> ModelConfig:
    training = RecommendedTraining(cpu_dtype=cpu_dtype)
    return ModelConfig(name="any", path="any", recommended=RecommendedConfig(training=training))


def run_of(*overrides: str) -> TrainedRun:
    return TrainedRun(checkpoint=None, config=train_config(*overrides), tasks={})  # type: ignore[arg-type]


@pytest.fixture(params=[True, False], ids=["fast", "slow"])
def fast(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(FAST, lambda: request.param)
    return bool(request.param)


@pytest.mark.parametrize(
    ("cpu_dtype", "frozen", "on_fast"),
    [("auto", True, torch.bfloat16), ("auto", False, torch.float32), ("float32", True, torch.float32)],
)
def test_auto_on_a_cpu(fast: bool, cpu_dtype: str, frozen: bool, on_fast: torch.dtype) -> None:
    assert auto_dtype(model(cpu_dtype), CPU, frozen=frozen) == (on_fast if fast else torch.float32)


@pytest.mark.parametrize(
    ("models", "dtype"),
    [
        ([model("auto")], "bfloat16"),
        ([model("float32")], "float32"),
        ([run_of("model=smollm2_135m", "training.dtype=bfloat16")], "bfloat16"),
        ([run_of("model=smollm2_135m", "training.dtype=float32")], "float32"),
        ([run_of("model=smollm2_135m", "training.dtype=bfloat16", "lora=none")], "float32"),
        ([run_of("model=tiny", "training.dtype=bfloat16")], "float32"),
        ([model("auto"), run_of("model=smollm2_135m", "training.dtype=float32")], "float32"),
    ],
    ids=["base", "tiny", "adapter", "adapter in float32", "whole model", "adapter of tiny", "several models"],
)
def test_auto_of_a_target(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, models: list[TrainedRun | ModelConfig], dtype: str
) -> None:
    monkeypatch.setattr(FAST, lambda: True)
    chosen = Arithmetics(evaluate_config("checkpoint=x").inference, tmp_path).of("target", models)
    assert chosen is not None
    assert (chosen.dtype, chosen.device) == (dtype, "cpu")


def test_a_dtype_that_is_named_wins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(FAST, lambda: True)
    config = evaluate_config("checkpoint=x", "inference.dtype=float32").inference
    chosen = Arithmetics(config, tmp_path).of("target", [model("auto")])
    assert chosen is not None
    assert chosen.dtype == "float32"


def test_workers_of_vllm_choose_themselves(tmp_path: Path) -> None:
    config = evaluate_config("checkpoint=x", "inference=vllm").inference
    assert Arithmetics(config, tmp_path).of("target", [model("auto")]) is None


def test_a_checkpoint_that_is_new_in_a_sweep_takes_the_dtype_of_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def chosen(**stored: Any) -> str:
        write_run_yaml(tmp_path, {"arcft": "1", "job": "evaluate", "keys": {"old": {}}} | stored)
        found = Arithmetics(evaluate_config("checkpoint=x").inference, tmp_path).of("new", [model("auto")])
        assert found is not None
        return found.dtype

    monkeypatch.setattr(FAST, lambda: False)
    assert chosen(arithmetic={"old": {"dtype": "bfloat16", "device": "cpu"}}) == "bfloat16"
    monkeypatch.setattr(FAST, lambda: True)
    assert chosen(arithmetic={"old": {"dtype": "float32", "device": "cpu"}}) == "float32"
    assert chosen() == "float32"  # version 0.1.0
    assert chosen(arithmetic={}) == "bfloat16"  # workers chose


@pytest.mark.parametrize("ttft", [[], ADAPTED], ids=["predicted", "adapted"])
def test_an_evaluation_keeps_its_dtype(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, ttft: list[str]
) -> None:
    monkeypatch.setattr(FAST, lambda: True)
    folder = evaluated(tmp_path / "evaluation", *BASE, *ttft)
    assert capsys.readouterr().out.count("note: inference.dtype=auto: bfloat16, which this CPU multiplies fast") == 1
    assert run_json(folder)["run"]["dtype"] == "bfloat16"
    explicit = evaluated(tmp_path / "explicit", *BASE, *ttft, "inference.dtype=bfloat16")
    assert answers(explicit) == answers(folder)
    # Its answers are lost, and predicted again on a machine of the other kind.
    before = answers(folder)
    for name in ("ledger.sqlite", "metrics.json", "predictions.jsonl"):
        (folder / name).unlink(missing_ok=True)
    monkeypatch.setattr(FAST, lambda: False)
    evaluated(folder, *BASE, *ttft)
    assert "inference.dtype=auto: bfloat16, as when this evaluation was started" in capsys.readouterr().out
    assert answers(folder) == before
    slow = evaluated(tmp_path / "slow", *BASE, *ttft)
    assert run_json(slow)["run"]["dtype"] == "float32"
    assert answers(slow) != before


def test_an_evaluation_of_version_0_1_0_stays_in_float32(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FAST, lambda: False)
    folder = evaluated(tmp_path / "evaluation", *BASE, *ADAPTED)
    stored = read_run_yaml(folder)
    del stored["arithmetic"]
    write_run_yaml(folder, stored)
    before = answers(folder)
    (folder / "metrics.json").unlink()
    monkeypatch.setattr(FAST, lambda: True)
    evaluated(folder, *BASE, *ADAPTED)
    assert run_json(folder)["run"]["dtype"] == "float32"
    assert answers(folder) == before


def test_a_finished_evaluation_is_taken_over_in_its_own_dtype_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained(tmp_path / "run", RECOMMENDS, "training.dtype=bfloat16", "training.generation_tasks=0")
    asked = [f"checkpoint={run}", *evaluation_tasks()[:2], ids("66e6c45b")]
    for number, fast in enumerate([False, True, True, False]):
        monkeypatch.setattr(FAST, lambda fast=fast: fast)
        folder = evaluated(tmp_path / str(number), *asked)
        assert run_json(folder)["run"]["dtype"] == ("bfloat16" if fast else "float32")
    assert capsys.readouterr().out.count("already evaluated") == 2
    assert len((run / INDEX_FILE).read_text(encoding="utf-8").splitlines()) == 2


@pytest.mark.slow
def test_workers_take_the_dtype_of_the_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FAST, lambda: True)
    here = evaluated(tmp_path / "here", *BASE, *ADAPTED)
    # A worker asks its own CPU nothing: in float32, it would give other log-probabilities.
    config = evaluate_config(*SHORT, *BASE, *ADAPTED, "ttft.workers=processes", "ttft.num_workers=1")
    evaluate(config, tmp_path / "there")
    assert answers(tmp_path / "there") == answers(here)
