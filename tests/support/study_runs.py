"""Run folders with simulated results, as train.py and evaluate.py write them, and studies with a known truth."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from arcft.checkpoints import write_run_yaml
from arcft.files import write_json
from arcft.problems.arc.scoring.metrics import METRICS
from tests.support.paths import ROOT

BASE: dict[str, Any] = yaml.safe_load((ROOT / "tests" / "support" / "study_config.yaml").read_text(encoding="utf-8"))
"""The config of a small training run."""


def task_ids(number: int) -> list[str]:
    return [f"{index:08x}" for index in range(number)]


def write_train_run(
    folder: Path,
    changes: Mapping[str, Any],
    solved: Sequence[float],
    *,
    names: Sequence[str] | None = None,
    loss: float = 1.0,
    candidates: Sequence[float] | None = None,
) -> Path:
    """A finished run: `changes` to the config by dotted key; vote_2 and pass_n of each task."""
    folder.mkdir(parents=True, exist_ok=True)
    names = list(names or task_ids(len(solved)))
    tasks = {"train": names, "held_out": names}
    write_run_yaml(folder, {"arcft": "0.1.0", "job": "train", "ranks": 1, "config": config(changes), "tasks": tasks})
    covered = solved if candidates is None else candidates
    rows = {
        name: dict.fromkeys(METRICS, 0.0)
        | {"vote_2": float(one), "pass_n": float(two), "correct_pixels": (1 + one) / 2}
        for name, one, two in zip(names, solved, covered, strict=True)
    }
    means = {metric: float(np.mean([row[metric] for row in rows.values()])) for metric in METRICS}
    digits = {
        metric: {name: str(int(row[metric] == 1)) for name, row in rows.items()} for metric in ("vote_2", "pass_n")
    }
    costs = {"seconds": 60.0, "tokens": 1e5, "tokens_per_second": 2e3, "peak_bytes": 2**30, "trainable_parameters": 1e6}
    content = {"step": 6, "best_step": 6, "loss": loss, "eval_loss": loss + 0.1, "metrics": means, "tasks": rows}
    write_json(folder / "metrics.json", content | {"by_test": digits, "costs": costs})
    return folder


def config(changes: Mapping[str, Any]) -> dict[str, Any]:
    """BASE with `changes`, by dotted key."""
    values: dict[str, Any] = json.loads(json.dumps(BASE))
    for key, value in changes.items():
        *groups, name = key.split(".")
        target = values
        for group in groups:
            target = target[group]
        assert name in target
        target[name] = value
    return values


def simulate(
    rng: np.random.Generator,
    *,
    studies: int,
    settings: int,
    seeds: int,
    tasks: int,
    rate: float = 0.2,
    noise: float = 0.03,
    interaction: float = 0.03,
    gain: float = 0.0,
) -> NDArray[np.float64]:
    """Solved or not, [studies, settings, seeds, tasks], of tasks that are mostly very easy or very hard.

    The truth is `rate` for the first setting and `rate + gain` for the others. A run is better or worse than its
    setting by `noise` (standard deviation), and a setting suits a task more or less by `interaction`; both matter where
    a task is neither easy nor hard.
    """
    spread = 0.5
    chance = rng.beta(rate * spread, (1 - rate) * spread, (studies, 1, tasks))
    weight = chance * (1 - chance) / (rate * (1 - rate) * spread / (1 + spread))
    gains = np.full((settings, 1), gain)
    gains[0] = 0
    shift = gains + interaction * rng.standard_normal((studies, settings, tasks))
    runs = noise * rng.standard_normal((studies, settings, seeds, 1))
    probability = chance[:, :, None] + weight[:, :, None] * (shift[:, :, None] + runs)
    return (rng.random(probability.shape) < probability).astype(np.float64)
