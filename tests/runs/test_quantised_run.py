"""A quantised base through the programs: train, resume, evaluate, adapt; every format, on the bundled model."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.evaluate_command import answers, evaluated, evaluation_tasks, run_json
from tests.support.train_command import QUIET, TEN_TASKS, assert_same_run, recorded, run_train


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["int8", "nf4", "fp4"])
def test_from_training_to_adapted_answers(quantization: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run, resumed = tmp_path / "run", tmp_path / "resumed"
    words = [
        "model=tiny",
        f"model.quantization={quantization}",
        "optimizer=paged_adamw_8bit",
        *TEN_TASKS,
        *QUIET,
        "training.max_steps=4",
        "training.eval_steps=2",
        "training.save_steps=2",
        "training.logging_steps=1",
        "training.generation_tasks=1",
        "training.per_device_train_batch_size=2",
    ]
    assert run_train(run, *words) == 0
    assert len(set(recorded(run, "eval_loss"))) == 2, "the adapter learned nothing"
    shutil.copytree(run, resumed)
    shutil.rmtree(resumed / "checkpoint-4")
    assert run_train(resumed, f"resume='{resumed}'") == 0
    assert_same_run(resumed, run)
    said = capfd.readouterr()
    # Loading warns of nothing, and no product or step does.
    assert "model tiny: 1." in said.out
    assert "bitsandbytes" not in said.out + said.err
    assert "will be cast" not in said.out + said.err

    few = [f"checkpoint={run}", *evaluation_tasks(), "inference.max_new_tokens=60"]
    plain = evaluated(tmp_path / "plain", *few)
    assert answers(plain) == answers(evaluated(tmp_path / "again", *few, "inference.batch_size=1"))
    adapted = evaluated(tmp_path / "adapted", *few, "ttft=per_task", "ttft.max_steps=3")
    assert run_json(adapted)["metrics"].keys() == run_json(plain)["metrics"].keys()
    assert "will be cast" not in "".join(capfd.readouterr())
