"""Dry runs, refusals and runs that are stopped before they begin leave nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from arcft.cli.evaluate import main
from tests.support.paths import ROOT
from tests.support.train_command import QUICK

DRY = [*QUICK, "dry_run=true"]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def run(cwd: Path, program: str, *words: str) -> tuple[int, str]:
    """Exit code and stderr of train.py or evaluate.py, run in `cwd`."""
    command = [sys.executable, str(ROOT / f"{program}.py"), *words]
    done = subprocess.run(command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=200)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


def refused(patch: pytest.MonkeyPatch, cwd: Path, *words: str) -> None:
    """Run the evaluate command in this process, in `cwd`; it must end with code 1."""
    patch.chdir(cwd)
    patch.setattr(sys, "argv", ["evaluate.py", *words])
    patch.setenv("HYDRA_FULL_ERROR", "0")
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 1


@pytest.mark.parametrize(
    "words",
    [
        ["checkpoint=nowhere"],
        ["checkpoint=nowhere", "data.limmit=3"],
        ["-m", "checkpoint=nowhere,nothing"],
        ["-m", "checkpoint=nowhere", "optimized_metric=eval/accuracy"],
        ["resume=nowhere"],
        ["checkpoint=nowhere", "hydra.run.dir=some/where/else"],
        ["checkpoint=/p/lr=1e-4"],
    ],
)
def test_a_refusal_leaves_nothing(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(monkeypatch, tmp_path, *words)
    assert list(tmp_path.iterdir()) == []


def test_a_refusal_leaves_a_folder_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    refused(monkeypatch, tmp_path, "checkpoint=nowhere", "hydra.run.dir=.")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.slow
def test_a_dry_run_leaves_nothing(tmp_path: Path) -> None:
    assert run(tmp_path, "train", *DRY) == (0, "")
    assert run(tmp_path, "train", "-m", "lora.r=0,4", *DRY)[0] == 1
    few = ["model=tiny", "data=arc1", "data.limit=2", "data.max_tokens=500", "dry_run=true"]
    assert run(tmp_path, "evaluate", *few) == (0, "")
    assert run(tmp_path, "evaluate", *few, "ttft=per_task") == (0, "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_multirun_keeps_the_jobs_that_ran(tmp_path: Path) -> None:
    assert run(tmp_path, "train", "-m", "lora.r=0,4", *QUICK, "training.max_steps=1", "data.held_out=0")[0] == 1
    (sweep,) = (tmp_path / "multirun" / "train").iterdir()
    assert {path.name for path in sweep.iterdir()} == {"1", "multirun.yaml"}
    assert {"run.yaml", "train.log", ".hydra"} <= {path.name for path in (sweep / "1").iterdir()}


@pytest.mark.slow
def test_ctrl_c_before_anything_was_written_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "train.py"), *QUICK]
    process = subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob("outputs/train/*/train.log")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []
