"""Each benchmark runs alone, ends soon with --quick, and closes with one line of JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from train_command import ROOT

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("script", sorted(path.name for path in (ROOT / "benchmarks").glob("*.py")))
def test_a_quick_run_ends_with_its_figures(script: str) -> None:
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
    assert all(model["examples_per_second"] > 0 for model in figures["models"])
