"""Which finished evaluation of a checkpoint is found again."""

from __future__ import annotations

from pathlib import Path

import pytest

from arcft.runs.evaluation.results import FILES, INDEX_FILE, find_evaluation, record_evaluation


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.yaml").write_text("", encoding="utf-8")
    return folder


def finished(run: Path, name: str, key: str = "key") -> Path:
    folder = run.parent / name
    folder.mkdir()
    for file in FILES:
        (folder / file).write_text("", encoding="utf-8")
    record_evaluation(run, key, "checkpoint-4", folder)
    return folder


def test_the_newest_of_one_key_is_found(run: Path) -> None:
    assert find_evaluation(run, "key") is None
    first = finished(run, "first")
    second = finished(run, "second")
    finished(run, "other", key="another key")
    assert find_evaluation(run, "key") == second
    # Of an older one, where the newest has lost a file.
    (second / FILES[0]).unlink()
    assert find_evaluation(run, "key") == first
    (first / "metrics.json").unlink()
    assert find_evaluation(run, "key") is None


def test_an_index_that_was_cut_off_is_read_as_far_as_it_goes(run: Path) -> None:
    first = finished(run, "first")
    with (run / INDEX_FILE).open("a", encoding="utf-8") as index:
        index.write('{"key": "key", "fol')
    assert find_evaluation(run, "key") == first


def test_nothing_is_recorded_outside_a_run(tmp_path: Path) -> None:
    record_evaluation(tmp_path, "key", "checkpoint-4", tmp_path)
    assert not (tmp_path / INDEX_FILE).exists()
