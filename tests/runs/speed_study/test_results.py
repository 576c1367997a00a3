"""What a study keeps on the disk: its rows, what is measured again, and figures of another machine."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from arcft.checkpoints import CheckpointError
from arcft.config.speed import SpeedConfig
from arcft.reporting.speed.rows import Outcome
from arcft.runs.speed_study.results import Results
from arcft.runs.speed_study.worker import machine
from tests.support.speed_rows import measured, missing, setting

CONFIG = SpeedConfig(model="small", dtype="auto", quantization="none", batch=[1, 2, 4], input=100, output=11)
ROWS = [
    missing(setting(batch=4), "left out", "left out: batch 2 already took too long"),
    missing(setting(batch=2), "too slow", "it took more than max_time=10m"),
    measured(setting(batch=1), (1.0, 2.0)),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    results = Results(tmp_path, CONFIG, None)
    results.check_machine(machine())
    for row in ROWS:
        results.record(row)
    return tmp_path


def test_measured_rows_and_limits_are_read_back_in_the_order_of_the_settings(folder: Path) -> None:
    assert Results(folder, CONFIG, None).ordered == ROWS[:0:-1]


@pytest.mark.parametrize(("max_time", "kept"), [("10m", 2), ("5m", 2), ("11m", 1)])
def test_more_time_measures_again_what_took_too_long(max_time: str, kept: int, folder: Path) -> None:
    rows = Results(folder, dataclasses.replace(CONFIG, max_time=max_time), None).rows
    assert list(rows.values()) == ROWS[:0:-1][:kept]


@pytest.mark.parametrize("outcome", ["failed", "out of memory"])
def test_what_failed_is_measured_again(outcome: Outcome, folder: Path) -> None:
    results = Results(folder, CONFIG, None)
    results.record(missing(setting(batch=4), outcome, "another program had the memory"))
    assert Results(folder, CONFIG, None).ordered == ROWS[:0:-1]


def test_figures_of_two_machines_are_not_mixed(folder: Path) -> None:
    here = machine()
    results = Results(folder, CONFIG, None)
    results.check_machine(here)
    results.check_machine(here | {"load_average": 99.0})
    with pytest.raises(CheckpointError, match=f"{folder}: was measured with threads 1, and here it is 64; figures of"):
        results.check_machine(here | {"threads": 64})


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"settings": [{"setting": 3}], "max_time": "1m", "machine": {}}'])
def test_a_damaged_file_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "speed.json").write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"speed\.json: can't be read \(.*\); start a new study"):
        Results(tmp_path, CONFIG, None)
