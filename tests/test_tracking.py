"""Runs are recorded offline and read back from disk."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from arcft.config.tracking import NoTrackingConfig, WandbConfig
from arcft.tracking import NoTracker, start_tracker
from tests.support.offline_runs import read_runs
from tests.support.paths import ROOT

OFFLINE = WandbConfig(mode="offline", project="arcft-tests")

START = """
import sys
from pathlib import Path
from arcft.config.tracking import NoTrackingConfig, WandbConfig
from arcft.tracking import start_tracker

name, mode, folder = sys.argv[1:]
config = NoTrackingConfig() if name == "none" else WandbConfig(mode=mode)
tracker = start_tracker(config, run_config={}, folder=Path(folder), job="train", name="first")
tracker.log({"train/loss": 1.5}, 1)
tracker.table("tasks", ["task"], [["007bbfb7"]])
tracker.picture("grids", Path("no such file")) if name == "none" else None
tracker.summary({"steps": 1})
tracker.finish(0)
"""


def run_apart(code: str, *arguments: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process of its own, as a user who has never heard of W&B."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    # `tests/` is not the place of the package: a checkout's root is, installed or not.
    paths = {"HOME": str(home), "NETRC": str(home / ".netrc"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=clean | paths | environment, cwd=home, capture_output=True, text=True)


def test_a_run_is_read_back_whole(tmp_path: Path) -> None:
    run_config = {
        "lora": {"r": 16, "dropout": 0.1, "start": None},
        "data": {"task_ids": ["5117e062", "00576224"]},
        "preview": True,
    }
    picture = tmp_path / "grids.png"
    colors = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    Image.fromarray(colors).save(picture)
    config = WandbConfig(mode="offline", project="arcft-tests", group="ranks", tags=["seed 0"])

    tracker = start_tracker(config, run_config=run_config, folder=tmp_path / "run", job="train", name="first")
    tracker.log({"train/loss": 2.5, "train/learning_rate": 1e-4}, 10)
    tracker.log({"eval/correct_pixels": 0.25}, 10)
    tracker.log({"train/loss": 1.25}, 20)
    tracker.log({"eval/correct_pixels": 0.5}, 5)
    tracker.table("eval/tasks", ["task", "solved", "logprob"], [["007bbfb7", True, -0.5], ["5117e062", False, None]])
    tracker.picture("eval/grids", picture)
    tracker.summary({"best_step": 20})
    tracker.finish(0)

    (run,) = read_runs(tmp_path / "run")
    assert run.config == run_config
    assert {name: run.run[name] for name in ("display_name", "job_type", "project", "run_group", "tags")} == {
        "display_name": "first",
        "job_type": "train",
        "project": "arcft-tests",
        "run_group": "ranks",
        "tags": ["seed 0"],
    }
    assert run.history[:4] == [
        {"step": 10, "train/loss": 2.5, "train/learning_rate": 1e-4},
        {"step": 10, "eval/correct_pixels": 0.25},
        {"step": 20, "train/loss": 1.25},
        {"step": 5, "eval/correct_pixels": 0.5},
    ]
    assert [metric["step_metric"] for metric in run.metrics if metric.get("glob_name") == "*"] == ["step"]
    assert run.table("eval/tasks") == {
        "columns": ["task", "solved", "logprob"],
        "data": [["007bbfb7", True, -0.5], ["5117e062", False, None]],
    }
    np.testing.assert_array_equal(np.asarray(Image.open(run.picture("eval/grids"))), colors)
    assert run.summary["best_step"] == 20
    assert run.exit_code == 0
    assert tracker.where == f"wandb sync {run.folder}"


def test_a_failed_run_says_so(tmp_path: Path) -> None:
    tracker = start_tracker(OFFLINE, run_config={}, folder=tmp_path, job="train", name="failing")
    tracker.finish(1)
    (run,) = read_runs(tmp_path)
    assert run.exit_code == 1


@pytest.mark.parametrize("first_is_finished", [True, False], ids=["finished", "left open"])
def test_two_jobs_of_one_process_are_two_runs(tmp_path: Path, first_is_finished: bool) -> None:
    first = start_tracker(OFFLINE, run_config={"lora": {"r": 16}}, folder=tmp_path / "0", job="train", name="0")
    first.log({"train/loss": 2.0}, 1)
    if first_is_finished:
        first.finish(1)
    second = start_tracker(OFFLINE, run_config={"lora": {"r": 64}}, folder=tmp_path / "1", job="train", name="1")
    second.log({"train/loss": 3.0}, 1)
    second.finish(0)

    (run_0,), (run_1,) = read_runs(tmp_path / "0"), read_runs(tmp_path / "1")
    assert run_0.run["run_id"] != run_1.run["run_id"]
    assert (run_0.config, run_1.config) == ({"lora": {"r": 16}}, {"lora": {"r": 64}})
    assert run_0.history == [{"step": 1, "train/loss": 2.0}]
    assert run_1.history == [{"step": 1, "train/loss": 3.0}]
    assert run_0.exit_code == (1 if first_is_finished else 0)
    assert run_1.exit_code == 0


def test_without_tracking_wandb_is_not_even_imported(tmp_path: Path) -> None:
    code = START + "\nprint('wandb' in sys.modules, tracker.where == '', Path(folder).exists())"
    done = run_apart(code, "none", "null", str(tmp_path / "run"), home=tmp_path)
    assert done.stderr == ""
    assert done.stdout == "False True False\n"
    assert list(tmp_path.iterdir()) == []


def test_no_tracker_for_none(tmp_path: Path) -> None:
    config = NoTrackingConfig()
    assert isinstance(start_tracker(config, run_config={}, folder=tmp_path, job="train", name="first"), NoTracker)


def test_auto_without_a_key_is_offline_and_quiet(tmp_path: Path) -> None:
    done = run_apart(START, "wandb", "auto", str(tmp_path / "run"), home=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    (run,) = read_runs(tmp_path / "run")
    assert run.history[0] == {"step": 1, "train/loss": 1.5}
    assert run.folder.name.startswith("offline-run-")


@pytest.mark.parametrize(
    ("environment", "mode"),
    [
        ({}, "offline"),
        ({"WANDB_API_KEY": "a" * 40}, "online"),
        ({"WANDB_API_KEY": "a" * 40, "WANDB_MODE": "offline"}, "None"),
    ],
    ids=["no key", "key", "the environment decides"],
)
def test_what_auto_means(tmp_path: Path, environment: dict[str, str], mode: str) -> None:
    code = """
