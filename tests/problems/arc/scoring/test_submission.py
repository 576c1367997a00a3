"""Submission files: the exact content, and what is refused before anything is written."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from arcft.problems.arc.scoring.submission import SubmissionError, check_submission, write_submission
from arcft.problems.arc.task import GridAnswer, Pair, Task, as_grid

ONE, TWO, THREE = (as_grid([[color]]) for color in (1, 2, 3))
TASKS = [Task("a", (Pair(ONE, TWO),), (Pair(ONE), Pair(TWO))), Task("b", (Pair(ONE, TWO),), (Pair(ONE),))]
GOOD = {
    "a": [{"attempt_1": [[1]], "attempt_2": [[2]]}, {"attempt_1": [[3]], "attempt_2": [[0]]}],
    "b": [{"attempt_1": [[0]], "attempt_2": [[0]]}],
}


def test_content_and_padding(tmp_path: Path) -> None:
    path = tmp_path / "submission.json"
    path.write_text("old", encoding="utf-8")
    write_submission(
        path, TASKS, {("a", 0): [GridAnswer(ONE), GridAnswer(TWO)], ("a", 1): [GridAnswer(THREE)], ("b", 0): []}
    )
    assert json.loads(path.read_text(encoding="utf-8")) == GOOD
    assert list(json.loads(path.read_text(encoding="utf-8"))) == ["a", "b"]
    assert [file.name for file in tmp_path.iterdir()] == ["submission.json"]


def test_tests_without_attempts_are_padded_too(tmp_path: Path) -> None:
    write_submission(tmp_path / "s.json", TASKS, {})
    padded = {"attempt_1": [[0]], "attempt_2": [[0]]}
    assert json.loads((tmp_path / "s.json").read_text(encoding="utf-8")) == {"a": [padded, padded], "b": [padded]}


def test_a_submission_is_on_the_disk_before_it_replaces_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: steps.append("fsync") or fsync(descriptor))
    monkeypatch.setattr(os, "replace", lambda *paths: steps.append("rename") or replace(*paths))
    write_submission(tmp_path / "s.json", TASKS, {})
    assert steps == ["fsync", "rename"]


def test_a_submission_of_many_tasks_is_written_in_linear_time(tmp_path: Path) -> None:
    tasks = [Task(f"{number:08x}", (Pair(ONE, TWO),), (Pair(ONE),)) for number in range(20_000)]
    start = time.monotonic()
    write_submission(tmp_path / "s.json", tasks, {(tasks[7].id, 0): [GridAnswer(ONE)]})
    assert time.monotonic() - start < 2


@pytest.mark.parametrize(
    ("attempts", "message"),
    [
        ({("c", 0): [GridAnswer(ONE)]}, "attempts for task c, test 0: the tasks have no such test"),
        ({("b", 1): [GridAnswer(ONE)]}, "attempts for task b, test 1: the tasks have no such test"),
        (
            {("a", 0): [GridAnswer(ONE), GridAnswer(TWO), GridAnswer(THREE)]},
            "3 attempts for task a, test 0; a submission has 2 a test",
        ),
    ],
)
def test_attempts_that_do_not_fit_leave_the_old_file(tmp_path: Path, attempts: Any, message: str) -> None:
    path = tmp_path / "submission.json"
    path.write_text("old", encoding="utf-8")
    with pytest.raises(SubmissionError, match=message):
        write_submission(path, TASKS, attempts)
    assert path.read_text(encoding="utf-8") == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["submission.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"c": GOOD["b"]}, "task c is not one of the tasks"),
        ({"a": GOOD["b"]}, r"task a needs a list of 2 test\(s\)"),
        ({"b": [{"attempt_1": [[0]]}]}, "task b, test 0: needs exactly attempt_1 and attempt_2"),
        ({"b": [{"attempt_1": [[0]], "attempt_2": []}]}, "task b, test 0, attempt_2: a grid is a non-empty list"),
        ({"b": [{"attempt_1": [[10]], "attempt_2": [[0]]}]}, "task b, test 0, attempt_1: colour 10"),
    ],
)
def test_a_submission_for_other_tasks_is_refused(change: dict[str, Any], message: str) -> None:
    check_submission(GOOD, TASKS)
    with pytest.raises(SubmissionError, match=message):
        check_submission(GOOD | change, TASKS)


def test_a_missing_task_is_named() -> None:
    with pytest.raises(SubmissionError, match="task b is missing; it has an entry for every task and no other"):
        check_submission({"a": GOOD["a"]}, TASKS)
    with pytest.raises(SubmissionError, match="an object with an entry for each task id"):
        check_submission([], TASKS)
