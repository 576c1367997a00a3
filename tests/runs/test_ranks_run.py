"""train.py as several processes: one run, one voice, and an end that all share."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from arcft.checkpoints import find_checkpoints, read_checkpoint, write_run_yaml
from arcft.config.schema import ConfigError
from arcft.runs.training.step_plan import plan_steps
from tests.support.paths import ROOT
from tests.support.small_training import training_config
from tests.support.train_command import QUICK, finish, history, recorded, run_train

LONG = [*QUICK, "training.max_steps=100000", "training.save_steps=20", "training.eval_steps=100000",
        "training.logging_steps=1"]  # fmt: skip


def start(cwd: Path, *words: str, program: str = "train.py", ranks: int = 2) -> subprocess.Popen[str]:
    return launch(cwd, [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks),
                        str(ROOT / program), *words])  # fmt: skip


def start_alone(cwd: Path, *words: str, second: dict[str, str] | None = None) -> list[subprocess.Popen[str]]:
    """Two ranks without a launcher that would end them; `second` is added to the environment of rank 1."""
    with socket.socket() as chosen:
        chosen.bind(("localhost", 0))
        port = str(chosen.getsockname()[1])
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    command = [sys.executable, str(ROOT / "train.py"), *words]
    return [
        launch(cwd, command, **{"RANK": rank, "LOCAL_RANK": rank} | common | more)
        for rank, more in (("0", {}), ("1", second or {}))
    ]


def launch(cwd: Path, command: list[str], **environment: str) -> subprocess.Popen[str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    variables = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path} | environment
    return subprocess.Popen(command, cwd=cwd, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_resumed_run_keeps_its_examples_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run_yaml(tmp_path, {"arcft": "1", "ranks": 4})
    config = training_config(per_device_train_batch_size=3, gradient_accumulation_steps=2)
    of_rank = {1: (3, 8), 2: (3, 4), 3: (2, 4), 4: (3, 2), 6: (2, 2), 8: (3, 1), 12: (2, 1), 24: (1, 1)}
    for count, (size, accumulation) in of_rank.items():
        monkeypatch.setenv("WORLD_SIZE", str(count))
        found = plan_steps(config, tmp_path)
        assert (found.started_with, found.examples) == (4, 24)
        own = found.of_rank(config)
        assert (own.per_device_train_batch_size, own.gradient_accumulation_steps) == (size, accumulation)
    monkeypatch.setenv("WORLD_SIZE", "5")
    with pytest.raises(ConfigError, match=r"24 examples, which 5 processes can.t .*; start 1, 2, 3, .*, 12 or 24 proc"):
        plan_steps(config, tmp_path)
    assert plan_steps(config, None).examples == 30
    monkeypatch.setenv("WORLD_SIZE", "2")
    write_run_yaml(tmp_path, {"arcft": "0.1.0"})
    assert plan_steps(config, tmp_path).started_with == 1


@pytest.mark.parametrize(("ranks", "examples"), [(1, 8), (3, 9), (8, 8), (16, 16)])
def test_any_number_of_ranks_can_share_a_step_of_auto(
    ranks: int, examples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    assert plan_steps(training_config(per_device_train_batch_size="auto"), None).examples == examples
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"training\.effective_batch_size=7"):
        plan_steps(training_config(per_device_train_batch_size="auto", effective_batch_size=7), None)


@pytest.mark.slow
def test_one_process_under_torchrun_is_one_without(tmp_path: Path) -> None:
    code, _, err = finish(start(tmp_path, *QUICK, "hydra.run.dir=run", ranks=1))
    assert code == 0, err
    assert run_train(tmp_path / "alone", *QUICK) == 0
    assert history(tmp_path / "run") == history(tmp_path / "alone")


def test_what_can_not_be_sharded_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["training.fsdp=full_shard", "model.quantization=nf4", "optimizer=muon", "training.dtype=float16"]
    assert run_train(tmp_path, *QUICK, *words) == 1
    error = capfd.readouterr().err
    assert "with model.quantization=nf4: packed weights can't be split" in error
    assert "with optimizer=muon: it needs whole matrices" in error
    assert "with training.dtype=float16: its loss scaling is not shared out" in error


def test_accelerate_on_the_cpu_is_not_taken_for_several_processes(tmp_path: Path) -> None:
    environment = {"ACCELERATE_USE_CPU": "True", "MASTER_PORT": "29500"}
    code, _, err = finish(launch(tmp_path, [sys.executable, str(ROOT / "train.py"), *QUICK], **environment))
    assert code == 1
    assert "accelerate launch --cpu starts a single process" in err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_two_processes_are_one_run_started_by_the_slurm_script(tmp_path: Path) -> None:
    """Slurm's two commands are replaced by ones that run on this machine; all else is as on a cluster."""
    torchrun = f'exec {sys.executable} -m torch.distributed.run "$@"'
    programs = {"srun": 'exec "$@"', "scontrol": "echo localhost", "torchrun": torchrun}
    for name, body in programs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    out_dir = tmp_path / "work"
    slurm = {"SLURM_JOB_NODELIST": "x", "SLURM_JOB_NUM_NODES": "1", "SLURM_GPUS_ON_NODE": "2", "SLURM_JOB_ID": "7",
             "RENDEZVOUS_PORT": "0", "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}  # fmt: skip
    words = [*QUICK, f"hydra.run.dir={out_dir}/two"]
    command = ["bash", str(ROOT / "docs" / "multi_gpu.sbatch"), *words]
    code, out, err = finish(launch(ROOT, command, **slurm))
    assert code == 0, err
    assert "rank 1" not in err
    assert out.count("training 6/6") == 1
    assert [path.name for path in out_dir.iterdir()] == ["two"]
    two = out_dir / "two"
    assert yaml.safe_load((two / "run.yaml").read_text())["ranks"] == 2
    assert run_train(tmp_path / "one", *QUICK, "training.gradient_accumulation_steps=2") == 0
    for name in ("loss", "eval_loss", "eval_correct_pixels", "tokens"):
        assert recorded(two, name) == pytest.approx(recorded(tmp_path / "one", name), abs=1e-5), name
    # A finished run predicts its held-out tasks once more, for the table of metrics.
    before = history(two)
    code, out, err = finish(start(tmp_path, f"resume={two}", "training.fsdp=full_shard"))
    assert code == 0, err
    assert "correct_pixels" in out or "held-out tasks" in out
    assert history(two) == before


@pytest.mark.slow
def test_a_killed_process_ends_the_run_which_another_number_resumes(tmp_path: Path) -> None:
    first, second = start_alone(tmp_path, *LONG, "hydra.run.dir=run")
    folder = tmp_path / "run"
    wait_for_steps(folder, 25)
    second.kill()
    code, _, err = finish(first)
    assert code == 1
    assert [line for line in err.splitlines() if "error" in line] == [
        "error: another of the 2 processes died, so the run stops; its checkpoints are complete. Resume with: "
        f"torchrun --nproc-per-node 2 train.py resume={folder}"
    ]
    assert "Traceback" not in err
    assert not [path for path in folder.iterdir() if "partial" in path.name]
    last = find_checkpoints(folder)[-1]
    step = read_checkpoint(last).step
    assert run_train(tmp_path, f"resume={folder}", "training.max_time=1s") == 0
    steps = [line["step"] for line in history(folder)]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) > step


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("os.kill(os.getpid(), 9)", "error: another of the 2 processes died before the first step"),
        ("raise MemoryError('the machine is full')", "rank 1: error: out of memory outside the training steps (the ma"),
    ],
    ids=["killed", "memory"],
)
def test_a_fault_while_a_model_is_loaded_is_one_line(fault: str, says: str, tmp_path: Path) -> None:
    faults = tmp_path / "faults"
    faults.mkdir()
    # When rank 1 loads a model: its parts have been imported by then.
    (faults / "sitecustomize.py").write_text(
        "import os, sys\n"
        "def hook(event, arguments):\n"
        f"    if event == 'open' and str(arguments[0]).endswith('qwen2/config.json'):\n        {fault}\n"
        "sys.addaudithook(hook)\n"
    )
    processes = start_alone(tmp_path, *QUICK, "hydra.run.dir=run", second={"PYTHONPATH": f"{faults}{os.pathsep}{ROOT}"})
    found = [finish(process) for process in processes]
    assert found[0][0] == 1
    assert found[1][0] in (1, -9)
    err = found[0][2] + found[1][2]
    assert err.count("error:") == 1
    assert says in err
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_signal_stops_all_after_one_step_and_errors_are_said_once(tmp_path: Path) -> None:
    process = start(tmp_path, *LONG, "hydra.run.dir=run")
    wait_for_steps(tmp_path / "run", 5)
    process.send_signal(signal.SIGTERM)
    _, _, err = finish(process)
    assert err.count("SIGTERM: finishing the current step") == 1
    assert err.count("stopped at step") == 1
    step = history(tmp_path / "run")[-1]["step"]
    assert find_checkpoints(tmp_path / "run")[-1].name == f"checkpoint-{step}"
    for program, words, message in (
        ("train.py", [*QUICK, "lora.r=0", "hydra.run.dir=new"], "error: lora.r=0: the rank must be at least 1"),
        ("evaluate.py", ["model=tiny"], "error: evaluate runs in one process but was started as 2"),
    ):
        code, _, err = finish(start(tmp_path, *words, program=program))
        assert code == 1
        assert err.count(message) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.slow
