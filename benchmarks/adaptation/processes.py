"""One process per task, one after another."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from adaptation.workload import Figures, Way, Workload


class ProcessWay(Way):
    """Each task pays for starting Python, importing the libraries and loading the model."""

    def __init__(self, workload: Workload) -> None:
        super().__init__(workload)
        self.workload_file = Path(workload.folder) / "workload.json"

    def load(self) -> None:
        """Nothing is kept from task to task. The disk cache is warm: all files were just written."""

    def answer(self, task_ids: list[str]) -> Figures:
        parts = [self._answer(task_id) for task_id in task_ids]
        sums = {
            field.name: sum(getattr(part, field.name) for part in parts)
            for field in dataclasses.fields(Figures)
            if field.name != "notes"
        }
        sums["loss_first"] /= len(parts)
        sums["loss_last"] /= len(parts)
        sums["peak_bytes"] = max(part.peak_bytes for part in parts)
        return Figures(**sums, notes=[])

    def _answer(self, task_id: str) -> Figures:
        out = self.workload_file.with_name(f"answered-{task_id}.json")
        command = [sys.executable, str(Path(__file__).with_name("one_task.py")), str(self.workload_file), task_id]
        begun = time.perf_counter()
        with subprocess.Popen([*command, str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
            assert process.stderr is not None
            complaints = process.stderr.read().decode()
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - begun
        if process.returncode:
            raise RuntimeError(f"one_task.py ended with {process.returncode} for {task_id}:\n{complaints[-2000:]}")
        figures = Figures(**json.loads(out.read_text(encoding="utf-8")))
        # Measured from outside, including process start.
        figures.seconds = seconds
        figures.cpu_seconds = usage.ru_utime + usage.ru_stime
        return figures
