"""A submission has every task of the set, whatever was chosen, skipped or stopped; and submissions are predictions."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from arcft.errors import ArcftError
from arcft.names import file_name
from arcft.problems.arc.data.sources import load_kaggle
from arcft.problems.arc.scoring.submission import check_submission
from arcft.runs.common.signals import Stopped
from arcft.runs.evaluation import predict as predict_module
from arcft.scoring.predictions import PredictionError
from tests.support.evaluate_command import evaluated, predicted, run_json, write_answers
from tests.support.train_command import ids

TINY = ["model=tiny", "inference.max_new_tokens=2"]
EMPTY = {"attempt_1": [[0]], "attempt_2": [[0]]}
PAIR = {"input": [[1, 2], [3, 4]], "output": [[4, 3], [2, 1]]}
ONE, TWO, THREE, FOUR = ([[color]] for color in (1, 2, 3, 4))
SOLUTIONS = {"one": [ONE], "two": [ONE, TWO], "three": [ONE, TWO, THREE], "long": [FOUR], "four": [FOUR, FOUR]}


@pytest.fixture
def challenges(tmp_path: Path) -> Path:
    """Five tasks with one to three tests, of which `long` is long."""
    long = {"input": [[1] * 30] * 30, "output": [[2] * 30] * 30}
    content = {
        task_id: {"train": [long if task_id == "long" else PAIR] * 2, "test": [{"input": [[5]]}] * len(answers)}
        for task_id, answers in SOLUTIONS.items()
    }
    path = tmp_path / "five_challenges.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def solved(challenges: Path) -> Path:
    """The challenges, with their solutions beside them."""
    challenges.with_name("five_solutions.json").write_text(json.dumps(SOLUTIONS), encoding="utf-8")
    return challenges


def data(challenges: Path) -> list[str]:
    return ["data=kaggle", f"data.path={challenges}"]


def submitted(folder: Path, challenges: Path) -> dict[str, list[dict[str, Any]]]:
    submission: dict[str, Any] = json.loads((folder / "submission.json").read_text(encoding="utf-8"))
    check_submission(submission, load_kaggle(challenges))
    assert list(submission) == list(SOLUTIONS)
    return submission


@pytest.mark.parametrize(
    ("chosen", "left"),
    [
        ("data.max_tokens=500", ["one", "two", "three", "four"]),
        ("data.limit=2", None),
        ("data.task_ids=['two','one']", ["two", "one"]),
        ("data.exclude=['three']", ["one", "two", "long", "four"]),
    ],
)
def test_what_was_not_chosen_has_placeholders(
    challenges: Path, tmp_path: Path, chosen: str, left: list[str] | None, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = evaluated(tmp_path / "evaluation", *TINY, *data(challenges), chosen)
    submission = submitted(folder, challenges)
    evaluated_ids = run_json(folder)["evaluated"]
    assert sorted(left or evaluated_ids) == sorted(evaluated_ids)
    assert {one.task_id for one in predicted(folder)} == set(evaluated_ids)
    assert sorted([*evaluated_ids, *run_json(folder)["not_evaluated"]]) == sorted(SOLUTIONS)
    for task_id in SOLUTIONS.keys() - evaluated_ids:
        assert submission[task_id] == [EMPTY] * len(SOLUTIONS[task_id])
    number = 5 - len(evaluated_ids)
    verb = "was" if chosen.startswith("data.max_tokens") else "were"
    assert (
        f"note: {number} of 5 tasks (left out by data=) {verb} not predicted; submission.json has placeholders for them"
    ) in capsys.readouterr().out


def test_ttft_without_time_and_of_some_tasks(challenges: Path, tmp_path: Path) -> None:
    folder = tmp_path / "evaluation"
    overrides = [*TINY, *data(challenges), ids("two", "one"), "ttft=per_task", "ttft.max_steps=2"]
    with pytest.raises(ArcftError, match="no time was left"):
        evaluated(folder, *overrides, "ttft.budget=0.01s")
    assert submitted(folder, challenges) == {task_id: [EMPTY] * len(tests) for task_id, tests in SOLUTIONS.items()}


def test_a_stopped_evaluation_leaves_a_whole_submission_and_goes_on(
    challenges: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real signal arrives while the second test is predicted."""
    append, seen = predict_module.append_prediction, set()

    def signalled(file: Any, prediction: Any, answers: Any) -> None:
        append(file, prediction, answers)
        is_new = (prediction.task_id, prediction.test_index) not in seen
        seen.add((prediction.task_id, prediction.test_index))
        if is_new and len(seen) == 2:
            signal.raise_signal(signal.SIGTERM)

    overrides = ["model=tiny", *data(challenges), ids("one", "three"), "inference.max_new_tokens=null"]
    folder = tmp_path / "evaluation"
    with monkeypatch.context() as patch:
        patch.setattr(predict_module, "append_prediction", signalled)
        with pytest.raises(Stopped):
            evaluated(folder, *overrides)
    stopped = submitted(folder, challenges)
    assert not (folder / "metrics.json").exists()
    whole = submitted(evaluated(folder, *overrides), challenges)
    assert whole == submitted(evaluated(tmp_path / "undisturbed", *overrides), challenges)
    assert stopped == {**whole, "three": [whole["three"][0], EMPTY, EMPTY]}
    assert whole["one"] != [EMPTY]


