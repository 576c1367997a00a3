"""The evaluate commands as a user types them: each in a process of its own, stopped, killed, gone on with, refused."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from arcft.problems.arc.scoring.metrics import METRICS
from tests.support.evaluate_command import (
    FILES,
    SMALL_EVALUATION_TASKS,
    arc_tasks,
    change_byte,
    run_json,
    start_evaluate,
    trained,
    without_times,
    write_answers,
    write_challenges,
)
from tests.support.offline_runs import read_runs
from tests.support.train_command import ids

pytestmark = pytest.mark.slow

SHORT = ["inference.predictions_per_test=2", "inference.max_new_tokens=8", "tracking=none"]
# Some seconds of predicting, so that there is a middle to be stopped in.
LONG = ["inference.predictions_per_test=4", "inference.max_new_tokens=120", "tracking=none", "inference.batch_size=1"]
DATA = ["data=arc1", "data.split=evaluation", "data.max_tokens=200"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("run"))


def evaluate(cwd: Path, *overrides: str) -> str:
    """The command's output; it must succeed."""
    out, err = (process := start_evaluate(*overrides, cwd=cwd)).communicate(timeout=300)
    assert process.returncode == 0, err
    return out


def refused(cwd: Path, *overrides: str) -> str:
    """The one message of a command that must fail, and leave nothing behind."""
    out, err = (process := start_evaluate(*overrides, "tracking=none", cwd=cwd)).communicate(timeout=300)
    assert process.returncode == 1, out + err
    assert "Traceback" not in out + err
    lines = [line for line in err.splitlines() if line]
    assert lines[0].startswith("error: ")
    assert not any(line.startswith("error: ") for line in lines[1:])
    assert not (cwd / "outputs").exists()
    return "\n".join(lines).removeprefix("error: ")


def only_folder(cwd: Path) -> Path:
    (folder,) = (cwd / "outputs" / "evaluate").iterdir()
    return folder


def test_the_commands_of_the_readme(run: Path, tmp_path: Path) -> None:
    out = evaluate(tmp_path / place("last", tmp_path), f"checkpoint={run}", *SHORT)
    folder = only_folder(tmp_path / "last")
    assert {path.name for path in folder.iterdir()} >= FILES | {"run.yaml"}
    assert f"report: {folder / 'report.html'}" in out
    assert f"submission: {folder / 'submission.json'}" in out
    assert run_json(folder)["run"]["step"] == 6
    assert all(len(line) <= 80 for line in out.splitlines() if str(folder) not in line)

    sweep = evaluate(tmp_path / place("sweep", tmp_path), f"checkpoint={run}/checkpoint-*", *SHORT)
    assert "checkpoint-6: already evaluated in" in sweep
    assert {path.name for path in only_folder(tmp_path / "sweep").iterdir()} >= {
        "checkpoint-4", "checkpoint-6", "sweep.json", "sweep.png",
    }  # fmt: skip

    challenges = tmp_path / "test_challenges.json"
    write_challenges(challenges, arc_tasks("evaluation", *SMALL_EVALUATION_TASKS))
    made = write_answers(tmp_path / "made.jsonl", {(SMALL_EVALUATION_TASKS[0], 0): [[[1]]]})
    kaggle = ["data=kaggle", f"data.path={challenges}", "tracking=none"]
    out = evaluate(tmp_path / place("made", tmp_path), f"predictions=[{made},{made}]", *kaggle)
    assert "no answers are known" in out
    assert {path.name for path in only_folder(tmp_path / "made").iterdir()} >= FILES

    few = ["data.limit=1", "inference.max_new_tokens=2", "inference.predictions_per_test=1", "tracking=none"]
    assert "1 task" in evaluate(tmp_path / place("base", tmp_path), "model=tiny", *few)


def place(name: str, tmp_path: Path) -> str:
    """Make a folder to work in."""
    (tmp_path / name).mkdir()
    return name


