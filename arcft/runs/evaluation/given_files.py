"""Files that predictions= names: predictions.jsonl, submissions, and folders of either."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from arcft.errors import ArcftError
from arcft.json_text import JsonError, parse_json, read_text
from arcft.protocols import AnswerError, Kind
from arcft.runs.evaluation.results import PREDICTIONS_FILE, SUBMISSION_FILE
from arcft.scoring.predictions import Prediction, PredictionError, parse_predictions


def prediction_files(paths: Iterable[str]) -> list[Path]:
    """`paths` with each folder replaced by the files in it.

    The folder of an evaluation stands for its predictions.jsonl, or its submission.json where that is all there is. Of
    any other it is every .jsonl and .json file, and the evaluations in its sub-folders, by name. Raises PredictionError
    for a folder without any.
    """
    return [file for path in map(Path, paths) for file in (_in_folder(path) if path.is_dir() else [path])]


def read_answers(path: Path, kind: Kind) -> list[Prediction]:
    """The predictions in a file of one JSON object a line, or the attempts in a submission, the first ones first.

    Placeholders of a submission are no predictions. Raises PredictionError, which names the file, for anything else.
    """
    try:
        text = read_text(path)
        values = _submission(text, path)
        if values is None:
            return parse_predictions(text.encode("utf-8", "surrogatepass"), path, kind)
        return [
            Prediction(task_id=task_id, test_index=index, answer=None, error=str(answer))
            if isinstance(answer, AnswerError)
            else Prediction(task_id=task_id, test_index=index, answer=answer)
            for (task_id, index), answer in kind.read_submission(values, str(path))
        ]
    except PredictionError:
        raise
    except ArcftError as error:
        raise PredictionError(f"predictions={error}") from None


def _in_folder(folder: Path) -> list[Path]:
    own = _of_evaluation(folder)
    if own:
        return own
    entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    files = [path for path in entries if path.suffix in (".jsonl", ".json") and path.is_file()]
    files += [file for path in entries if path.is_dir() for file in _of_evaluation(path)]
    if not files:
        raise PredictionError(
            f"predictions={folder}: holds no {PREDICTIONS_FILE} and no submission, nor does a folder in it; name files"
        )
    return files


def _of_evaluation(folder: Path) -> list[Path]:
    return [folder / name for name in (PREDICTIONS_FILE, SUBMISSION_FILE) if (folder / name).is_file()][:1]


def _submission(text: str, path: Path) -> dict[str, Any] | None:
    """The content of a file that is a single object of lists, as a submission is; None for lines of predictions."""
    start = len(text) - len(text.lstrip())
    try:
        values, end = json.JSONDecoder().raw_decode(text, start)
    except (ValueError, RecursionError):
        if path.suffix == ".jsonl":
            return None
        parse_json(text, str(path))  # says what is wrong
        raise JsonError(f"{path}: not valid JSON") from None
    if not isinstance(values, dict) or ("task_id" in values and not isinstance(values["task_id"], list)):
        return None
    if text[end:].strip():
        return None
    if not values or not all(isinstance(tests, list) for tests in values.values()):
        raise JsonError(
            f"{path}: is neither a file of predictions, with one object a line, nor a submission, an object with a "
            "list of attempts for each task"
        )
    checked: dict[str, Any] = parse_json(text, str(path), "task")
    return checked
