"""Predictions, and the JSON-lines files that hold them."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from arcft.errors import ArcftError
from arcft.files import data_sha256
from arcft.protocols import Answer, AnswerCodec, AnswerError, Problem, TestKey


class PredictionError(ArcftError):
    """A file of predictions that can't be read, or that does not belong to the problems it is scored against."""


_SELECTION_FIELDS = ("scores", "selection")

CHECKSUM = "checksum"
"""Key of a line's checksum; lines made elsewhere or by version 0.1.0 have none."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction:
    """One answer to one test."""

    task_id: str
    """The problem's id."""

    test_index: int
    """Which of the problem's tests, from 0."""

    answer: Answer | None
    """The answer to the un-augmented test; None if there is no valid one."""

    text: str = ""
    """What the model wrote, before it was parsed and un-augmented."""

    logprob: float | None = None
    """Summed log-probability of all produced tokens, in nats."""

    num_tokens: int | None = None
    """Tokens that `logprob` covers, the end token included."""

    seconds: float | None = None
    """Time that the prediction took; the rows of a batch share its time equally."""

    transform: dict[str, Any] | None = None
    """How the problem was varied for this prompt: `View.to_dict`."""

    seed: int | None = None
    error: str | None = None
    """Why there is no answer."""

    scores: tuple[float, ...] | None = None
    """With selection=score, on one prediction of each distinct answer: the answer's summed log-probability under each
    of the first augmentations dealt for this `seed`, the un-augmented one first."""

    selection: dict[str, Any] | None = None
    """On one prediction of each distinct answer: its rank among the test's answers, from 1, and the reasons for it."""

    def to_json(self, answer_field: str) -> dict[str, Any]:
        """The line of a predictions file, as plain data; `prediction_from_json` reads it back."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        values["answer"] = None if self.answer is None else self.answer.to_json()
        values["scores"] = None if self.scores is None else list(self.scores)
        return {
            answer_field if name == "answer" else name: value
            for name, value in values.items()
            # Most lines have neither.
            if value is not None or name not in _SELECTION_FIELDS
        }

    def __hash__(self) -> int:
        return hash((self.task_id, self.test_index, self.text))


def prediction_from_json(values: Any, where: str, answers: AnswerCodec) -> Prediction:
    """Check the plain data of one line, and return it as a Prediction.

    Predictions made elsewhere need only `task_id`, `test_index` and the answer; unknown keys are ignored. An answer
    that breaks a rule of its kind counts as none: `answer` is None and `error` says why. Anything else that is wrong
    raises PredictionError, whose message `where` opens.
    """
    needed = f"task_id, test_index and {answers.answer_field}"
    if not isinstance(values, dict):
        raise PredictionError(f"{where}: a prediction is an object with {needed}")
    for key in ("task_id", "test_index", answers.answer_field):
        if key not in values:
            raise PredictionError(f"{where}: {key} is missing; a prediction needs {needed}")
    if not isinstance(values["task_id"], str):
        raise PredictionError(f"{where}: task_id={values['task_id']!r}: must be text, in quotes")
    test_index = _number(values, "test_index", where, whole=True, least=0)
    if test_index is None:
        raise PredictionError(f"{where}: test_index=null: must be a whole number, counted from 0")
    num_tokens = _number(values, "num_tokens", where, whole=True, least=0)
    seed = _number(values, "seed", where, whole=True)
    answer, reason = _answer(values[answers.answer_field], where, answers)
    return Prediction(
        task_id=values["task_id"],
        test_index=int(test_index),
        answer=answer,
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


def read_predictions(path: Path | str, answers: AnswerCodec, *, allow_torn: bool = False) -> list[Prediction]:
    """Read a file with one JSON object a line; see `parse_predictions`."""
    return parse_predictions(_read_bytes(Path(path)), path, answers, allow_torn=allow_torn)


def parse_predictions(
    content: bytes, path: Path | str, answers: AnswerCodec, *, allow_torn: bool = False
) -> list[Prediction]:
    """The predictions in the `content` of a file with one JSON object a line, in UTF-8; blank lines are skipped.

    A last line that was cut off while it was written is dropped with `allow_torn`; otherwise, like any other broken
    line, it raises a PredictionError that names the file and the line. With `allow_torn`, for a file that is to be
    added to, so does a line that does not match its checksum.
    """
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
        prediction = prediction_from_json(values, where, answers)
        if allow_torn and values.get(CHECKSUM, _checksum(values)) != _checksum(values):
            raise PredictionError(f"{where}: is damaged, or was changed after it was written; delete the line")
        predictions.append(prediction)
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


def append_prediction(file: TextIO, prediction: Prediction, answers: AnswerCodec) -> None:
    """Write one line and flush it, so that a run that is killed later has not lost it. It ends with a checksum."""
    values = prediction.to_json(answers.answer_field)
    file.write(json.dumps({**values, CHECKSUM: _checksum(values)}, allow_nan=False) + "\n")
    file.flush()


def all_tests(problems: Sequence[Problem]) -> list[TestKey]:
    """Every test of `problems`, in order."""
    return [(problem.id, index) for problem in problems for index in range(len(problem.answers))]


def known_answers(problems: Sequence[Problem]) -> dict[TestKey, Answer]:
    """The true answers that are known, by test."""
    return {
        (problem.id, index): answer
        for problem in problems
        for index, answer in enumerate(problem.answers)
        if answer is not None
    }


def group_by_test(problems: Sequence[Problem], predictions: Sequence[Prediction]) -> dict[TestKey, list[Prediction]]:
    """Each test of `problems`, in their order, with its predictions; a test without any has an empty list.

    Predictions of other problems are left out. Raises PredictionError for a test that a problem doesn't have, and when
    there are predictions but none of them is for any of `problems`.
    """
    groups: dict[TestKey, list[Prediction]] = {key: [] for key in all_tests(problems)}
    num_tests = {problem.id: len(problem.answers) for problem in problems}
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
    if predictions and problems and not any(groups.values()):
        raise PredictionError(
            f"none of the {len(predictions)} predictions is for one of the {len(problems)} tasks (first prediction: "
            f"task {predictions[0].task_id}, first task: {problems[0].id}); choose the tasks that they answer with "
            "data=..."
        )
    return groups


def _checksum(values: Mapping[str, Any]) -> str:
    """Of all that decides anything: not of how long it took."""
    return data_sha256({name: value for name, value in values.items() if name not in (CHECKSUM, "seconds")})[:16]


def _answer(value: Any, where: str, answers: AnswerCodec) -> tuple[Answer | None, str | None]:
    """The answer, or why it counts as none."""
    try:
        return answers.answer_from_json(value), None
    except AnswerError as error:
        return None, str(error)
    except ValueError as error:
        raise PredictionError(f"{where}: {error}") from None


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
