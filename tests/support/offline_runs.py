"""Reads W&B runs back from disk with wandb's own reader."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class OfflineRun:
    """What one run's log holds."""

    folder: Path
    run: dict[str, Any] = field(default_factory=dict)
    """Name, job type, project, tags, ... as they were when the run began."""

    history: list[dict[str, Any]] = field(default_factory=list)
    """The logged values, one entry a call, without wandb's own (those that begin with an underscore)."""

    metrics: list[dict[str, Any]] = field(default_factory=list)
    """How charts are drawn."""

    summary: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None

    @property
    def config(self) -> dict[str, Any]:
        return {name: value for name, value in self.run["config"]["update"].items() if name != "_wandb"}

    def table(self, name: str) -> dict[str, Any]:
        """`columns` and `data` of a logged table."""
        (path,) = [entry[f"{name}.path"] for entry in self.history if f"{name}.path" in entry]
        return json.loads((self.folder / "files" / path).read_text(encoding="utf-8"))

    def picture(self, name: str) -> Path:
        (path,) = [entry[f"{name}.path"] for entry in self.history if f"{name}.path" in entry]
        return self.folder / "files" / path


def read_runs(folder: Path) -> list[OfflineRun]:
    """Every run that was recorded in `folder`, in the order in which they began."""
    runs = [_read_run(path.parent) for path in folder.glob("wandb/*run-*/run-*.wandb")]
    return sorted(runs, key=lambda run: run.run["start_time"])


def _read_run(folder: Path) -> OfflineRun:
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    run = OfflineRun(folder)
    for record in map(json.loads, lines):
        match record["type"]:
            case "run":
                run.run = record["run"]
            case "history":
                item = record["history"]["item"]
                run.history.append({name: value for name, value in item.items() if not name.startswith("_")})
            case "metric":
                run.metrics.append(record["metric"])
            case "summary":
                run.summary |= record["summary"]["update"]
            case "exit":
                run.exit_code = record["exit"]["exit_code"]
    return run
