"""Predictions, and the JSON-lines files that hold them."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from arcft.errors import ArcftError
from arcft.problems.arc.task import Grid, GridAnswer, Task, TaskError, as_grid

TestKey = tuple[str, int]
"""A test of a task: the task's id, and the number of the test counted from 0."""


class PredictionError(ArcftError):
    """A file of predictions that can't be read, or that does not belong to the tasks it is scored against."""


_OF_SELECTION = ("scores", "selection")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Prediction:
    """One answer to one test."""

    task_id: str
    test_index: int
    """Which of the task's tests, from 0."""

    grid: Grid | None
    """The answer in the test's own orientation and colours; None where there is no valid one."""

    text: str = ""
    """What the model wrote, before it was parsed and un-transformed."""

    logprob: float | None = None
    """Natural logarithm of the probability of all produced tokens together."""

    num_tokens: int | None = None
    """How many tokens `logprob` covers, the end token included."""

    seconds: float | None = None
    """What the prediction cost; a batch's time is shared by its rows."""

    transform: dict[str, Any] | None = None
    """How the task was varied for this prompt, as `arcft.problems.arc.augment.transforms` writes it."""

    seed: int | None = None
    error: str | None = None
    """Why there is no grid."""

    scores: tuple[float, ...] | None = None
    """With selection=score, on one prediction of each grid: the grid's summed log-probability under each of the first
    augmentations that are dealt for this `seed`, the un-augmented one first."""

    selection: dict[str, Any] | None = None
    """On one prediction of each grid: its rank among the test's grids, from 1, and what put it there."""

    @property
    def answer(self) -> GridAnswer | None:
        """The grid as an Answer."""
        return None if self.grid is None else GridAnswer(self.grid)

    def to_json(self) -> dict[str, Any]:
        """The line of a predictions file, as plain data; `prediction_from_json` reads it back."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        values["grid"] = None if self.grid is None else self.grid.tolist()
        values["scores"] = None if self.scores is None else list(self.scores)
        # Most lines have neither.
        return {name: value for name, value in values.items() if value is not None or name not in _OF_SELECTION}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Prediction) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash((self.task_id, self.test_index, self.text))


def prediction_from_json(values: Any, where: str) -> Prediction:
    """Check the plain data of one line, and return it as a Prediction.

    Predictions made elsewhere need only `task_id`, `test_index` and `grid`; keys that are not ours are ignored.
    A grid that is null, empty, ragged, too large or of a colour that ARC doesn't have is an answer that counts as
    none: `grid` is None and `error` says why. Anything else that is wrong raises PredictionError, opened by `where`.
    """
    if not isinstance(values, dict):
        raise PredictionError(f"{where}: a prediction is an object with task_id, test_index and grid")
    for key in ("task_id", "test_index", "grid"):
        if key not in values:
            raise PredictionError(f"{where}: {key} is missing; a prediction needs task_id, test_index and grid")
    if not isinstance(values["task_id"], str):
        raise PredictionError(f"{where}: task_id={values['task_id']!r}: must be text, in quotes")
    test_index = _number(values, "test_index", where, whole=True, least=0)
    if test_index is None:
        raise PredictionError(f"{where}: test_index=null: must be a whole number, counted from 0")
    num_tokens = _number(values, "num_tokens", where, whole=True, least=0)
    seed = _number(values, "seed", where, whole=True)
    grid, reason = _answer(values["grid"], where)
    return Prediction(
        task_id=values["task_id"],
        test_index=int(test_index),
        grid=grid,
        text=_typed(values, "text", str, where) or "",
        logprob=_number(values, "logprob", where),
        num_tokens=None if num_tokens is None else int(num_tokens),
        seconds=_number(values, "seconds", where, least=0),
        transform=_typed(values, "transform", dict, where),
        seed=None if seed is None else int(seed),
        error=_typed(values, "error", str, where) or reason,
        scores=_scores(values, where),
        selection=_typed(values, "selection", dict, where),
    )


def read_predictions(path: Path | str, *, allow_torn: bool = False) -> list[Prediction]:
    """Read a file with one JSON object a line; blank lines are passed over.

    A last line that was cut off while it was written is dropped with `allow_torn`; otherwise, like any other broken
    line, it raises a PredictionError that names the file and the line.
    """
    path = Path(path)
    content = _read_bytes(path)
    lines = content.split(b"\n")
    predictions = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            if number == len(lines):
                if allow_torn:
                    break
                raise PredictionError(f"{where}: the last line is cut off ({error}); remove it and try again") from None
            raise PredictionError(f"{where}: not JSON ({error}); each line is one prediction") from None
        predictions.append(prediction_from_json(values, where))
    return predictions


def open_for_append(path: Path | str) -> TextIO:
    """Open a predictions file to add to it, new or left by a run that was stopped; a torn last line is cut off."""
    path = Path(path)
    if path.exists():
        content = _read_bytes(path)
        end = content.rfind(b"\n") + 1
        if end < len(content):
            with path.open("r+b") as file:
                if _is_json(content[end:]):
                    file.seek(0, 2)
                    file.write(b"\n")
                else:
                    file.truncate(end)
    return path.open("a", encoding="utf-8", newline="\n")


def append_prediction(file: TextIO, prediction: Prediction) -> None:
    """Write one line and flush it, so that a run that is killed later has not lost it."""
    file.write(json.dumps(prediction.to_json(), allow_nan=False) + "\n")
    file.flush()


def group_by_test(tasks: Sequence[Task], predictions: Sequence[Prediction]) -> dict[TestKey, list[Prediction]]:
    """Each test of `tasks`, in their order, with its predictions; a test without any has an empty list.

    Predictions of other tasks are left out. PredictionError for a test that a task doesn't have, and when there are
    predictions but none of them is for any of `tasks`.
    """
    groups: dict[TestKey, list[Prediction]] = {
        (task.id, index): [] for task in tasks for index in range(len(task.test))
    }
    num_tests = {task.id: len(task.test) for task in tasks}
    for prediction in predictions:
        if prediction.task_id not in num_tests:
            continue
        key = (prediction.task_id, prediction.test_index)
        if key not in groups:
            raise PredictionError(
                f"a prediction for task {key[0]} has test_index={key[1]}, but the task has "
                f"{num_tests[key[0]]} test(s), counted from 0; are these predictions for another set of tasks?"
            )
        groups[key].append(prediction)
    if predictions and tasks and not any(groups.values()):
        raise PredictionError(
            f"none of the {len(predictions)} predictions is for one of the {len(tasks)} tasks (first prediction: task "
            f"{predictions[0].task_id}, first task: {tasks[0].id}); choose the tasks that they answer with data=..."
        )
    return groups


def _answer(value: Any, where: str) -> tuple[Grid | None, str | None]:
    if value is None:
        return None, None
    rows = value if isinstance(value, list) else [None]
    cells = [cell for row in rows for cell in (row if isinstance(row, list) else [None])]
    if not all(isinstance(cell, int) and not isinstance(cell, bool) for cell in cells):
        raise PredictionError(f"{where}: grid is a list of rows of whole numbers, or null for no answer")
    if not cells:
        return None, "empty grid"
    try:
        return as_grid(value, where="invalid grid"), None
    except TaskError as error:
        return None, str(error)


def _number(
    values: dict[str, Any], key: str, where: str, *, whole: bool = False, least: float = -math.inf
) -> float | None:
    value = values.get(key)
    if value is None:
        return None
    kinds = int if whole else (int, float)
    is_number = isinstance(value, kinds) and not isinstance(value, bool)
    # Integers can be too large to be computed with as floats; this refuses them together with NaN and infinity.
    if not is_number or not (whole or abs(value) <= sys.float_info.max) or value < least:
        rule = ("a whole number" if whole else "a number") + (f", at least {least}" if least > -math.inf else "")
        raise PredictionError(f"{where}: {key}={value!r}: must be {rule}, or null")
    return value


def _scores(values: dict[str, Any], where: str) -> tuple[float, ...] | None:
    scores = values.get("scores")
    if scores is None:
        return None
    if not isinstance(scores, list) or not scores or None in scores:
        raise PredictionError(f"{where}: scores={scores!r}: must be a list of numbers, or null")
    numbers = [_number({"scores": score}, "scores", where) for score in scores]
    return tuple(number for number in numbers if number is not None)


def _typed(values: dict[str, Any], key: str, kind: type, where: str) -> Any:
    value = values.get(key)
    if value is not None and not isinstance(value, kind):
        name = "text" if kind is str else "an object"
        raise PredictionError(f"{where}: {key}={value!r}: must be {name}, or null")
    return value


def _read_bytes(path: Path) -> bytes:
    if path.is_dir():
        raise PredictionError(f"predictions file {path}: is a folder; name the file in it, e.g. predictions.jsonl")
    try:
        return path.read_bytes()
    except OSError as error:
        raise PredictionError(f"predictions file {path}: {error.strerror}") from None


def _is_json(content: bytes) -> bool:
    try:
        json.loads(content)
    except ValueError:
        return False
    return True