from arcft.config.tracking import NoTrackingConfig, WandbConfig
from arcft.tracking import _mode
from tests.support.paths import ROOT
print(_mode(WandbConfig(mode="auto")))
"""
    done = run_apart(code, home=tmp_path, WANDB_SILENT="true", **environment)
    assert done.stdout.splitlines() == [mode], done.stderr


def test_a_run_that_the_environment_disables_has_no_place(tmp_path: Path) -> None:
    code = START + "\nprint(repr(tracker.where))"
    done = run_apart(code, "wandb", "auto", str(tmp_path / "run"), home=tmp_path, WANDB_MODE="disabled")
    assert (done.stdout, done.stderr) == ("''\n", "")
    assert read_runs(tmp_path / "run") == []


@pytest.mark.parametrize(
    ("mode", "environment", "reason"),
    [
        ("online", {}, "No API key configured. Use `wandb login` to log in"),
        ("auto", {"WANDB_API_KEY": "short"}, "WANDB_API_KEY invalid: API key must have 40+ characters, has 5"),
    ],
    ids=["online without a key", "a broken key"],
)
def test_refusals_say_what_to_do(tmp_path: Path, mode: str, environment: dict[str, str], reason: str) -> None:
    done = run_apart(START, "wandb", mode, str(tmp_path / "run"), home=tmp_path, **environment)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"arcft.tracking.TrackingError: tracking.mode={mode}: W&B could not start a run: {reason}. "
        "To record on disk and send later use tracking.mode=offline; to record nothing, tracking=none"
    )


# A tracker never fails a job.


@pytest.mark.parametrize("home", ["/proc/nowhere", "/dev/null/home"])
def test_a_home_that_can_not_be_written_to_is_no_matter(tmp_path: Path, home: str) -> None:
    """wandb keeps tables there before it sends them; to root, only such a place is unwritable."""
    done = run_apart(START, "wandb", "auto", str(tmp_path / "run"), home=tmp_path, HOME=home)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    (run,) = read_runs(tmp_path / "run")
    assert run.table("tasks") == {"columns": ["task"], "data": [["007bbfb7"]]}


def test_a_folder_that_can_not_be_written_to_leaves_nothing_recorded(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = run_apart(START, "wandb", "auto", str(tmp_path / "file" / "run"), home=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(
        "note: W&B can't be started, so nothing is recorded there: [Errno 20] Not a directory"
    )
    assert done.stdout.endswith("to do without it: tracking=none\n")


@pytest.mark.parametrize("content", ["[[[ garbage", "[default]\nmode = sideways\n"])
def test_broken_settings_of_wandb_fail_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / ".config" / "wandb").mkdir(parents=True)
    (tmp_path / ".config" / "wandb" / "settings").write_text(content, encoding="utf-8")
    done = run_apart(START, "wandb", "auto", str(tmp_path / "run"), home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("mode", ["online", "auto"])
def test_without_a_network_it_is_recorded_offline(tmp_path: Path, mode: str) -> None:
    code = START.replace("name, mode", "import arcft.tracking\narcft.tracking.START_SECONDS = 2.0\nname, mode", 1)
    nowhere = {"WANDB_API_KEY": "a" * 40, "WANDB_BASE_URL": "http://localhost:9"}
    done = run_apart(code, "wandb", mode, str(tmp_path / "run"), home=tmp_path, **nowhere)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("note: W&B records on disk, because it could not be started online: ")
    (run,) = [run for run in read_runs(tmp_path / "run") if run.folder.name.startswith("offline-run-")]
    assert done.stdout.endswith(f"; send it later: wandb sync {run.folder}\n")
    assert run.history[0] == {"step": 1, "train/loss": 1.5}


@pytest.mark.parametrize("number", ["SIGSTOP", "SIGKILL"])
def test_a_process_of_wandb_that_hangs_or_dies_is_given_up(tmp_path: Path, number: str) -> None:
    setup, _, calls = START.partition("tracker.log")
    code = f"""
import os, signal, psutil
import arcft.tracking
arcft.tracking.FINISH_SECONDS = arcft.tracking.CALL_SECONDS = 1.0
{setup}
[service] = [child for child in psutil.Process().children() if "wandb" in child.name()]
os.kill(service.pid, signal.{number})
for _ in range(3):
    tracker.log({{"train/loss": 1.0}}, 2)
tracker.log{calls}
print("finished")
"""
    done = run_apart(code, "wandb", "offline", str(tmp_path / "run"), home=tmp_path)
    assert done.returncode == 0, done.stderr
    first, last = done.stdout.splitlines()
    assert first.startswith("note: W&B is given up: ")
    assert first.endswith(f"; what it has recorded stays in {tmp_path / 'run'}")
    assert last == "finished"
    assert "Traceback" not in done.stderr
