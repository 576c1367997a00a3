"""Forms of LoRA through the programs: train, resume, evaluate, adapt to tasks, and answer from the kept adapters."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.evaluate_command import answers, evaluated, evaluation_tasks, run_json, trained
from tests.support.train_command import assert_same_run, run_train


@pytest.mark.slow
@pytest.mark.parametrize("form", ["rslora", "pissa", "olora", "dora"])
def test_from_training_to_adapted_answers(form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, resumed = trained(tmp_path / "run", f"lora={form}"), tmp_path / "resumed"
    shutil.copytree(run, resumed)
    shutil.rmtree(resumed / "checkpoint-6")
    assert run_train(resumed, f"resume='{resumed}'") == 0
    assert_same_run(resumed, run)
    few = [f"checkpoint='{run}'", *evaluation_tasks()]
    assert answers(evaluated(tmp_path / "plain", *few))
    if form == "dora":
        return  # test-time fine-tuning refuses it by name: tests/runs/test_ttft_run.py
    ttft = ["ttft=per_task", "ttft.max_steps=2", "ttft.keep_adapters=true"]
    adapted = evaluated(tmp_path / "adapted", *few, *ttft)
    assert not run_json(adapted).get("failed")
    again = evaluated(tmp_path / "again", *few, f"adapters='{adapted}/adapters/*'")
    assert [one[:3] for one in answers(again)] == [one[:3] for one in answers(adapted)]
