"""Runs on a real Slurm of one node (scripts/slurm_for_tests.sh): the batch script of the docs, and Hydra's submitit."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from arcft.checkpoints import find_checkpoints
from tests.support.paths import ROOT
from tests.support.train_command import QUICK, finish, history, start_train

pytestmark = pytest.mark.slow

SCRIPT = ROOT / "scripts" / "slurm_for_tests.sh"
BATCH = ["--nodes=1", "--gpus-per-node=2", "--cpus-per-task=2", str(ROOT / "docs" / "multi_gpu.sbatch")]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a process that uses the Slurm."""
    folder = tmp_path_factory.mktemp("slurm")
    started = subprocess.run([SCRIPT, "start", folder], capture_output=True, text=True, timeout=240)
    if started.returncode:
        pytest.skip(started.stderr.strip())
    name, _, value = started.stdout.strip().removeprefix("export ").partition("=")
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {name: value, "PATH": programs, "OMP_NUM_THREADS": "1"}
    yield environment
    wait(lambda: not subprocess.run(["squeue", "-h"], env=environment, capture_output=True, text=True).stdout)
    subprocess.run([SCRIPT, "stop", folder], check=True, timeout=30)


def submit(environment: dict[str, str], run: Path, *words: str) -> tuple[str, Path]:
    """The batch script of the docs, from the checkout as it asks; the job's number, and its output."""
    output = run.with_suffix(".txt")
    command = ["sbatch", "--parsable", f"--output={output}", *BATCH, *words, f"hydra.run.dir='{run}'"]
    job = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True)
    return job.stdout.strip(), output


def wait(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 150
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.3)


def queued(environment: dict[str, str], job: str) -> str:
    return subprocess.run(["squeue", "-h", "-j", job], env=environment, capture_output=True, text=True).stdout


def test_the_batch_script_trains_on_all_gpus_and_is_stopped_by_a_signal(tmp_path: Path, slurm: dict[str, str]) -> None:
    run = tmp_path / "run"
    job, output = submit(slurm, run, *QUICK, "training.max_steps=100000", "training.logging_steps=1")
    wait(lambda: (run / "history.jsonl").is_file() or not queued(slurm, job))
    subprocess.run(["scancel", "--signal=TERM", job], env=slurm, check=True)
    wait(lambda: not queued(slurm, job))
    text = output.read_text()
    assert "finishing the current step and saving" in text, text
    # torchrun prints a traceback of its own.
    assert "error:" not in text.partition("finishing the current step")[2].partition("Traceback")[0]
    assert f"torchrun --nproc-per-node 2 train.py resume={run}" in text
    assert find_checkpoints(run), text
    assert yaml.safe_load((run / "run.yaml").read_text())["ranks"] == 2


def test_submitit_starts_each_job_of_a_multirun_as_several_processes(tmp_path: Path, slurm: dict[str, str]) -> None:
    words = ["hydra/launcher=submitit_slurm", "hydra.launcher.tasks_per_node=2", "hydra.launcher.timeout_min=10",
             "hydra.sweep.dir=sweep", "training.seed=0,1"]  # fmt: skip
    code, _, err = finish(start_train("-m", *QUICK, *words, cwd=tmp_path, **slurm))
    assert code == 0, err
    for job in ("0", "1"):
        folder = tmp_path / "sweep" / job
        assert yaml.safe_load((folder / "run.yaml").read_text())["ranks"] == 2
        assert history(folder)[-1]["step"] == 6


def test_the_error_of_another_rank_is_the_error_of_its_job(tmp_path: Path, slurm: dict[str, str]) -> None:
    # When rank 1 loads the model.
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "def hook(event, arguments):\n"
        "    if event == 'open' and str(arguments[0]).endswith('qwen2/config.json'):\n"
        "        raise MemoryError('the machine is full')\n"
        "if os.environ.get('SLURM_PROCID') == '1':\n"
        "    sys.addaudithook(hook)\n"
    )
    words = ["hydra/launcher=submitit_slurm", "hydra.launcher.tasks_per_node=2", "hydra.launcher.timeout_min=10",
             "hydra.sweep.dir=sweep", "training.seed=0"]  # fmt: skip
    path = os.pathsep.join(filter(None, [str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH")]))
    code, _, err = finish(start_train("-m", *QUICK, *words, cwd=tmp_path, **(slurm | {"PYTHONPATH": path})))
    assert code == 1
    assert "error: job 0: rank 1: out of memory outside the training steps (the machine is full)" in err, err
