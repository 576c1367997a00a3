"""An engine without a model, that does as a unit's name says, for the tests of what happens between processes."""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from arcft.errors import ArcftError
from arcft.problems.arc.task import Pair, Task
from arcft.scoring.predictions import Prediction
from arcft.ttft.ledger.ledger import Ledger
from arcft.ttft.scheduling.budget import Budget
from arcft.ttft.scheduling.queue import Queue
from arcft.ttft.units import ADAPT_ROUND, Assignment, Event, Failed, Finished, Predicted, Started, Unit
from tests.support.arc import ARC
from tests.support.paths import ROOT


@dataclasses.dataclass(frozen=True)
class Scripted:
    """A picklable factory of ScriptedEngine. `folder` is where the engines of all processes leave marks."""

    folder: Path
    pause: float = 0.0
    """Seconds that each unit takes."""

    start: str = "well"
    """What building the engine comes to: well, refused, bug, killed, slow, stopped (SIGSTOP) the first time, or
    flaky: killed the first and the third time."""

    def __call__(self) -> ScriptedEngine:
        leave_mark(self.folder, f"pid-{os.getpid()}")
        if self.start == "refused":
            raise ArcftError("model.path=/nowhere: there is no such model")
        if self.start == "bug":
            raise KeyError("weights")
        if self.start == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.start == "stopped" and leave_mark(self.folder, "stopped") == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        if self.start == "flaky" and leave_mark(self.folder, "flaky") in (1, 3):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.start == "slow":
            time.sleep(600)
        return ScriptedEngine(self)


class ScriptedEngine:
    """Unit `kill-3`: the process is killed the first three times; `stop-1`: it is stopped (SIGSTOP), and stays there;
    `hang-1`: the engine's thread hangs, but its process answers; `raise-1`, `refuse-1`: the engine raises a bug or an
    ArcftError the first time; `fail-2`: the unit fails twice. All else is predicted with what the environment is."""

    def __init__(self, script: Scripted) -> None:
        self.script = script

    def work(self, pull: Callable[[int | None], Assignment | None], stopped: Callable[[], bool]) -> Iterator[Event]:
        while not stopped() and (assignment := pull(None)) is not None:
            yield Started(key=assignment.key, recipe=environment())
            end = time.monotonic() + self.script.pause
            while time.monotonic() < end:
                if stopped():
                    return
                time.sleep(0.01)
            yield from self._do(assignment)

    def _do(self, assignment: Assignment) -> Iterator[Event]:
        what, _, times = assignment.unit.name.partition("-")
        if times and leave_mark(self.script.folder, assignment.unit.name) <= int(times):
            if what == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if what == "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            if what == "hang":
                time.sleep(600)
            if what == "raise":
                raise ValueError("a bug in the engine")
            if what == "refuse":
                raise ArcftError("ttft.slots=4: experts can't be stacked; use ttft.slots=1")
            if what == "fail":
                yield Failed(key=assignment.key, reason="non-finite loss", retry=True)
                return
        for task in assignment.unit.problems:
            prediction = Prediction(task_id=task.id, test_index=0, answer=None, text=f"round {assignment.round}")
            yield Predicted(key=assignment.key, predictions=(prediction,), prompts=1, tokens=10, seconds=0.01)
        yield Finished(key=assignment.key)


def environment() -> dict[str, Any]:
    """What a worker's process was given."""
    names = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "CUDA_VISIBLE_DEVICES")
    return {"pid": os.getpid()} | {name: os.environ.get(name) for name in names}


def leave_mark(folder: Path, name: str) -> int:
    """How often this has been called with `name`, in any process."""
    for number in range(1, 1000):
        try:
            (folder / f"{name}.{number}").touch(exist_ok=False)
        except FileExistsError:
            continue
        return number
    raise AssertionError(name)


def pids(folder: Path) -> set[int]:
    """Of every process that has begun to build an engine."""
    return {int(path.name.split("-")[1].split(".")[0]) for path in folder.glob("pid-*")}


def alive(numbers: set[int]) -> set[int]:
    """Those of the processes that still run."""
    running = set()
    for number in numbers:
        try:
            state = Path(f"/proc/{number}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            continue
        if state != "Z":
            running.add(number)
    return running


def scripted_queue(
    folder: Path, names: Sequence[str], *, predict_before: int = 0, budget: Budget | None = None
) -> tuple[Queue, Ledger]:
    """A queue of units that are called so."""
    grid = np.ones((2, 2), dtype=np.int8)
    units = [
        Unit(name=name, problems=(Task(name, (Pair(grid, grid),), (Pair(grid, grid),)),), length=10 + number)
        for number, name in enumerate(names)
    ]
    ledger = Ledger.create(folder / "ledger.sqlite", ARC, {"names": list(names)})
    queue = Queue(
        ledger, units, steps=4, predictions=1, predict_before=predict_before, seed=0, attempts=2, budget=budget
    )
    return queue, ledger


TESTS_PATH = str(ROOT)
"""PYTHONPATH of a process that is to find this module."""


def never() -> bool:
    return False


def states(ledger: Ledger) -> dict[str, str]:
    """Of the units of the main round."""
    return {record.name: record.state for record in ledger.records(ADAPT_ROUND)}


def assert_all_gone(folder: Path) -> None:
    """Every process that has begun to build an engine is gone, or will be in a moment."""
    deadline = time.monotonic() + 5
    while (left := alive(pids(folder))) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left
