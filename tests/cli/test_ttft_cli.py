"""The commands of test-time fine-tuning as a user types them: each in a process of its own, and what it starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from arcft.runs.adaptation.run_folder import LEDGER_FILE
from arcft.ttft.ledger.ledger import Ledger
from arcft.ttft.units import ADAPT_ROUND, BASELINE_ROUND
from tests.support.arc import ARC
from tests.support.evaluate_command import (
    FILES,
    SMALL_EVALUATION_TASKS,
    answers,
    evaluation_tasks,
    predicted,
    run_json,
    start_evaluate,
    trained,
)
from tests.support.offline_runs import read_runs
from tests.support.paths import ARCHITECTURES, ROOT
from tests.support.train_command import ids

pytestmark = pytest.mark.slow

SHORT = ["inference.predictions_per_test=2", "inference.max_new_tokens=8", "tracking=none"]
FEW = ["ttft=per_task", "ttft.max_steps=3", *evaluation_tasks(), *SHORT]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("run"))


@pytest.fixture(autouse=True)
def _forgotten(run: Path) -> None:
    (run / "evaluations.jsonl").unlink(missing_ok=True)


@pytest.fixture(scope="module")
def local(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation in one process."""
    (run / "evaluations.jsonl").unlink(missing_ok=True)
    cwd = tmp_path_factory.mktemp("local")
    evaluate(cwd, f"checkpoint={run}", *FEW)
    return only_folder(cwd)


def evaluate(cwd: Path, *overrides: str) -> str:
    """The command's output; it must succeed."""
    out, err = (process := start_evaluate(*overrides, cwd=cwd)).communicate(timeout=400)
    assert process.returncode == 0, err
    assert "Traceback" not in out + err
    return out


def refused(cwd: Path, *overrides: str) -> str:
    """The one message of a command that must fail, and leave nothing behind."""
    out, err = (process := start_evaluate(*overrides, *SHORT, cwd=cwd)).communicate(timeout=300)
    assert process.returncode == 1, out + err
    lines = [line for line in err.splitlines() if line]
    assert "Traceback" not in out + err
    assert sum(line.startswith("error: ") for line in lines) == 1
    assert not (cwd / "outputs").exists()
    return "\n".join(lines).removeprefix("error: ")


def only_folder(cwd: Path) -> Path:
    (folder,) = (cwd / "outputs" / "evaluate").iterdir()
    return folder


def test_per_task(run: Path, tmp_path: Path) -> None:
    out = evaluate(tmp_path, f"checkpoint={run}", *FEW)
    folder = only_folder(tmp_path)
    assert {path.name for path in folder.iterdir()} >= FILES | {"run.yaml", LEDGER_FILE}
    assert "checkpoint-6 4/4  " in out
    assert " tokens/s, " in out
    assert f"report: {folder / 'report.html'}" in out
    assert f"submission: {folder / 'submission.json'}" in out
    tables = [line for line in out.splitlines() if str(folder) not in line and not line.startswith("note: ")]
    assert [line for line in tables if len(line) > 80] == []


def test_workers_come_to_the_same_predictions(run: Path, local: Path, tmp_path: Path) -> None:
    evaluate(tmp_path, f"checkpoint={run}", *FEW, "ttft.workers=processes", "ttft.num_workers=2")
    assert answers(only_folder(tmp_path)) == answers(local)
    with Ledger.open(only_folder(tmp_path) / LEDGER_FILE, ARC) as ledger:
        # One of them may have been quicker to start than the other, and done it all.
        assert {record.worker for record in ledger.records()} <= {"process-0", "process-1"}


