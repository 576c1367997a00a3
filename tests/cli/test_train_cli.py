"""train.py as processes of its own: multiruns, signals, kills, tracking, sweeps."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import random
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from subprocess import Popen

import pytest

from arcft.checkpoints import find_checkpoints, last_checkpoint, read_run_yaml
from arcft.problems.arc.scoring.metrics import METRICS
from tests.support.offline_runs import read_runs
from tests.support.sweep_agent import run_job
from tests.support.train_command import (
    QUICK,
    QUIET,
    ROOT,
    assert_same_run,
    finish,
    history,
    run_train,
    start_train,
    tree,
)

pytestmark = pytest.mark.slow

TRACKED = [*(word for word in QUICK if word not in QUIET), "showcase=none"]
BAD_RANK = "lora.r=0: the rank must be at least 1; to train without an adapter use lora=none"


def only_folder(parent: Path) -> Path:
    (folder,) = parent.iterdir()
    return folder


def test_a_run_from_another_folder_is_recorded_there(tmp_path: Path) -> None:
    code, out, err = finish(start_train(*TRACKED, cwd=tmp_path))
    assert (code, err) == (0, "")
    folder = only_folder(tmp_path / "outputs" / "train")
    assert out.splitlines()[-1] == f"  python evaluate.py checkpoint={folder}"
    # Hydra's job log holds what the terminal showed, without the bars.
    log = (folder / "train.log").read_text()
    logged = [re.sub(r"^\[.*\]\[arcft\.console\]\[INFO\] - ", "", line).rstrip() for line in log.splitlines()]
    # Neither are W&B's own lines.
    elsewhere = re.compile(r"training \d+/\d+|\[INFO\]")
    shown = [line.rstrip() for line in out.splitlines() if not elsewhere.match(line)]
    assert [line for line in logged if line] == [line for line in shown if line]
    assert [path.name for path in tmp_path.iterdir()] == ["outputs"]

    (run,) = read_runs(folder)
    assert run.exit_code == 0
    assert run.run["job_type"] == "train"
    assert run.config == read_run_yaml(folder)["config"]
    for line in history(folder):
        charts = {name.removeprefix("eval_"): value for name, value in line.items() if name != "step"}
        place = "eval" if "eval_loss" in line else "train"
        entries = [entry for entry in run.history if f"{place}/loss" in entry and entry.get("step") == line["step"]]
        assert {name: entries[0][f"{place}/{name}"] for name in charts} == charts
    metrics = json.loads((folder / "metrics.json").read_text())
    table = run.table("tasks")
    assert table["columns"] == ["task", *METRICS]
    assert sorted(row[0] for row in table["data"]) == sorted(read_run_yaml(folder)["tasks"]["held_out"])
    assert run.picture("preview").read_bytes() == (folder / "preview.png").read_bytes()
    assert run.summary["final/eval_loss"] == metrics["eval_loss"]
    assert run.summary["best_step"] == metrics["best_step"]
    assert f"W&B: wandb sync {run.folder}" in out


def test_the_other_jobs_of_a_multirun_go_on(tmp_path: Path) -> None:
    code, out, err = finish(start_train("-m", "lora.r=1,0,2", *TRACKED, cwd=tmp_path))
    assert code == 1
    assert err == f"error: job 1: {BAD_RANK}\n"
    sweep = only_folder(tmp_path / "multirun" / "train")
    for job, rank in (("0", 1), ("2", 2)):
        (run,) = read_runs(sweep / job)
        assert (run.config["lora"]["r"], run.exit_code) == (rank, 0)
        assert last_checkpoint(sweep / job).name == "checkpoint-6"
        assert f"  python evaluate.py checkpoint={sweep / job}" in out.splitlines()
    assert not (sweep / "1").exists()
    ids_of_runs = {read_runs(sweep / job)[0].run["run_id"] for job in ("0", "2")}
    assert len(ids_of_runs) == 2


def test_the_other_jobs_go_on_under_joblib(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    code, _, err = finish(start_train("-m", "lora.r=1,0,2,-3", *launcher, *QUICK, cwd=tmp_path))
    assert code == 1
    # Where a machine is busy, joblib warns that a worker of its own was idle for too long.
    lines = [line for line in err.splitlines() if "A worker stopped while" not in line and line != "  warnings.warn("]
    assert sorted(lines) == [f"error: job 1: {BAD_RANK}", f"error: job 3: {BAD_RANK.replace('0', '-3', 1)}"]
    sweep = only_folder(tmp_path / "multirun" / "train")
    assert [last_checkpoint(sweep / job).name for job in ("0", "2")] == ["checkpoint-6"] * 2
    alone = tmp_path / "alone"
    assert run_train(alone, "lora.r=2", *QUICK) == 0
    assert history(sweep / "2") == history(alone)


def test_tasks_are_adapted_to_by_launches_of_their_own(tmp_path: Path) -> None:
    start = tmp_path / "start"
    assert run_train(start, *QUICK) == 0
    tasks = "data.task_ids=['007bbfb7'],['00d62c1b']"
    steps = ["training.max_steps=2", "training.max_seq_length=2048", "training.per_device_train_batch_size=1"]
    arguments = ["-m", "data=leave_one_out", tasks, "lora.start=start", *steps, *QUIET]
    code, _, err = finish(start_train(*arguments, cwd=tmp_path))
    assert (code, err) == (0, "")
    sweep = only_folder(tmp_path / "multirun" / "train")
    adapted = [read_run_yaml(sweep / job)["tasks"]["adapted_to"] for job in ("0", "1")]
    assert adapted == [["007bbfb7"], ["00d62c1b"]]
    assert read_run_yaml(sweep / "0")["config"]["lora"]["start"] == str(start)
    adapters = {(last_checkpoint(sweep / job) / "adapter_model.safetensors").read_bytes() for job in ("0", "1")}
    assert len(adapters) == 2


# Stopping


LONG = [
    *QUICK,
    "training.max_steps=60",
    "training.logging_steps=7",
    "training.eval_steps=25",
    "training.generation_tasks=1",
]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    assert run_train(folder, *LONG, "training.save_steps=1") == 0
    return folder


def wait_for(process: Popen[str], folder: Path, steps: int) -> None:
    """Until a checkpoint of at least `steps` steps is complete, or the process has ended."""
    for _ in range(6000):
        found = find_checkpoints(folder)
        if process.poll() is not None or (found and int(found[-1].name.partition("-")[2]) >= steps):
            return
        time.sleep(0.02)
    raise AssertionError("no checkpoint within two minutes")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_in_good_order(undisturbed: Path, tmp_path: Path, number: signal.Signals) -> None:
    process = start_train(*LONG, "training.save_steps=5", f"hydra.run.dir={tmp_path / 'run'}", cwd=tmp_path)
    wait_for(process, tmp_path / "run", 5)
    process.send_signal(number)
    code, _, err = finish(process)
    assert code == 128 + number
    step = int(last_checkpoint(tmp_path / "run").name.partition("-")[2])
    assert step < 60
    assert err.splitlines() == [
        "",
        f"{number.name}: finishing the current step and saving; send it again to stop at once",
        f"stopped at step {step} of 60 ({number.name}) and saved; resume with: "
        f"python train.py resume={tmp_path / 'run'}",
    ]
    given = {signal.SIGTERM: "run/", signal.SIGINT: str(tmp_path / "run")}[number]
    code, out, err = finish(start_train(f"resume={given}", cwd=tmp_path))
    assert (code, err) == (0, "")
    assert f"resuming from {tmp_path / 'run' / f'checkpoint-{step}'}" in out
    assert_same_run(tmp_path / "run", undisturbed)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_multirun_is_stopped_as_a_whole(tmp_path: Path) -> None:
    arguments = ["-m", "lora.r=1,2", *LONG, "training.save_steps=5", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    process = start_train(*arguments, cwd=tmp_path)
    wait_for(process, tmp_path / "sweep" / "0", 5)
    process.send_signal(signal.SIGTERM)
    code, _, err = finish(process)
    assert code == 128 + signal.SIGTERM
    assert err.splitlines()[-1].endswith(f"resume with: python train.py resume={tmp_path / 'sweep' / '0'}")
    assert not (tmp_path / "sweep" / "1" / "run.yaml").exists()


def test_a_run_survives_being_killed_at_any_moment(undisturbed: Path, tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(10**6)
    moments = random.Random(seed)
    folder = tmp_path / "run"
    # A checkpoint a step: most of the time goes into saving.
    start = [*LONG, "training.save_steps=1", f"hydra.run.dir={folder}"]
    reached = []
    for attempt in range(4):
        process = start_train(
            *(start if attempt == 0 or not (folder / "run.yaml").exists() else ["resume=run"]), cwd=tmp_path
        )
        wait_for(process, folder, (reached[-1] if reached else 0) + moments.randrange(1, 12))
        time.sleep(moments.random() * 0.2)
        process.kill()
        code, _, _ = finish(process)
        assert code in (-signal.SIGKILL, 0), f"seed {seed}"
        reached.append(int(last_checkpoint(folder).name.partition("-")[2]))
    assert reached == sorted(reached), f"seed {seed}"
    code, _, err = finish(start_train("resume=run", cwd=tmp_path))
    assert (code, err) == (0, ""), f"seed {seed}"
    assert_same_run(folder, undisturbed)
    # Nothing half-written stays behind.
    assert not [name for name in tree(folder) if "partial" in name or "replaced" in name or "removed" in name]


def test_a_run_killed_while_it_is_starting_can_be_started_again(undisturbed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = start_train(*LONG, "training.save_steps=1", f"hydra.run.dir={folder}", cwd=tmp_path)
    while not (folder / "run.yaml").exists() and process.poll() is None:
        time.sleep(0.001)
    process.kill()
    finish(process)
    code, _, err = finish(start_train("resume=run", cwd=tmp_path))
    assert (code, err) == (0, "")
    assert_same_run(folder, undisturbed)


# What is seen


def test_nothing_is_said_that_is_not_ours(tmp_path: Path) -> None:
    whole = [*QUICK, "lora=none", "training.num_workers=1", "training.gradient_checkpointing=true"]
    process = start_train(*whole, f"hydra.run.dir={tmp_path / 'whole'}", cwd=tmp_path, TOKENIZERS_PARALLELISM="")
    assert finish(process)[::2] == (0, "")
    model = [f"model.path={tmp_path / 'whole' / 'checkpoint-6'}", "model.init=pretrained", "model.tokenizer=null"]
    process = start_train(*QUICK, *model, "training.dtype=bfloat16", cwd=tmp_path, TOKENIZERS_PARALLELISM="")
    code, out, err = finish(process)
    # A large model takes its time to load, and transformers shows how far it is.
    assert (code, re.sub(r"\n?Loading weights:[^\n]*\n?", "", err)) == (0, "")
    assert "bfloat16 on cpu" in out


def test_the_bar_says_what_is_being_done(tmp_path: Path) -> None:
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    arguments = [*QUICK, "inference.max_new_tokens=100", f"hydra.run.dir={tmp_path / 'run'}"]
    command = [sys.executable, str(ROOT / "train.py"), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TERM": "xterm-256color"}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=follower)
    os.close(follower)
    shown = b""
    # The end of a terminal whose program has gone is an error.
    with contextlib.suppress(OSError):
        while part := os.read(leader, 65536):
            shown += part
    os.close(leader)
    assert process.wait() == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert re.search(r"training .* 3/6 .* predicting 2/2 held-out tasks", text)
    assert re.search(r"training .* 6/6 .* loss \d\.\d+  lr", text)


# Sweeps


def test_the_sweep_file_runs_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    small = [word for word in TRACKED if not word.startswith("data.task_ids")] + ["data.limit=10"]
    parameters = {"lora.r": 4, "training.seed": 1} | dict(word.split("=", 1) for word in small)
    sweep_file = ROOT / "sweeps" / "lora_rank.yaml"
    assert (
        run_job(sweep_file, parameters, folder=tmp_path, monkeypatch=monkeypatch, program=str(ROOT / "train.py")) == 0
    )
    folder = only_folder(tmp_path / "outputs" / "train")
    (run,) = read_runs(folder)
    assert (run.config["lora"]["r"], run.config["training"]["seed"], run.exit_code) == (4, 1, 0)
    assert run.run["sweep_id"] == "offline"
    assert run.run["run_id"] == "job1"
    assert run.summary["eval/correct_pixels"] == history(folder)[-1]["eval_correct_pixels"]


# Refused before anything is begun


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["+lora.rank=3"], "lora.rank: there is no such key; did you mean lora.r?"),
        (["lora.r=0"], BAD_RANK),
        (["data.task_ids=[5117e062]"], "data.task_ids[0]=5.117e+65: expected text, not float; YAML read the id as"),
        (["model=local", "model.path=/no/model"], "model.path=/no/model: there is no such file or folder"),
    ],
)
def test_what_is_wrong_is_one_message(tmp_path: Path, arguments: list[str], message: str) -> None:
    code, _, err = finish(start_train(*arguments, cwd=tmp_path))
    assert code == 1
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
