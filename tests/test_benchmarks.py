"""Each benchmark runs alone, ends soon with --quick, and closes with one line of JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
from train_command import ROOT

pytestmark = pytest.mark.slow


def quick_run(script: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / script), "--quick"],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["benchmark"] == script.removesuffix(".py")
    assert figures["quick"] is True
    return figures


def test_every_benchmark_is_run_here() -> None:
    scripts = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    assert scripts == {"data_pipeline", "kills", "ttft"}


def test_data_pipeline() -> None:
    figures = quick_run("data_pipeline.py")
    assert all(model["examples_per_second"] > 0 for model in figures["models"])


def test_ttft() -> None:
    figures = quick_run("ttft.py")
    (model,) = figures["models"]
    ways = {row["way"]: row for row in model["ways"]}
    assert list(ways) == ["a", "b", "c", "d1", "d2", "d4", "dauto"]
    for row in ways.values():
        assert row["seconds_per_task"] > 0
        assert row["peak_gib"] > 0.1
    # All learn the same from the same examples; (a) is measured on fewer tasks.
    for way in set(ways) - {"a"}:
        assert ways[way]["loss_first"] == pytest.approx(ways["c"]["loss_first"], rel=1e-4)
        assert ways[way]["loss_last"] == pytest.approx(ways["c"]["loss_last"], rel=1e-2)
    assert model["ratios"]["c"]["a"] > 1
    assert [line["tasks"] for line in figures["growth"]] == [10, 40]


def test_kills() -> None:
    figures = quick_run("kills.py")
    assert figures["kills"] == 2
    assert figures["goal_met"]
