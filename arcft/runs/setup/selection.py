"""Select items of a set by id and number, and split off the held-out part."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from arcft.json_text import JsonError, read_text
from arcft.protocols import Problem, ProblemError, ProblemPool

ItemT = TypeVar("ItemT", bound=Problem | ProblemPool)

QUOTING = "YAML reads some ids as numbers, so quote each: \"{key}=['007bbfb7']\""

MOST_EXPLAINED = 10
"""Unknown ids that a message explains one by one; a wrong file may hold thousands."""

MOST_COMPARED = 3_000
"""Ids among which the nearest are looked for; comparing takes about 20 microseconds each."""


def select_tasks(
    tasks: Sequence[ItemT], *, task_ids: list[str] | str | None, limit: int | None, seed: int
) -> list[ItemT]:
    """The tasks named by `task_ids` (a list, or a text file of one id a line), in that order, then at most `limit`.

    `limit` keeps the first of a seeded shuffle, so that a larger limit with the same seed only adds tasks; their order
    does not change. Raises ProblemError for an unknown id, with the nearest ones.
    """
    chosen = list(tasks)
    if task_ids is not None:
        by_id = {task.id: task for task in tasks}
        wanted = read_ids("data.task_ids", task_ids, by_id)
        if not wanted:
            raise ProblemError(f"data.task_ids={task_ids}: names no task; give at least one id, or null for all tasks")
        unknown = [task_id for task_id in wanted if task_id not in by_id]
        if unknown:
            raise ProblemError(_unknown_ids("data.task_ids", unknown, by_id))
        chosen = [by_id[task_id] for task_id in dict.fromkeys(wanted)]
    if limit is not None and limit < len(chosen):
        if limit < 1:
            raise ProblemError(f"data.limit={limit}: at least 1, or null for all tasks")
        chosen = [chosen[index] for index in sorted(_shuffled(len(chosen), seed)[:limit])]
    return chosen


def excluded_ids(exclude: list[str] | str, known: Iterable[str]) -> set[str]:
    """The ids that `exclude` names, a list or a text file with one id per line; unknown ids are allowed.

    Raises ProblemError for a value that YAML may have made of one of the `known` ids, which would otherwise stay.
    """
    known = set(known)
    ids = set(read_ids("data.exclude", exclude, known))
    numbers = _Numbers(known)
    misread = [task_id for task_id in sorted(ids - known) if numbers.meant(task_id)]
    if misread:
        raise ProblemError(_unknown_ids("data.exclude", misread, known))
    return ids


def split_held_out(tasks: Sequence[ItemT], held_out: float, seed: int) -> tuple[list[ItemT], list[ItemT]]:
    """Split into (train, held out); `held_out` is a share below 1 or a number of tasks, chosen by a seeded shuffle.

    A share above 0 keeps at least one task. Both lists keep the order of `tasks`. Raises ProblemError if nothing would
    be left to train on.
    """
    count = max(1, round(held_out * len(tasks))) if 0 < held_out < 1 else int(held_out)
    if count < 0 or count >= len(tasks):
        raise ProblemError(
            f"data.held_out={held_out:g} of {len(tasks)} tasks leaves {max(0, len(tasks) - count)} to train on; "
            "lower it, choose more tasks, or set data.held_out=0"
        )
    kept = set(_shuffled(len(tasks), seed)[:count].tolist())
    train = [task for index, task in enumerate(tasks) if index not in kept]
    return train, [task for index, task in enumerate(tasks) if index in kept]


def read_ids(key: str, ids: list[str] | str, known: Iterable[str]) -> list[str]:
    """The list itself, or the lines of the text file that it names; errors start with `key`."""
    if not isinstance(ids, str):
        return ids
    try:
        lines = read_text(Path(ids)).splitlines()
    except JsonError:
        if Path(ids).name in known:
            raise ProblemError(f"{key}={ids}: is an id; write it as a list: \"{key}=['{Path(ids).name}']\"") from None
        raise ProblemError(f"{key}={ids}: no such text file; give a list of ids or a file of one id a line") from None
    return [line.strip() for line in lines if line.strip()]


def _unknown_ids(key: str, ids: Sequence[str], known: Iterable[str]) -> str:
    """A line for each of the first `ids`, and how many more there are."""
    known = list(known)
    numbers = _Numbers(known)
    lines = [_unknown_id(key, task_id, known, numbers) for task_id in ids[:MOST_EXPLAINED]]
    if len(ids) > MOST_EXPLAINED:
        lines.append(f"{key}: {len(ids) - MOST_EXPLAINED:,} more ids are no task's")
    return "\n".join(lines)


def _unknown_id(key: str, task_id: str, known: Sequence[str], numbers: _Numbers) -> str:
    if _number(task_id) is not None:
        same = numbers.meant(task_id)
        meant = f" (it may be {' or '.join(same[:3])})" if same else ""
        elsewhere = "" if same else "; if it was quoted, the task is in another set or split"
        quoting = QUOTING.format(key=key)
        return f"{key}: {task_id} is the text of a number, and no task's id{meant}; {quoting}{elsewhere}"
    near = difflib.get_close_matches(task_id, known[:MOST_COMPARED], n=3, cutoff=0.0)
    return f"{key}: no task has the id {task_id!r}; the nearest are {', '.join(near)}"


class _Numbers:
    """Ids by the numbers that YAML may have read them as."""

    def __init__(self, ids: Iterable[str]) -> None:
        self._ids: dict[float, set[str]] = {}
        for task_id in ids:
            for number in (_number(task_id), _octal(task_id)):
                if number is not None:
                    self._ids.setdefault(number, set()).add(task_id)

    def meant(self, task_id: str) -> list[str]:
        """The ids that YAML may have read as the number whose text is `task_id`."""
        number = _number(task_id)
        return [] if number is None else sorted(self._ids.get(number, ()))


def _number(text: str) -> float | None:
    """The number that YAML may make of an id: 5117e062 is 5.117e+65."""
    try:
        return float(text)
    except ValueError:
        return None


def _octal(text: str) -> float | None:
    """The number that YAML 1.1 makes of digits after a zero: 00576224 is 195732."""
    try:
        return float(int(text, 8)) if text.startswith("0") else None
    except ValueError:
        return None


def _shuffled(length: int, seed: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).permutation(length)
