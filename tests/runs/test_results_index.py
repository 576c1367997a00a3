"""The index of a run's finished evaluations."""

from __future__ import annotations

from pathlib import Path

import pytest

from arcft.runs.evaluation.results import (
    FILES,
    METRICS_FILE,
    SUBMISSION_FILE,
    find_evaluation,
    record_evaluation,
    recorded_evaluations,
)

METRICS = '{"metrics": {"vote_2": 0.5}, "tasks": {"a": {"vote_2": 0.5}}}'


def finished(folder: Path) -> Path:
    folder.mkdir()
    for name in FILES:
        (folder / name).write_text("", encoding="utf-8")
    (folder / METRICS_FILE).write_text(METRICS, encoding="utf-8")
    (folder / SUBMISSION_FILE).write_text('{"a": []}', encoding="utf-8")
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run.yaml").write_text("job: train\n", encoding="utf-8")
    return tmp_path


def test_a_line_cut_off_by_a_crash_is_passed_over(run: Path) -> None:
    folders = [finished(run / "older"), finished(run / "newer")]
    record_evaluation(run, "key", "checkpoint-2", folders[0])
    with (run / "evaluations.jsonl").open("a", encoding="utf-8") as index:
        index.write('{"key": "ke\n[]\n')
    record_evaluation(run, "key", "checkpoint-2", folders[1])
    assert [entry["folder"] for entry in recorded_evaluations(run)] == list(map(str, folders))


@pytest.mark.parametrize("name", [METRICS_FILE, SUBMISSION_FILE])
@pytest.mark.parametrize(
    "content", [METRICS[:30], METRICS + "}", "", "[]", "\x00", '{"metrics": 1, "tasks": {}', "caf\xe9"]
)
def test_a_damaged_evaluation_is_not_used_again(run: Path, name: str, content: str) -> None:
    older, newer = finished(run / "older"), finished(run / "newer")
    for folder in (older, newer):
        record_evaluation(run, "key", "checkpoint-2", folder)
    assert find_evaluation(run, "key") == newer
    (newer / name).write_text(content, encoding="latin-1")
    assert find_evaluation(run, "key") == older
    (older / name).unlink()
    assert find_evaluation(run, "key") is None


def test_lines_that_are_damaged_are_passed_over(run: Path) -> None:
    record_evaluation(run, "key", "checkpoint-2", finished(run / "evaluation"))
    with (run / "evaluations.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"key": "key"\n[]\n"text"\nnull\n{"key": "key", "folder": 3}\n{"key": "key", "folder": "/nowh')
    assert find_evaluation(run, "key") == run / "evaluation"
