"""An evaluation that adapts, killed five times at random moments and resumed, at times with worker processes, comes to
the same end."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.support.train_command import ROOT


@pytest.mark.slow
def test_five_kills_lose_nothing_and_repeat_nothing() -> None:
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "benchmarks" / "kills.py"),
            *["--kills", "5", "--seed", "5", "--workers", "local", "processes"],
        ],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    count = json.loads(done.stdout.splitlines()[-1])
    assert count["kills"] == 5
    assert count["runs"] >= 1
    assert (count["lost"], count["repeated"], count["differing"]) == ([], [], [])
    assert set(count["starts"]) <= {"local", "processes"}
    # One slot in each of two workers at most: a kill can't have had more than two tasks in hand.
    assert count["kills_in_hand"] <= count["begun_again"] <= 2 * count["kills_in_hand"]