def test_each_adapter_of_a_multirun(run: Path, tmp_path: Path) -> None:
    for number, task_id in enumerate(SMALL_EVALUATION_TASKS[:2]):
        trained(
            tmp_path / "multirun" / "train" / "stamp" / str(number), f"lora.start={run}", "data=leave_one_out",
            ids(task_id), "data.held_out=0", "training.max_steps=1", "training.generation_tasks=0",
        )  # fmt: skip
    out = evaluate(tmp_path, f"checkpoint={run}", "adapters=multirun/train/stamp/*", *SHORT)
    assert "adapters 4/4" in out
    assert list(run_json(only_folder(tmp_path))["run"]["adapters"].values()) == [
        [SMALL_EVALUATION_TASKS[0]], [SMALL_EVALUATION_TASKS[1]],
    ]  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A long evaluation that nobody stopped; the run forgets it."""
    cwd = tmp_path_factory.mktemp("undisturbed")
    evaluate(cwd, f"checkpoint={run}", *DATA, *LONG)
    (run / "evaluations.jsonl").unlink()
    return only_folder(cwd)


def wait_for_lines(cwd: Path, number: int, process: subprocess.Popen[str]) -> Path:
    """Wait until so many predictions are on disk; returns the evaluation's folder."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        for path in cwd.glob("outputs/evaluate/*/predictions.jsonl"):
            if path.read_bytes().count(b"\n") >= number:
                return path.parent
        time.sleep(0.02)
    process.kill()
    raise AssertionError(f"no {number} predictions: {process.communicate()}")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_stopped_in_the_middle_it_goes_on_to_the_same_result(
    number: signal.Signals, code: int, run: Path, undisturbed: Path, tmp_path: Path
) -> None:
    process = start_evaluate(f"checkpoint={run}", *DATA, *LONG, cwd=tmp_path)
    folder = wait_for_lines(tmp_path, 5, process)
    os.kill(process.pid, number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "Traceback" not in out + err
    kept = (folder / "predictions.jsonl").read_bytes().count(b"\n")
    assert kept < (undisturbed / "predictions.jsonl").read_bytes().count(b"\n")
    assert not (folder / "metrics.json").exists()
    if number != signal.SIGKILL:
        assert f"stopped; resume with: python evaluate.py resume={folder}" in err
        assert kept % 4 == 0
    # From anywhere, with nothing but the folder.
    (tmp_path / "elsewhere").mkdir()
    out = evaluate(tmp_path / "elsewhere", f"resume={folder}")
    assert not (tmp_path / "elsewhere" / "outputs").exists()
    assert without_times(folder) == without_times(undisturbed)
    (run / "evaluations.jsonl").unlink()


def test_one_message_for_each_mistake(run: Path, tmp_path: Path) -> None:
    assert refused(tmp_path) == ("give exactly one of checkpoint=, model=, predictions=, resume= (none given)")
    assert "checkpoint= and predictions= given" in refused(tmp_path, f"checkpoint={run}", "predictions=x", "data=arc1")
    assert refused(tmp_path, "checkpoint=nothing") == (f"{tmp_path}/nothing: there is no such folder (from {tmp_path})")
    assert refused(tmp_path, "checkpoint='nothing/checkpoint-*'") == (
        f"checkpoint={tmp_path}/nothing/checkpoint-*: no folder matches; quote the pattern for the shell"
    )
    missing = tmp_path / "missing.json"
    assert str(missing) in refused(tmp_path, f"checkpoint={run}", "data=kaggle", f"data.path={missing}", NONE_HELD_OUT)
    assert "nothing.jsonl: no such file" in refused(tmp_path, "predictions=nothing.jsonl", *DATA[:2])
    other = write_answers(tmp_path / "other.jsonl", {("007bbfb7", 0): [[[1]]]})
    assert "none of the 1 predictions is for one of the 400 tasks" in refused(
        tmp_path, f"predictions={other}", *DATA[:2]
    )
    other.write_bytes(other.read_bytes()[:-9])
    assert f"{other}, line 1: the last line is cut off" in refused(tmp_path, f"predictions={other}", *DATA[:2])
    assert "contradicts the checkpoint's" in refused(tmp_path, f"checkpoint={run}", "encoder=shape")


NONE_HELD_OUT = "data.held_out=0"


def test_a_sweep_is_one_wandb_run_with_metrics_against_training_step(run: Path, tmp_path: Path) -> None:
    few = [word for word in SHORT if not word.startswith("tracking")]
    evaluate(tmp_path, f"checkpoint={run}/checkpoint-*", *few)
    folder = only_folder(tmp_path)
    (recorded,) = read_runs(folder)
    assert recorded.exit_code == 0
    assert recorded.config["checkpoint"] == f"{run}/checkpoint-*"
    metrics = {name: run_json(folder / name)["metrics"] for name in ("checkpoint-4", "checkpoint-6")}
    logged = [entry for entry in recorded.history if "eval/vote_2" in entry]
    assert [entry["step"] for entry in logged] == [4, 6]
    assert [entry["eval/unanswered"] for entry in logged] == [values["unanswered"] for values in metrics.values()]
    table = recorded.table("checkpoints")
    assert table["columns"] == ["checkpoint", *METRICS]
    assert table["data"] == [[name, *values.values()] for name, values in metrics.items()]
    assert recorded.picture("sweep").read_bytes() == (folder / "sweep.png").read_bytes()


def test_what_cannot_be_gone_on_with(run: Path, tmp_path: Path) -> None:
    def refused_resume(folder: Path, *overrides: str) -> str:
        out, err = (process := start_evaluate(f"resume={folder}", *overrides, cwd=tmp_path)).communicate(timeout=300)
        assert (process.returncode, out) == (1, "")
        assert err.startswith("error: ")
        assert "Traceback" not in err
        return err

    before = sorted(run.iterdir())
    assert "holds no evaluate run; if it is the other kind, use python train.py" in refused_resume(run)
    assert "is a checkpoint" in refused_resume(run / "checkpoint-6")
    assert "there is no such folder" in refused_resume(tmp_path / "nothing")
    assert "data.limit=3 has no effect with resume=" in refused_resume(run, "data.limit=3")
    assert sorted(run.iterdir()) == before


def test_a_broken_checkpoint_is_named_and_nothing_is_begun(run: Path, tmp_path: Path) -> None:
    adapter = run / "checkpoint-6" / "adapter_model.safetensors"
    original = adapter.read_bytes()
    change_byte(adapter)
    try:
        message = refused(tmp_path, f"checkpoint={run}")
        assert message == f"{adapter}: was changed: its sha256 is not the manifest's. Use another checkpoint"
        assert refused(tmp_path, f"checkpoint={run}/checkpoint-*") == message
        evaluate(tmp_path, f"checkpoint={run}/checkpoint-4", *SHORT)
    finally:
        adapter.write_bytes(original)