def test_a_ray_cluster_comes_to_the_same_predictions(run: Path, local: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    evaluate(tmp_path, f"checkpoint={run}", *FEW, "ttft.workers=ray", "ttft.num_workers=2")
    assert answers(only_folder(tmp_path)) == answers(local)


def test_slots_side_by_side(run: Path, local: Path, tmp_path: Path) -> None:
    """The same losses but for the rounding of sums in another order."""
    evaluate(tmp_path, f"checkpoint={run}", *FEW, "ttft.slots=4")
    with Ledger.open(only_folder(tmp_path) / LEDGER_FILE, ARC) as several, Ledger.open(local / LEDGER_FILE, ARC) as one:
        for mine, theirs in zip(several.records(ADAPT_ROUND), one.records(ADAPT_ROUND), strict=True):
            assert mine.losses == pytest.approx(theirs.losses, abs=1e-4)


def test_slots_are_measured_and_kept(run: Path, tmp_path: Path) -> None:
    out = evaluate(tmp_path, f"checkpoint={run}", *FEW, "ttft.slots=auto", "ttft.max_steps=12")
    with Ledger.open(only_folder(tmp_path) / LEDGER_FILE, ARC) as ledger:
        (note,) = ledger.notes()
    assert note.data["recipe"]["slots"] in (1, 2, 4, 8)
    assert note.text in out


def test_a_budget_is_kept(run: Path, tmp_path: Path) -> None:
    """Steps for hours, and seconds to do them in: every test is predicted, and scored, in time."""
    plenty = ["ttft.max_steps=100000", "ttft.budget=30s"]
    evaluate(tmp_path, f"checkpoint={run}", *(word for word in FEW if "max_steps" not in word), *plenty)
    folder = only_folder(tmp_path)
    with Ledger.open(folder / LEDGER_FILE, ARC) as ledger:
        assert ledger.elapsed_at(time.time()) <= 30
        assert {record.state for record in ledger.records(ADAPT_ROUND)} == {"done"}
        assert all(0 < record.steps < 100000 for record in ledger.records(ADAPT_ROUND))
        assert len(ledger.predictions(BASELINE_ROUND)) == 5
    assert {(p.task_id, p.test_index) for p in predicted(folder)} == {
        *((task_id, 0) for task_id in SMALL_EVALUATION_TASKS),
        (SMALL_EVALUATION_TASKS[-1], 1),
    }


def test_every_task_fails(tmp_path: Path) -> None:
    short = trained(tmp_path / "short", "training.max_seq_length=150")
    tasks = ["data=arc1", "data.split=evaluation", ids("f3e62deb")]
    process = start_evaluate(f"checkpoint={short}", *tasks, *SHORT, "ttft=per_task", cwd=tmp_path)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "error: not one of 1 task could be adapted to: too long for ttft: " in err
    assert "1 of 1 task failed; their predictions before adapting stand:" in out
    assert "Traceback" not in out + err
    assert {path.name for path in only_folder(tmp_path).iterdir()} >= FILES


def test_several_checkpoints_one_after_the_other(run: Path, tmp_path: Path) -> None:
    both = f"checkpoint={run}/checkpoint-4,{run}/checkpoint-6"
    out = evaluate(tmp_path, "-m", both, *FEW)
    assert "checkpoint-4 4/4" in out
    assert "checkpoint-6 4/4" in out
    assert len(list(tmp_path.glob("multirun/evaluate/*/*/metrics.json"))) == 2


def test_what_workers_refuse_leaves_nothing_behind(run: Path, tmp_path: Path) -> None:
    base = f"base_model={ARCHITECTURES / 'qwen3'}"
    message = refused(tmp_path, f"checkpoint={run}", base, *FEW, "ttft.workers=processes", "ttft.num_workers=1")
    assert "so it is another model" in message


def test_one_message_for_each_mistake(run: Path, tmp_path: Path) -> None:
    checkpoint = f"checkpoint={run}"
    assert refused(tmp_path, checkpoint, "ttft.max_steps=3") == (
        "ttft.max_steps belongs to ttft=per_task, whole_set or split; drop it, or use one of those"
    )
    assert "lora.r=4 contradicts the checkpoint's 16" in refused(tmp_path, checkpoint, "ttft=per_task", "lora.r=4")
    assert "contradicts the checkpoint's" in refused(tmp_path, checkpoint, "ttft=per_task", "encoder=shape")
    other = ARCHITECTURES / "qwen3"
    assert "so it is another model" in refused(tmp_path, checkpoint, "ttft=per_task", f"base_model={other}")
    assert "there is no such folder" in refused(tmp_path, "checkpoint=nothing", "ttft=per_task")
    missing = ["data=kaggle", f"data.path={tmp_path / 'missing.json'}"]
    assert "missing.json" in refused(tmp_path, checkpoint, "ttft=per_task", *missing)


def test_a_full_disk_is_told_in_one_line(run: Path, tmp_path: Path) -> None:
    """No file may grow beyond 48 KiB, as on a disk that is full; what was saved can be gone on with."""
    limited = (
        "import resource, runpy, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (49152, resource.RLIM_INFINITY))\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", limited, str(ROOT / "evaluate.py"), f"checkpoint={run}", *FEW]
    full = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert full.returncode == 1
    assert "Traceback" not in full.stderr
    assert sum(line.startswith("error: ") for line in full.stderr.splitlines()) == 1


def test_the_wandb_run(run: Path, tmp_path: Path) -> None:
    evaluate(tmp_path, f"checkpoint={run}", *(word for word in FEW if word != "tracking=none"))
    folder = only_folder(tmp_path)
    (recorded,) = read_runs(folder)
    assert recorded.exit_code == 0
    assert recorded.config["ttft"]["max_steps"] == 3
    course = [entry for entry in recorded.history if "ttft/solved" in entry]
    assert [entry["ttft/done"] for entry in course][-1] == 4
    seconds = [entry["ttft/seconds"] for entry in course]
    assert seconds == sorted(seconds)
    metrics = run_json(folder)
    (after,) = [entry for entry in recorded.history if "eval/vote_2" in entry]
    assert after["eval/unanswered"] == metrics["metrics"]["unanswered"]
    assert recorded.summary["before/unanswered"] == metrics["before"]["unanswered"]
    table = recorded.table("ttft/tasks")
    assert [row[0] for row in table["data"]] == SMALL_EVALUATION_TASKS
    assert table["columns"][:2] == ["task", "state"]
    for task_id in SMALL_EVALUATION_TASKS:
        assert recorded.picture(f"ttft/task/{task_id}").is_file()
    assert json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["run"]["ttft"]["name"] == "per_task"
