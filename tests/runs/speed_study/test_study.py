"""What a study makes of its processes' answers, and what it refuses before it starts one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from arcft.config.speed import SpeedConfig
from arcft.reporting.speed.rows import Loaded, Row, Run
from arcft.runs.speed_study import worker
from arcft.runs.speed_study.study import run_study
from arcft.runs.speed_study.subjects import problems_here

CONFIG = SpeedConfig(
    model="small", dtype="float32", quantization="none", batch=[1, 2], input=100, output=11, max_time="1m"
)
LOADED = worker.Ready(Loaded(seconds=1.0, parameters=1, dtype="float32", decoder="arcft's decoder"), {})
RUN = Run(first_token_seconds=1.0, seconds=2.0)


class Script:
    """A process that answers as written here."""

    def __init__(self, *answers: Any) -> None:
        self.answers = iter(answers)
        self.is_killed = False

    def send(self, message: object) -> None:
        assert not self.is_killed

    def receive(self, seconds: float) -> Any:
        assert not self.is_killed
        answer = next(self.answers)
        if answer is TimeoutError:
            raise TimeoutError
        return answer

    def kill(self) -> None:
        self.is_killed = True


def study(monkeypatch: pytest.MonkeyPatch, *scripts: Script) -> list[Row]:
    children = iter(scripts)
    monkeypatch.setattr(worker, "start", lambda *args: next(children))
    rows: list[Row] = []
    subject = worker.Subject(model=None, kind="arc", encoder=None, prompt=None)  # type: ignore[arg-type]
    run_study(CONFIG, {"small": subject}, {}, rows.append, lambda machine: None)
    assert list(children) == []
    return rows


def test_runs_before_one_that_is_cut_off_count(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = worker.Measured(RUN, 5), worker.Measured(RUN, 7)
    first = Script(LOADED, *measured, TimeoutError)
    rows = study(monkeypatch, first, Script(LOADED, worker.Measured(RUN, 9), worker.Done()))
    assert [(row.outcome, len(row.runs), row.peak_bytes) for row in rows] == [("measured", 2, 7), ("measured", 1, 9)]
    assert first.is_killed  # it was at work on the third run


def test_nothing_measured_in_time_is_too_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = study(monkeypatch, Script(LOADED, TimeoutError))
    assert [(row.outcome, row.reason) for row in rows] == [
        ("too slow", "it took more than max_time=1m"),
        ("left out", "left out: batch 1, input 100, output 11 already took too long"),
    ]


def test_out_of_memory_after_a_run_is_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    failure = worker.Failure("out of memory", "out of memory (no room)")
    rows = study(monkeypatch, Script(LOADED, worker.Measured(RUN, 5), failure))
    assert [row.reason for row in rows] == [
        "out of memory (no room)",
        "left out: batch 1, input 100, output 11 already ran out of memory",
    ]


def test_a_failure_says_nothing_about_larger_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    done = Script(LOADED, worker.Measured(RUN, 5), worker.Done())
    rows = study(monkeypatch, Script(LOADED, worker.Failure("failed", "ValueError: no")), done)
    assert [row.outcome for row in rows] == ["failed", "measured"]


def test_a_gpu_is_not_measured_by_the_clock_of_the_processor() -> None:
    config = SpeedConfig(
        model="small", dtype="float32", quantization="none", batch=1, input=1, output=1, clock="processor"
    )
    assert list(problems_here(config, torch.device("cuda"))) == [
        "clock=processor: a GPU works on its own while the processor waits; use clock=wall"
    ]
    assert list(problems_here(config, torch.device("cpu"))) == []
