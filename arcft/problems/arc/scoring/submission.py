"""The file that the ARC Prize competition on Kaggle takes: two attempts for each test of each task."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from arcft.errors import ArcftError
from arcft.files import open_atomic
from arcft.problems.arc.answers import answer_from_json
from arcft.problems.arc.task import TaskError, as_grid, check_id
from arcft.protocols import Answer, AnswerError, Problem, TestKey
from arcft.scoring.voting import Attempts

ATTEMPT_NAMES = ("attempt_1", "attempt_2")
NO_ANSWER = [[0]]
"""Kaggle wants a grid in every place."""

PLACEHOLDERS = (NO_ANSWER, [[0, 0], [0, 0]], None)
"""What stands in submissions for no answer: ours, that of Kaggle's sample submission, and null."""


class SubmissionError(ArcftError):
    """Attempts or a submission that don't fit the tasks."""


def write_submission(path: Path | str, tasks: Sequence[Problem], attempts: Attempts) -> None:
    """Write `{id: [{"attempt_1": grid, "attempt_2": grid}, ...]}`, one object a test, missing attempts as [[0]].

    The file appears whole or not at all. Raises SubmissionError, before anything is written, if `attempts` holds a
    test that `tasks` don't have, or more than two grids for one.
    """
    tests = {(task.id, index) for task in tasks for index in range(len(task.answers))}
    for key, grids in attempts.items():
        if key not in tests:
            raise SubmissionError(f"attempts for task {key[0]}, test {key[1]}: the tasks have no such test")
        if len(grids) > len(ATTEMPT_NAMES):
            raise SubmissionError(
                f"{len(grids)} attempts for task {key[0]}, test {key[1]}; a submission has {len(ATTEMPT_NAMES)} a test"
            )
    submission = {
        task.id: [_attempts_of_test(attempts.get((task.id, index), ())) for index in range(len(task.answers))]
        for task in tasks
    }
    check_submission(submission, tasks)
    with open_atomic(Path(path), sync=True) as file:
        file.write(json.dumps(submission))  # faster than json.dump, which writes piece by piece


def check_submission(submission: Any, tasks: Sequence[Problem]) -> None:
    """Raise SubmissionError unless this plain data answers exactly these tasks and tests with valid grids."""
    if not isinstance(submission, dict):
        raise SubmissionError("a submission is an object with an entry for each task id")
    expected = {task.id: len(task.answers) for task in tasks}
    for task_id in expected.keys() ^ submission.keys():
        rule = "is missing" if task_id in expected else "is not one of the tasks"
        raise SubmissionError(f"submission: task {task_id} {rule}; it has an entry for every task and no other")
    for task_id, tests in submission.items():
        if not isinstance(tests, list) or len(tests) != expected[task_id]:
            raise SubmissionError(f"submission: task {task_id} needs a list of {expected[task_id]} test(s)")
        for index, test in enumerate(tests):
            where = f"submission: task {task_id}, test {index}"
            if not isinstance(test, dict) or set(test) != set(ATTEMPT_NAMES):
                raise SubmissionError(f"{where}: needs exactly {' and '.join(ATTEMPT_NAMES)}")
            for name in ATTEMPT_NAMES:
                if test[name] is NO_ANSWER:
                    continue
                try:
                    as_grid(test[name], where=f"{where}, {name}")
                except TaskError as error:
                    raise SubmissionError(str(error)) from None


def read_submission(submission: Any, where: str) -> Iterator[tuple[TestKey, Answer | AnswerError]]:
    """The answers in the plain data of a submission with any number of attempts, `attempt_1` first.

    PLACEHOLDERS are left out; an AnswerError stands for a grid that breaks a rule of ARC. Raises SubmissionError, which
    starts with `where`, for anything else.
    """
    for task_id, tests in submission.items():
        check_id(task_id, where)
        for index, test in enumerate(tests):
            place = f"{where}: task {task_id}, test {index}"
            if not isinstance(test, dict) or not test or not all(map(_ATTEMPT.fullmatch, test)):
                raise SubmissionError(f"{place}: a submission has an object of attempt_1, attempt_2, ... for each test")
            for name in sorted(test, key=lambda name: int(name.removeprefix("attempt_"))):
                if test[name] in PLACEHOLDERS:
                    continue
                try:
                    answer = answer_from_json(test[name])
                except AnswerError as error:
                    yield (task_id, index), error
                except ValueError:
                    raise SubmissionError(f"{place}, {name}: is no list of rows of whole numbers") from None
                else:
                    assert answer is not None  # null is a placeholder
                    yield (task_id, index), answer


_ATTEMPT = re.compile(r"attempt_[1-9][0-9]{0,5}")


def _attempts_of_test(answers: Sequence[Answer]) -> dict[str, Any]:
    filled = [answer.to_json() for answer in answers] + [NO_ANSWER] * (len(ATTEMPT_NAMES) - len(answers))
    return dict(zip(ATTEMPT_NAMES, filled, strict=True))
