"""The sweep files, expanded into command lines by wandb's own agent."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from arcft.config.run import TrainConfig
from arcft.config.schema import known_keys
from arcft.problems.arc.kind import ArcKind
from tests.support.paths import ROOT
from tests.support.sweep_agent import grid, run_job

SWEEPS = sorted((ROOT / "sweeps").glob("*.yaml"))

RECORDER = """
import json, sys
from tests.support.paths import ROOT
json.dump(sys.argv, open("argv.json", "w"))
"""


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program that writes its command line to argv.json, and this Python as the agent's `python`."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    program = tmp_path / "recorder.py"
    program.write_text(RECORDER, encoding="utf-8")
    return program


def test_there_is_a_sweep() -> None:
    assert "lora_rank" in [path.stem for path in SWEEPS]


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_a_sweep_names_what_exists(path: Path) -> None:
    sweep = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert (ROOT / sweep["program"]).is_file()
    assert sweep["metric"]["goal"] in ("maximize", "minimize")
    assert sweep["metric"]["name"].removeprefix("eval/") in (*ArcKind().metrics.best, "loss")
    assert set(sweep["parameters"]) <= set(known_keys(TrainConfig))


def test_the_rank_sweep_crosses_ranks_and_seeds() -> None:
    sweep = yaml.safe_load((ROOT / "sweeps" / "lora_rank.yaml").read_text(encoding="utf-8"))
    assert grid(sweep) == [{"lora.r": rank, "training.seed": seed} for rank in (16, 64, 256) for seed in (0, 1, 2)]


def test_the_agent_writes_hydra_overrides(recorded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = recorded.parent
    sweep_file = ROOT / "sweeps" / "lora_rank.yaml"
    exit_code = run_job(
        sweep_file,
        {"lora.r": 64, "training.seed": 1, "lora.alpha": "${lora.r}"},
        folder=folder,
        monkeypatch=monkeypatch,
        program=recorded.name,
    )
    assert exit_code == 0
    argv = json.loads((folder / "argv.json").read_text(encoding="utf-8"))
    assert argv == ["recorder.py", "lora.r=64", "training.seed=1", "lora.alpha=${lora.r}", "showcase=none"]
    overrides = OverridesParser.create().parse_overrides(argv[1:])
    assert [(override.key_or_group, override.value()) for override in overrides] == [
        ("lora.r", 64),
        ("training.seed", 1),
        ("lora.alpha", "${lora.r}"),
        ("showcase", "none"),
    ]
