"""Pictures, report and profile that can't be made: the run ends well, with a note, and its results are there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from arcft.runs.training.profiling import TRACE_FILE
from tests.support.evaluate_command import evaluated, evaluation_tasks, trained


def test_a_picture_or_profile_that_can_not_be_written_fails_no_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    for name in ("preview.png", TRACE_FILE):
        (folder / name / "in the way").mkdir(parents=True)
    trained(folder, "training.profile_steps=1")
    assert "note: the picture of predictions could not be made (IsADirectoryError: " in capsys.readouterr().out
    assert json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["step"] == 6


def test_a_report_that_can_not_be_written_fails_no_evaluation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "evaluation"
    (folder / "report.html" / "in the way").mkdir(parents=True)
    evaluated(folder, "model=tiny", *evaluation_tasks())
    assert "note: the report could not be made (" in capsys.readouterr().out
    assert {"metrics.json", "submission.json", "predictions.jsonl"} <= {path.name for path in folder.iterdir()}
