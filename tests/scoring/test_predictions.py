"""Predictions and their files: round trip, torn lines, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arcft.problems.arc.task import GridAnswer, Pair, Task, as_grid
from arcft.scoring.predictions import (
    Prediction,
    PredictionError,
    append_prediction,
    group_by_test,
    open_for_append,
    prediction_from_json,
    read_predictions,
)
from tests.support.arc import ARC

FULL = Prediction(
    task_id="007bbfb7",
    test_index=1,
    answer=GridAnswer(as_grid([[0, 1], [2, 3]])),
    text="1 01\n2 23\n```\u00f1",
    logprob=-0.125,
    num_tokens=9,
    seconds=0.5,
    transform={"name": "geometric", "flip": True},
    seed=7,
    error=None,
)
NONE = Prediction(task_id="007bbfb7", test_index=0, answer=None, text="half \ud800 a pair", error="no fence")


def one_test_task(task_id: str = "a", tests: int = 1) -> Task:
    pair = Pair(as_grid([[1]]), as_grid([[2]]))
    return Task(task_id, (pair,), (pair,) * tests)


def test_json_has_the_documented_keys_in_order() -> None:
    assert FULL.to_json("grid") == {
        "task_id": "007bbfb7",
        "test_index": 1,
        "grid": [[0, 1], [2, 3]],
        "text": "1 01\n2 23\n```\u00f1",
        "logprob": -0.125,
        "num_tokens": 9,
        "seconds": 0.5,
        "transform": {"name": "geometric", "flip": True},
        "seed": 7,
        "error": None,
    }
    assert list(FULL.to_json("grid")) == [
        "task_id", "test_index", "grid", "text", "logprob", "num_tokens", "seconds", "transform", "seed", "error",
    ]  # fmt: skip


def test_what_belongs_to_a_selection_is_there_only_where_there_is_some() -> None:
    selected = dataclasses.replace(FULL, scores=(-1.5, -2.0), selection={"by": "score", "rank": 1})
    values = selected.to_json("grid")
    assert values == {**FULL.to_json("grid"), "scores": [-1.5, -2.0], "selection": {"by": "score", "rank": 1}}
    assert prediction_from_json(json.loads(json.dumps(values)), "here", ARC) == selected
    nulls = {**FULL.to_json("grid"), "scores": None, "selection": None}
    assert prediction_from_json(nulls, "here", ARC) == FULL


def test_a_file_gives_back_what_was_appended(tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    with open_for_append(path) as file:
        append_prediction(file, FULL, ARC)
        assert read_predictions(path, ARC) == [FULL]  # a line is on disk as soon as it is appended
        append_prediction(file, NONE, ARC)
    with open_for_append(path) as file:
        append_prediction(file, FULL, ARC)
    assert read_predictions(path, ARC) == [FULL, NONE, FULL]
    assert path.read_text(encoding="utf-8").count("\n") == 3


@settings(max_examples=50, deadline=None)
@given(
    grid=st.none()
    | st.tuples(st.integers(1, 30), st.integers(1, 30), st.integers(0, 2**31)).map(
        lambda size: as_grid(np.random.default_rng(size[2]).integers(0, 10, size[:2]))
    ),
    text=st.text(),
    logprob=st.none() | st.floats(max_value=0, allow_infinity=False),
    num_tokens=st.none() | st.integers(0, 10_000),
)
def test_json_text_is_inverted(grid: Any, text: str, logprob: float | None, num_tokens: int | None) -> None:
    answer = None if grid is None else GridAnswer(grid)
    prediction = Prediction(task_id="x", test_index=0, answer=answer, text=text, logprob=logprob, num_tokens=num_tokens)
    assert prediction_from_json(json.loads(json.dumps(prediction.to_json("grid"))), "here", ARC) == prediction


def test_predictions_made_elsewhere_need_three_keys() -> None:
    values = {"task_id": "a", "test_index": 0, "grid": [[5]], "model": "another"}
    assert prediction_from_json(values, "here", ARC) == Prediction(
        task_id="a", test_index=0, answer=GridAnswer(as_grid([[5]]))
    )


@pytest.mark.parametrize(
    ("grid", "error"),
    [
        (None, None),
        ([], "empty grid"),
        ([[]], "empty grid"),
        ([[1, 2], [3]], "invalid grid: row 2 has 1 cells where row 1 has 2; all rows of a grid are equally long"),
        ([[10]], "invalid grid: colour 10 at row 1, column 1; colours are 0 to 9"),
        ([[1]] * 31, "invalid grid: 31x1 (rows x columns); a grid has 1 to 30 of each"),
    ],
)
def test_an_invalid_answer_counts_as_none_and_says_why(grid: Any, error: str | None) -> None:
    prediction = prediction_from_json({"task_id": "a", "test_index": 0, "grid": grid}, "here", ARC)
    assert prediction.answer is None
    assert prediction.error == error


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grid": "01\n23"}, "grid is a list of rows of whole numbers, or null for no answer"),
        ({"grid": [["1"]]}, "grid is a list of rows of whole numbers"),
        ({"grid": [[True]]}, "grid is a list of rows of whole numbers"),
        ({"grid": [[0.5]]}, "grid is a list of rows of whole numbers"),
        ({"task_id": 195732}, "task_id=195732: must be text, in quotes"),
        ({"test_index": -1}, "test_index=-1: must be a whole number, at least 0"),
        ({"test_index": 0.0}, "test_index=0.0: must be a whole number, at least 0"),
        ({"test_index": None}, "test_index=null: must be a whole number, counted from 0"),
        ({"logprob": float("nan")}, "logprob=nan: must be a number"),
        ({"logprob": float("-inf")}, "logprob=-inf: must be a number"),
        ({"logprob": 10**400}, "logprob=10+: must be a number"),
        ({"num_tokens": -3}, "num_tokens=-3: must be a whole number, at least 0"),
        ({"text": 5}, "text=5: must be text, or null"),
        ({"transform": []}, r"transform=\[\]: must be an object, or null"),
        ({"scores": -1.0}, r"scores=-1.0: must be a list of numbers, or null"),
        ({"scores": []}, r"scores=\[\]: must be a list of numbers, or null"),
        ({"scores": [-1.0, None]}, r"scores=\[-1.0, None\]: must be a list of numbers, or null"),
        ({"scores": [-1.0, float("nan")]}, r"scores=nan: must be a number"),
        ({"selection": [1]}, r"selection=\[1\]: must be an object, or null"),
    ],
)
def test_a_malformed_prediction_is_refused(change: dict[str, Any], message: str) -> None:
    values = {"task_id": "a", "test_index": 0, "grid": [[1]]} | change
    with pytest.raises(PredictionError, match=f"^file, line 3: {message}"):
        prediction_from_json(values, "file, line 3", ARC)


def test_a_missing_key_is_named() -> None:
    with pytest.raises(PredictionError, match="here: grid is missing; a prediction needs task_id, test_index and grid"):
        prediction_from_json({"task_id": "a", "test_index": 0}, "here", ARC)
    with pytest.raises(PredictionError, match="here: a prediction is an object"):
        prediction_from_json([1], "here", ARC)


def test_a_torn_last_line_is_dropped_only_when_allowed(tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    line = json.dumps(FULL.to_json("grid")) + "\n"
    path.write_text(line + line[:40], encoding="utf-8")
    assert read_predictions(path, ARC, allow_torn=True) == [FULL]
    with pytest.raises(PredictionError, match=r"predictions.jsonl, line 2: the last line is cut off"):
        read_predictions(path, ARC)


def test_a_broken_line_in_the_middle_is_never_dropped(tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    line = json.dumps(FULL.to_json("grid")) + "\n"
    path.write_text(line + line[:40] + "\n" + line, encoding="utf-8")
    with pytest.raises(PredictionError, match=r"predictions.jsonl, line 2: not JSON"):
        read_predictions(path, ARC, allow_torn=True)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(PredictionError, match=r"predictions file .*nothing\.jsonl: No such file"):
        read_predictions(tmp_path / "nothing.jsonl", ARC)


@pytest.mark.parametrize("cut", [1, 10, 60])
def test_appending_after_a_kill_mends_the_file(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "predictions.jsonl"
    line = (json.dumps(FULL.to_json("grid"), ensure_ascii=False) + "\n").encode()
    path.write_bytes(line + line[:-cut])
    with open_for_append(path) as file:
        append_prediction(file, NONE, ARC)
    whole_but_for_the_newline = cut == 1
    assert read_predictions(path, ARC) == [FULL] * (1 + whole_but_for_the_newline) + [NONE]


def test_grouping_keeps_the_order_of_tasks_and_of_predictions() -> None:
    tasks = [one_test_task("b", tests=2), one_test_task("a")]
    first, second, third = (
        Prediction(task_id="b", test_index=index, answer=None, text=text)
        for index, text in [(1, "x"), (0, "y"), (1, "z")]
    )
    other = Prediction(task_id="elsewhere", test_index=9, answer=None)
    groups = group_by_test(tasks, [first, second, other, third])
    assert list(groups.items()) == [(("b", 0), [second]), (("b", 1), [first, third]), (("a", 0), [])]


def test_predictions_for_other_tasks_are_refused() -> None:
    stranger = Prediction(task_id="z", test_index=0, answer=None)
    with pytest.raises(PredictionError, match=r"none of the 1 predictions .*first prediction: task z, first task: a"):
        group_by_test([one_test_task("a")], [stranger])
    with pytest.raises(PredictionError, match=r"task a has test_index=1, but the task has 1 test"):
        group_by_test([one_test_task("a")], [Prediction(task_id="a", test_index=1, answer=None)])


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(PredictionError) as caught:
        read_predictions(tmp_path, ARC)
    assert str(caught.value) == f"predictions file {tmp_path}: is a folder; name the file in it, e.g. predictions.jsonl"
