"""Runs the jobs of a W&B sweep file as `wandb agent` does, without a server: the server's part, choosing the
parameters of the next run, is done here for a grid; expanding and starting the command is wandb's own code."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import yaml
from wandb.wandb_agent import Agent


def grid(sweep: dict[str, Any]) -> list[dict[str, Any]]:
    """The parameters of each run of a grid sweep."""
    assert sweep["method"] == "grid"
    parameters = sweep["parameters"]
    choices = [spec["values"] if "values" in spec else [spec["value"]] for spec in parameters.values()]
    return [dict(zip(parameters, chosen, strict=True)) for chosen in itertools.product(*choices)]


def run_job(
    sweep_file: Path, parameters: dict[str, Any], *, folder: Path, monkeypatch: pytest.MonkeyPatch, program: str = ""
) -> int:
    """Run one job of the sweep in `folder` and return its exit code; `program` runs in place of the sweep's own."""
    sweep = yaml.safe_load(sweep_file.read_text(encoding="utf-8"))
    monkeypatch.chdir(folder)
    # The agent leaves these in the environment; monkeypatch takes them away again.
    for name in ("WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("WANDB_SWEEP_ID", "offline")
    # Agent's constructor asks the server; a job needs only these.
    agent = object.__new__(Agent)
    agent._sweep_command = sweep["command"]
    agent._function = None
    agent._in_jupyter = False
    agent._forward_signals = False
    agent._run_processes = {}
    agent._command_run(
        {
            "run_id": "job1",
            "program": program or sweep["program"],
            "args": {name: {"value": value} for name, value in parameters.items()},
        }
    )
    return int(agent._run_processes["job1"].wait())