def test_a_full_disk_ends_all_with_one_error(tmp_path: Path) -> None:
    # A limit on the size of files fails like a full disk, in the middle of a write.
    words = shlex.join([sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(ROOT / "train.py"),
                        *QUICK, "hydra.run.dir=run"])  # fmt: skip
    code, _, err = finish(launch(tmp_path, ["bash", "-c", f"ulimit -f 60; {words}"]))
    assert code != 0
    assert err.count("checkpoint-3: can't be written") == 1
    assert "another of the 2 processes" not in err
    assert not find_checkpoints(tmp_path / "run")
    assert not [path for path in (tmp_path / "run").iterdir() if "partial" in path.name]


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("fsdp", ["null", "full_shard", "shard_grad_op"])
def test_two_gpus_train_like_one(tmp_path: Path, fsdp: str) -> None:
    words = [*QUICK, "training.dtype=float32"]
    code, _, err = finish(start(tmp_path, *words, f"training.fsdp={fsdp}", f"hydra.run.dir={tmp_path}/two"))
    assert code == 0, err
    assert run_train(tmp_path / "one", *words, "training.gradient_accumulation_steps=2") == 0
    for name in ("loss", "eval_loss"):
        assert recorded(tmp_path / "two", name) == pytest.approx(recorded(tmp_path / "one", name), rel=1e-3), name


def wait_for_steps(folder: Path, steps: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if (folder / "history.jsonl").is_file() and len((folder / "history.jsonl").read_text().splitlines()) > steps:
            return
        time.sleep(0.1)
    raise TimeoutError(folder)