def test_an_evaluation_that_is_found_again_has_the_submission_of_this_set(
    challenges: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same tasks may be chosen from a larger file."""
    from tests.support.evaluate_command import trained

    run = trained(tmp_path / "run")
    small = tmp_path / "small_challenges.json"
    content = json.loads(challenges.read_text(encoding="utf-8"))
    small.write_text(json.dumps({"two": content["two"], "one": content["one"]}), encoding="utf-8")
    evaluated(tmp_path / "small", f"checkpoint={run}", *data(small))
    again = evaluated(tmp_path / "again", f"checkpoint={run}", *data(challenges), ids("two", "one"))
    assert "already evaluated in" in capsys.readouterr().out
    first = json.loads((tmp_path / "small" / "submission.json").read_text(encoding="utf-8"))
    assert list(first) == ["two", "one"]
    empty = {task_id: [EMPTY] * len(tests) for task_id, tests in SOLUTIONS.items()}
    assert submitted(again, challenges) == {**empty, **first}


def test_predictions_of_some_tests(challenges: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    some = write_answers(tmp_path / "some.jsonl", {("three", 1): [TWO], ("one", 0): [ONE]})
    folder = evaluated(tmp_path / "evaluation", f"predictions={some}", *data(challenges))
    empty = {task_id: [EMPTY] * len(tests) for task_id, tests in SOLUTIONS.items()}
    assert submitted(folder, challenges) == {
        **empty,
        "one": [{"attempt_1": ONE, "attempt_2": [[0]]}],
        "three": [EMPTY, {"attempt_1": TWO, "attempt_2": [[0]]}, EMPTY],
    }
    assert (
        "note: 3 of 5 tasks and 2 tests of 1 other task were not predicted; submission.json has placeholders for them"
    ) in capsys.readouterr().out


def write_submission(path: Path, attempts: dict[str, list[list[Any]]]) -> Path:
    """`attempts` by task, for each test the grids of attempt_1, attempt_2, ..."""
    content = {
        task_id: [{f"attempt_{number}": grid for number, grid in enumerate(grids, 1)} for grids in tests]
        for task_id, tests in attempts.items()
    }
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")
    return path


def test_a_submission_from_elsewhere_is_scored(challenges: Path, tmp_path: Path) -> None:
    elsewhere = write_submission(
        tmp_path / "elsewhere.json",
        {
            "one": [[[[0]], [[0, 0], [0, 0]], ONE]],
            "two": [[[[0]], [[0]]], [None, [[0]]]],
            "three": [[TWO, ONE], [TWO, TWO], [ONE, [[11]], THREE]],
        },
    )
    folder = evaluated(tmp_path / "evaluation", f"predictions={elsewhere}", *data(solved(challenges)))
    found = [(p.task_id, p.test_index, None if p.answer is None else p.answer.to_json()) for p in predicted(folder)]
    assert found == [
        ("one", 0, ONE), ("three", 0, TWO), ("three", 0, ONE), ("three", 1, TWO), ("three", 1, TWO), ("three", 2, ONE),
        ("three", 2, None), ("three", 2, THREE),
    ]  # fmt: skip
    assert [p.error for p in predicted(folder) if p.answer is None] == [
        "invalid grid: colour 11 at row 1, column 1; colours are 0 to 9"
    ]
    assert {task_id: task["vote_2"] for task_id, task in run_json(folder)["tasks"].items()} == {
        "one": 1, "two": 0, "three": 1, "long": 0, "four": 0,
    }  # fmt: skip
    # Its own submission is read as well, and says the same.
    again = evaluated(tmp_path / "again", f"predictions={folder}/submission.json")
    assert submitted(again, challenges) == submitted(folder, challenges)


def test_averages_over_tasks_and_over_tests_are_told_apart(
    challenges: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of nine tests is solved, of a task that has two."""
    monkeypatch.setenv("COLUMNS", "80")
    some = write_answers(tmp_path / "some.jsonl", {("four", 0): [FOUR, FOUR]})
    folder = evaluated(tmp_path / "evaluation", f"predictions={some}", *data(solved(challenges)))
    out = capsys.readouterr().out
    assert "share of, averaged over tasks" in out
    assert ["vote_2", "10.0%", "±", "10.0", "tests"] in [line.split()[:5] for line in out.splitlines()]
    over_tests = "vote_2 over tests: 1 of 9 tests solved, 11.1% (2.0–43%); this is how Kaggle scores"
    assert f"\n{over_tests}\n" in out
    written = run_json(folder)
    assert written["metrics"]["vote_2"] == 0.1
    assert written["metrics_over_tests"]["vote_2"] == 1 / 9
    assert written["tests"] == {
        "number": 9, "solved": 1, "share": 1 / 9, "interval_95": pytest.approx([0.0199, 0.4350], abs=1e-4),
    }  # fmt: skip
    assert written["averages"]["metrics_over_tests"] == "means over all tests; vote_2 is how Kaggle scores"
    assert written["intervals_95"]["vote_2"] == pytest.approx([0.0105, 0.5371], abs=1e-4)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert over_tests.replace("'", "&#39;") in page
    assert "Means over 5 tasks. ± is the standard error over tasks" in page


def test_placeholders_win_no_votes(challenges: Path, tmp_path: Path) -> None:
    empty = write_submission(
        tmp_path / "a.json", {task_id: [[[[0]]] * 4] * len(SOLUTIONS[task_id]) for task_id in SOLUTIONS}
    )
    real = write_answers(tmp_path / "b.jsonl", {("one", 0): [ONE, [[0]]]})
    folder = evaluated(tmp_path / "evaluation", f"predictions=[{empty},{real},{empty}]", *data(challenges))
    # Elsewhere than in a submission, [[0]] is an answer.
    assert submitted(folder, challenges)["one"] == [{"attempt_1": ONE, "attempt_2": [[0]]}]
    assert len(predicted(folder)) == 2


def test_folders_stand_for_the_files_in_them(challenges: Path, tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    write_submission(files / "b.json", {"two": [[ONE], [[[0]]]]})
    write_answers(files / "a.jsonl", {("two", 0): [TWO], ("two", 1): [TWO]})
    (files / "notes.txt").write_text("no predictions", encoding="utf-8")
    first = evaluated(tmp_path / "first", f"predictions={files}", *data(challenges))
    assert submitted(first, challenges)["two"] == [
        {"attempt_1": TWO, "attempt_2": ONE},
        {"attempt_1": TWO, "attempt_2": [[0]]},
    ]
    assert run_json(first)["run"]["predictions"] == [str(files / "a.jsonl"), str(files / "b.json")]
    # An evaluation is its predictions, not these and its submission; and it knows its tasks.
    again = evaluated(tmp_path / "again", f"predictions={first}")
    assert predicted(again) == predicted(first)
    twice = evaluated(tmp_path / "twice", f"predictions={again}")
    assert submitted(twice, challenges) == submitted(first, challenges)
    # A folder of evaluations, one of which has its submission alone.
    both = tmp_path / "both"
    shutil.copytree(first, both / "x")
    (both / "y").mkdir()
    shutil.copyfile(files / "b.json", both / "y" / "submission.json")
    joined = evaluated(tmp_path / "joined", f"predictions={both}", *data(challenges))
    assert submitted(joined, challenges)["two"][0] == {"attempt_1": ONE, "attempt_2": TWO}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("s.json", '{"one": [{"attempt_1": [[1]]}]', "s.json: not valid JSON at line 1, column 31: .* was it cut off?"),
        ("s.json", '{"one": [], "one": []}', "s.json: 'one' is there twice"),
        ("s.json", '{"one": [{"attempt_1": 1, "attempt_1": 2}]}', "s.json: task one: 'attempt_1' is there twice"),
        ("s.json", "{}", "s.json: is neither a file of predictions, with one object a line, nor a submission"),
        ("s.json", '{"one": {"train": []}}', "s.json: is neither a file of predictions"),
        ("s.json", '{"one": [[[1]]]}', "s.json: task one, test 0: a submission has an object of attempt_1, attempt_2"),
        ("s.json", '{"one": [{"attempt_one": [[1]]}]}', "s.json: task one, test 0: a submission has an object of"),
        ("s.json", '{"one": [{"attempt_1": "1"}]}', "s.json: task one, test 0, attempt_1: is no list of rows"),
        ("s.json", '{"one": [{"attempt_1": [[NaN]]}]}', "s.json: task one, test 0, attempt_1: is no list of rows"),
        ("s.json", '{"": [{"attempt_1": [[1]]}]}', "s.json: the task id '' is blank"),
        ("s.json", '{"one": [{}, {"attempt_1": [[1]]}]}', "s.json: task one, test 0: a submission has an object of"),
        ("s.json", "[" * 100_000, "s.json: not valid JSON: its lists or objects are nested too deep"),
        ("s.jsonl", '{"task_id": "one", "test_index": 0}', "s.jsonl, line 1: grid is missing"),
        ("s.jsonl.gz", "\x1f\x8b", r"s.jsonl.gz: is no text|is packed with gzip"),
        ("", "", "holds no predictions.jsonl and no submission, nor does a folder in it; name files"),
    ],
)
def test_what_is_neither_is_refused_before_anything_is_written(
    challenges: Path, tmp_path: Path, name: str, content: str, message: str
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    if name:
        (place / name).write_text(content, encoding="latin-1")
    with pytest.raises(PredictionError, match=message) as caught:
        evaluated(tmp_path / "evaluation", f"predictions={place / name}", *data(challenges))
    assert str(place / name) in str(caught.value)
    assert not (tmp_path / "evaluation").exists()


def test_a_submission_in_utf_16_is_read(challenges: Path, tmp_path: Path) -> None:
    path = write_submission(tmp_path / "s.json", {"one": [[ONE]]})
    path.write_text(path.read_text(encoding="utf-8"), encoding="utf-16")
    folder = evaluated(tmp_path / "evaluation", f"predictions={path}", *data(challenges))
    assert submitted(folder, challenges)["one"][0]["attempt_1"] == ONE


def test_tasks_of_unusual_ids_are_adapted_to_and_kept_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["A", "a", "é", "e\u0301", "x" * 3000, "..", "\x1b[31m[/red]"]
    path = tmp_path / "tasks.json"
    path.write_text(json.dumps({key: {"train": [PAIR, PAIR], "test": [PAIR]} for key in names}), encoding="utf-8")
    overrides = [*TINY, *data(path), "ttft=per_task", "ttft.max_steps=1", "ttft.keep_adapters=true"]
    folder = evaluated(tmp_path / "evaluation", *overrides)
    assert {adapter.name for adapter in (folder / "adapters").iterdir()} == set(map(file_name, names))
    # What is finished is only written anew.
    (folder / "metrics.json").unlink()
    evaluated(folder, *overrides)
    assert list(json.loads((folder / "submission.json").read_text(encoding="utf-8"))) == names
    assert run_json(folder)["evaluated"] == sorted(names)
    assert "\x1b" not in capsys.readouterr().out
