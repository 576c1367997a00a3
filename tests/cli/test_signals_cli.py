"""One SIGTERM or SIGINT to a program that starts up: it ends soon, with one line and the exit code of the signal."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.evaluate_command import evaluation_tasks, start_evaluate
from tests.support.train_command import QUICK, start_train

pytestmark = pytest.mark.slow

LONG = ["model=tiny", *evaluation_tasks(), "encoder=minimal", "tracking=none", "inference.max_new_tokens=1000",
        "inference.predictions_per_test=160"]  # fmt: skip
ADAPTING = [*LONG, "ttft=per_task", "ttft.max_steps=100000"]


def start(program: str, cwd: Path) -> subprocess.Popen[str]:
    if program == "train":
        return start_train(*QUICK, "training.max_steps=100000", cwd=cwd)
    if program == "evaluate":
        return start_evaluate(*LONG, cwd=cwd)
    return start_evaluate(*ADAPTING, f"ttft.workers={program}", cwd=cwd)


# Each program meets both signals, at times that together cover its start; tests/runs/common/test_signals.py has each
# signal in each situation.
CASES = [
    (program, after, (signal.SIGTERM, signal.SIGINT)[(row + column) % 2])
    for row, program in enumerate(["train", "evaluate", "local", "processes"])
    for column, after in enumerate([0.4, 1.5, 4.0, 8.0])
]


@pytest.mark.parametrize(("program", "after", "number"), CASES)
def test_it_ends_whenever_it_is_told_to(tmp_path: Path, program: str, after: float, number: signal.Signals) -> None:
    process = start(program, tmp_path)
    time.sleep(after)
    process.send_signal(number)
    begun = time.monotonic()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, out + err
    assert time.monotonic() - begun < 20
    assert "Traceback" not in out + err
    lines = [line for line in err.splitlines() if line and "finishing the current step" not in line]
    assert len(lines) == 1, err
    assert lines[0].startswith((f"{number.name}: stopped at once", "stopped"))
