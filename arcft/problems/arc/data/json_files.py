"""Read task files in JSON; errors name the file, task id, pair and row."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from arcft.json_text import JsonError, parse_json, read_text
from arcft.problems.arc.task import Grid, Pair, Task, TaskError, as_grid, check_id


def read_json(path: Path, entry: str = "") -> Any:
    """The content of a JSON file; an `entry` is what its outermost object is made of. Raises TaskError if it is missing
    or invalid, or repeats a key of an object."""
    try:
        return parse_json(read_text(path), str(path), entry)
    except JsonError as error:
        raise TaskError(str(error)) from None


def read_object(path: Path, content: str, entry: str = "") -> dict[str, Any]:
    """The content of a JSON file that must hold an object, described by `content` in errors. Raises TaskError if it is
    empty."""
    values = read_json(path, entry)
    if not isinstance(values, dict):
        raise TaskError(f"{path}: holds {_kind(values)} where an object {content} is expected")
    if not values:
        raise TaskError(f"{path}: no task in it")
    return values


def read_tasks(path: Path, content: str) -> dict[str, Any]:
    """`read_object` whose keys are ids of tasks. Raises TaskError for one that is refused."""
    values = read_object(path, content, entry="task")
    for task_id in values:
        check_id(task_id, str(path))
    return values


def task_from_json(task_id: str, values: Any, where: str) -> Task:
    """`{train: [{input, output}], test: [{input, output?}]}` as a Task; `where` names the file in a TaskError."""
    where = f"{where}: task {task_id}"
    if not isinstance(values, dict):
        raise TaskError(f"{where} is {_kind(values)}; a task is an object with train and test")
    return Task(
        task_id,
        train=tuple(pairs_from_json(_pair_list(values, "train", where), f"{where}, train pair")),
        test=tuple(pairs_from_json(_pair_list(values, "test", where), f"{where}, test pair", answers=False)),
    )


def pairs_from_json(values: list[Any], where: str, *, answers: bool = True) -> Iterator[Pair]:
    """Pairs from a list of `{input, output}`; with `answers=False` outputs may be missing or null. Errors number pairs
    from 1."""
    for number, value in enumerate(values, 1):
        place = f"{where} {number}"
        if not isinstance(value, dict) or "input" not in value:
            raise TaskError(f"{place}: no input; a pair is an object with input and output")
        output = value.get("output")
        if output is None and answers:
            raise TaskError(f"{place}: no output; only the outputs of tests may be missing")
        yield Pair(
            as_grid(value["input"], where=f"{place}, input"),
            None if output is None else as_grid(output, where=f"{place}, output"),
        )


def answers_from_json(values: Any, count: int, where: str) -> list[Grid]:
    """The grids of a task's entry in a solutions file: one output for each of its `count` tests."""
    if not isinstance(values, list) or len(values) != count:
        found = f"{len(values)} outputs" if isinstance(values, list) else _kind(values)
        raise TaskError(f"{where}: {found} where the task has {count} tests; give a list of one output a test")
    return [as_grid(value, where=f"{where}, test pair {number}, output") for number, value in enumerate(values, 1)]


def _pair_list(values: dict[str, Any], key: str, where: str) -> list[Any]:
    pairs = values.get(key)
    if not isinstance(pairs, list):
        found = f"{key} is {_kind(pairs)}" if key in values else f"no {key}"
        raise TaskError(f"{where}: {found}; a task has lists of pairs, train and test")
    if not pairs:
        raise TaskError(f"{where}: {key} is empty; a task has at least one train and one test pair")
    return pairs


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
