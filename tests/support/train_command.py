"""The command of train.py run in this process or in one of its own, on few, small, real ARC tasks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from arcft.checkpoints import last_checkpoint, read_checkpoint
from arcft.cli.train import main
from tests.support.paths import ARCHITECTURES, ROOT

# Ten small tasks of ARC-1's training set, at most 141 tokens in the minimal encoding.
TASK_IDS = [
    "25d8a9c8",
    "25ff71a9",
    "3c9b0459",
    "5582e5ca",
    "6150a2bd",
    "74dd1130",
    "a85d4709",
    "d037b0a7",
    "d631b094",
    "e9afcf9a",
]
# What model=tiny recommends for random weights, whatever it recommends for those that it may come with.
RANDOM_WEIGHTS = [
    "model.init=random",
    "model.recommended.training.learning_rate=3e-3",
    "model.recommended.data.max_tokens=640",
    "model.recommended.training.loss_on=from_second_output",
    "model.train_modules=[embed_tokens,lm_head,input_layernorm,post_attention_layernorm,norm]",
]
# Two layers of 32: a step takes a hundredth of a second.
SMALL_MODEL = [f"model.path={ARCHITECTURES / 'qwen2'}", "model.tokenizer=bundled:tiny", *RANDOM_WEIGHTS]


def ids(*names: str) -> str:
    """The override that chooses tasks."""
    return f"data.task_ids=[{','.join(repr(name) for name in names)}]"


TEN_TASKS = [
    ids(*TASK_IDS),
    "data.held_out=2",
    "training.max_seq_length=256",
    "training.generation_tasks=2",
    "inference.predictions_per_test=2",
    "inference.max_new_tokens=24",
]
QUIET = ["tracking=none", "preview=false", "showcase=none"]
QUICK = [
    *SMALL_MODEL,
    *TEN_TASKS,
    *QUIET,
    "encoder=minimal",
    "training.max_steps=6",
    "training.loss_on=completion",
    "training.per_device_train_batch_size=2",
    "training.logging_steps=2",
    "training.eval_steps=3",
    "training.save_steps=4",
]


def run_train(folder: Path, *overrides: str) -> int:
    """Run the command in this process, with its results in `folder`; returns its exit code."""
    place = [] if any(word.startswith("resume=") for word in overrides) else [f"hydra.run.dir='{folder}'"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train.py", *overrides, *place])
        # The command sets it for Hydra, which must not count as the user's wish in what runs after it.
        patch.setenv("HYDRA_FULL_ERROR", "0")
        try:
            main()
        except SystemExit as end:
            return end.code if isinstance(end.code, int) else 1
    return 0


def start_train(*overrides: str, cwd: Path, **environment: str) -> subprocess.Popen[str]:
    """Start train.py as a process of its own, on one thread."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *overrides],
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Wait for the end; exit code, stdout, stderr."""
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def history(folder: Path) -> list[dict[str, Any]]:
    """The recorded values, without how long they took."""
    lines = map(json.loads, (folder / "history.jsonl").read_text(encoding="utf-8").splitlines())
    timing = ("eval_seconds", "tokens_per_second")
    return [{name: value for name, value in line.items() if name not in timing} for line in lines]


def recorded(folder: Path, name: str) -> list[float]:
    """One value's course."""
    return [line[name] for line in history(folder) if name in line]


def files_of(checkpoint: Path) -> dict[str, str]:
    """sha256 of every file of a verified checkpoint, but of what holds times."""
    files = read_checkpoint(checkpoint).manifest["files"]
    return {name: entry["sha256"] for name, entry in files.items() if name != "trainer_state.json"}


def assert_same_run(folder: Path, whole: Path) -> None:
    """Hold a run that was stopped to the one that was not: history, weights, optimizer, scores, all but times."""
    assert history(folder) == history(whole)
    last = last_checkpoint(whole).name
    mine, theirs = files_of(folder / last), files_of(whole / last)
    assert {name for name in mine if mine[name] != theirs[name]} <= {"run.yaml"}
    assert mine.keys() == theirs.keys()
    assert metrics(folder) == metrics(whole)


def metrics(folder: Path) -> dict[str, Any]:
    """metrics.json without times and memory."""
    content = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    measured = ("seconds", "tokens_per_second", "peak_bytes")
    content["costs"] = {name: value for name, value in content["costs"].items() if name not in measured}
    return content


def tree(folder: Path) -> set[str]:
    """Every file below `folder`."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
