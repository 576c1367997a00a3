"""Transforms are undone exactly, and reach everything they should."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arcft.problems.arc.augment.operations import GridOperation, Mirror, Padding, Upscale
from arcft.problems.arc.augment.transforms import (
    SYMMETRIES,
    Chain,
    ColorPermutation,
    Composition,
    Geometric,
    Identity,
    PairOrder,
    SwapTrainTest,
    Transform,
    deal_transforms,
    draw_transform,
)
from arcft.problems.arc.task import Grid, Pair, Task, TaskError, as_grid

TRAINING: dict[str, Any] = {
    "geometric": True,
    "colors": True,
    "permute_background": 0.1,
    "pair_order": True,
    "swap_train_test": True,
    "composition": 0.5,
    "composition_weights": {"geometric": 1, "padding": 2, "upscale": 4, "mirror": 4},
}
EXAMPLE = as_grid([[0, 1, 2], [3, 4, 5]])


def make_grid(rng: np.random.Generator, largest: int = 30) -> Grid:
    return as_grid(rng.integers(0, 10, size=rng.integers(1, largest + 1, size=2)))


def make_task(rng: np.random.Generator, *, train: int = 3, test: int = 2, largest: int = 30) -> Task:
    pairs = [Pair(make_grid(rng, largest), make_grid(rng, largest)) for _ in range(train + test)]
    return Task("made", tuple(pairs[:train]), tuple(pairs[train:]))


seeds = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize(
    ("flip", "quarter_turns", "rows"),
    [
        (False, 0, [[0, 1, 2], [3, 4, 5]]),
        (False, 1, [[2, 5], [1, 4], [0, 3]]),
        (False, 2, [[5, 4, 3], [2, 1, 0]]),
        (False, 3, [[3, 0], [4, 1], [5, 2]]),
        (True, 0, [[2, 1, 0], [5, 4, 3]]),
        (True, 1, [[0, 3], [1, 4], [2, 5]]),
        (True, 2, [[3, 4, 5], [0, 1, 2]]),
        (True, 3, [[5, 2], [4, 1], [3, 0]]),
    ],
)
def test_the_eight_symmetries(flip: bool, quarter_turns: int, rows: list[list[int]]) -> None:
    task = Task("a", (Pair(EXAMPLE, EXAMPLE),), (Pair(EXAMPLE),))
    turned = Geometric(flip, quarter_turns).apply(task)
    assert turned.train[0].input.tolist() == rows
    assert turned.train[0].output is not None
    assert turned.train[0].output.tolist() == rows
    assert turned.test[0].input.tolist() == rows
    assert turned.test[0].output is None
    assert turned.id == "a"


def test_the_symmetries_are_eight_and_the_identity_comes_first() -> None:
    assert SYMMETRIES[0] == Geometric(flip=False, quarter_turns=0)
    assert len({as_grid(symmetry.on_grid(EXAMPLE)).tobytes() for symmetry in SYMMETRIES}) == 8


@pytest.mark.parametrize(
    ("operation", "rows"),
    [
        (Padding(1, 7), [[7, 7, 7, 7], [7, 1, 2, 7], [7, 7, 7, 7]]),
        (Upscale(2), [[1, 1, 2, 2], [1, 1, 2, 2]]),
        (Mirror("right"), [[1, 2, 2, 1]]),
        (Mirror("down"), [[1, 2], [1, 2]]),
        (Mirror("both"), [[1, 2, 2, 1], [1, 2, 2, 1]]),
        (Geometric(flip=False, quarter_turns=1), [[2], [1]]),
    ],
)
def test_a_composition_changes_one_side(operation: GridOperation, rows: list[list[int]]) -> None:
    grid = as_grid([[1, 2]])
    task = Task("a", (Pair(grid, grid),), (Pair(grid),))
    on_inputs = Composition("input", operation).apply(task)
    assert on_inputs == Task("a", (Pair(as_grid(rows), grid),), (Pair(as_grid(rows)),))
    on_outputs = Composition("output", operation).apply(task)
    assert on_outputs == Task("a", (Pair(grid, as_grid(rows)),), (Pair(grid),))
    with pytest.raises(TaskError, match="composition makes another puzzle"):
        Composition("output", operation).invert(grid)


@settings(max_examples=60)
@given(seeds)
def test_invert_undoes_apply_on_every_test_output(seed: int) -> None:
    rng = np.random.default_rng(seed)
    task = make_task(rng)
    options = {**TRAINING, "swap_train_test": False, "composition": 0.0, "permute_background": 0.5}
    transform = draw_transform(task, rng, **options)
    for original, changed in zip(task.test, transform.apply(task).test, strict=True):
        assert changed.output is not None
        assert np.array_equal(transform.invert(changed.output), original.output)  # type: ignore[arg-type]
        assert np.array_equal(transform.invert(changed.input), original.input)


@settings(max_examples=60)
@given(st.permutations(range(10)), st.booleans(), st.integers(0, 3), seeds)
def test_a_chain_applies_in_order_and_inverts_in_reverse(mapping: list[int], flip: bool, turns: int, seed: int) -> None:
    task = make_task(np.random.default_rng(seed))
    first, second = Geometric(flip, turns), ColorPermutation(tuple(mapping))
    chain = Chain((first, second, Geometric(not flip, turns)))
    changed = chain.apply(task)
    assert changed == Geometric(not flip, turns).apply(second.apply(first.apply(task)))
    for original, turned in zip(task.train, changed.train, strict=True):
        assert np.array_equal(chain.invert(turned.input), original.input)


@given(st.integers(1, 4), st.integers(1, 3), st.data())
def test_every_pair_can_become_any_test(train: int, test: int, data: st.DataObject) -> None:
    task = make_task(np.random.default_rng(0), train=train, test=test, largest=5)
    pool = task.train + task.test
    source = data.draw(st.integers(0, len(pool) - 1))
    target = data.draw(st.integers(0, test - 1))
    order = [index for index in range(len(pool)) if index != source]
    order.insert(train + target, source)
    swapped = SwapTrainTest(tuple(order)).apply(task)
    assert swapped.test[target] == pool[source]
    assert (len(swapped.train), len(swapped.test)) == (train, test)
    assert Counter(swapped.train + swapped.test) == Counter(pool)
    assert SwapTrainTest(tuple(order)).invert(pool[0].input) is pool[0].input


def test_drawn_swaps_make_every_pair_the_test_equally_often() -> None:
    rng = np.random.default_rng(0)
    task = make_task(rng, train=3, test=2)
    only_swap = {**TRAINING, "geometric": False, "colors": False, "pair_order": False, "composition": 0.0}
    tests = Counter(pair for _ in range(2000) for pair in draw_transform(task, rng, **only_swap).apply(task).test)
    assert set(tests) == set(task.train + task.test)
    assert all(720 < count < 880 for count in tests.values())


@settings(max_examples=60, deadline=None)
@given(seeds, st.sampled_from([4, 10, 16, 30]))
def test_whatever_is_drawn_is_a_valid_task_and_plain_data(seed: int, largest: int) -> None:
    rng = np.random.default_rng(seed)
    task = make_task(rng, largest=largest)
    transform = draw_transform(task, rng, **{**TRAINING, "composition": 1.0})
    changed = transform.apply(task)
    assert (len(changed.train), len(changed.test)) == (len(task.train), len(task.test))
    plain = transform.to_dict()
    assert json.loads(json.dumps(plain)) == plain


@given(seeds)
def test_unknown_outputs_survive_and_are_not_swapped(seed: int) -> None:
    rng = np.random.default_rng(seed)
    known = make_task(rng, largest=6)
    task = Task("made", known.train, (known.test[0], Pair(known.test[1].input)))
    changed = draw_transform(task, rng, **{**TRAINING, "composition": 1.0}).apply(task)
    assert [pair.output is None for pair in changed.test] == [False, True]


def test_drawing_is_a_pure_function_of_the_generator() -> None:
    task = make_task(np.random.default_rng(1))
    draws = [draw_transform(task, np.random.default_rng(2), **TRAINING) for _ in range(2)]
    assert draws[0] == draws[1]
    switched_off = dict.fromkeys(("geometric", "colors", "pair_order", "swap_train_test"), False)
    options = {**TRAINING, **switched_off, "composition": 0.0}
    assert draw_transform(task, np.random.default_rng(2), **options) == Identity()


def test_the_background_takes_part_with_its_probability() -> None:
    task = make_task(np.random.default_rng(0))
    switched_off = dict.fromkeys(("geometric", "pair_order", "swap_train_test"), False)
    for probability, moved in ((0.0, 0), (1.0, 900)):
        options = {**TRAINING, **switched_off, "composition": 0.0, "permute_background": probability}
        rng = np.random.default_rng(0)
        drawn = [draw_transform(task, rng, **options) for _ in range(1000)]
        background = [part.mapping[0] for part in drawn if isinstance(part, ColorPermutation)]
        assert len(background) == 1000
        assert sum(color != 0 for color in background) == pytest.approx(moved, abs=30 if moved else 0)


def test_compositions_are_drawn_by_weight_and_only_where_they_fit() -> None:
    def compositions(task: Task, weights: dict[str, float], count: int = 1100) -> Counter[str]:
        switched_off = dict.fromkeys(("geometric", "colors", "pair_order", "swap_train_test"), False)
        options = {**TRAINING, **switched_off, "composition": 1.0, "composition_weights": weights}
        rng = np.random.default_rng(0)
        drawn = [draw_transform(task, rng, **options) for _ in range(count)]
        return Counter(part.operation.name if isinstance(part, Composition) else part.name for part in drawn)

    small = make_task(np.random.default_rng(0), largest=4)
    counts = compositions(small, {"geometric": 1, "padding": 2, "upscale": 4, "mirror": 4})
    for name, expected in {"geometric": 100, "padding": 200, "upscale": 400, "mirror": 400}.items():
        assert counts[name] == pytest.approx(expected, abs=60)
    assert sum(counts.values()) == 1100

    full = Pair(as_grid(np.zeros((30, 30), dtype=np.int8)), as_grid(np.zeros((30, 30), dtype=np.int8)))
    largest = Task("full", (full,), (full,))
    assert compositions(largest, {"padding": 1, "upscale": 1, "mirror": 1}, 50) == {"identity": 50}
    assert compositions(largest, {"geometric": 1}, 50) == {"geometric": 50}
    with pytest.raises(TaskError, match=r"composition_weights\.shear: one of geometric, padding, upscale, mirror"):
        compositions(small, {"shear": 1.0}, 1)


def test_compositions_change_either_side_by_any_symmetry_but_the_identity() -> None:
    only_compositions = dict.fromkeys(("geometric", "colors", "pair_order", "swap_train_test"), False)
    options = {**TRAINING, **only_compositions, "composition": 1.0, "composition_weights": {"geometric": 1.0}}
    task, rng = make_task(np.random.default_rng(0), largest=4), np.random.default_rng(0)
    drawn = Counter(draw_transform(task, rng, **options) for _ in range(1400))
    assert drawn.keys() == {Composition(side, symmetry) for side in ("input", "output") for symmetry in SYMMETRIES[1:]}
    assert all(count == pytest.approx(100, abs=40) for count in drawn.values())


@pytest.mark.parametrize("count", [1, 7, 8, 9, 20])
def test_symmetries_are_dealt_round_robin(count: int) -> None:
    task = make_task(np.random.default_rng(0))
    dealt = deal_transforms(task, count, np.random.default_rng(0), geometric=True, colors=True, pair_order=True)
    assert len(dealt) == count
    assert dealt[0] == Identity()
    for index, transform in enumerate(dealt[1:], 1):
        parts = transform.transforms if isinstance(transform, Chain) else (transform,)
        symmetry = [part for part in parts if isinstance(part, Geometric)] or [SYMMETRIES[0]]
        assert symmetry == [SYMMETRIES[index % 8]]
        (colors,) = (part for part in parts if isinstance(part, ColorPermutation))
        assert colors.mapping[0] == 0
        (order,) = (part for part in parts if isinstance(part, PairOrder))
        assert sorted(order.order) == [0, 1, 2]
    longer = deal_transforms(task, count + 5, np.random.default_rng(0), geometric=True, colors=True, pair_order=True)
    assert longer[:count] == dealt


def test_dealing_nothing_deals_identities() -> None:
    task = make_task(np.random.default_rng(0))
    dealt = deal_transforms(task, 3, np.random.default_rng(0), geometric=False, colors=False, pair_order=False)
    assert dealt == [Identity()] * 3
    only_geometric = deal_transforms(task, 9, np.random.default_rng(0), geometric=True, colors=False, pair_order=False)
    assert only_geometric == [Identity(), *SYMMETRIES[1:], Identity()]


def test_what_a_transform_looks_like_in_a_file() -> None:
    chain = Chain((Geometric(flip=True, quarter_turns=3), Composition("input", Padding(2, 0)), PairOrder((1, 0))))
    plain = {
        "name": "chain",
        "transforms": [
            {"name": "geometric", "flip": True, "quarter_turns": 3},
            {"name": "composition", "side": "input", "operation": {"name": "padding", "size": 2, "color": 0}},
            {"name": "pair_order", "order": [1, 0]},
        ],
    }
    assert chain.to_dict() == plain
    assert Identity().to_dict() == {"name": "identity"}


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (Geometric, (1, 0), "geometric.flip=1: true or false"),
        (Geometric, (False, 4), "geometric.quarter_turns=4: a whole number from 0 to 3"),
        (ColorPermutation, ([0] * 10,), f"colors.mapping={[0] * 10}: each of 0 to 9 once"),
        (PairOrder, (5,), "pair_order.order=5: a list of whole numbers"),
        (PairOrder, ([0, "a"],), "pair_order.order=[0, 'a']: a list of whole numbers"),
        (PairOrder, ([0, 2],), "pair_order.order=[0, 2]: each of 0 to 1 once"),
        (Mirror, ("up",), "mirror.direction='up': one of"),
        (Chain, ([Upscale(2)],), "chain.transforms: Upscale(factor=2) is not a transform of tasks"),
        (Composition, ("left", Upscale(2)), "composition.side='left': one of input, output"),
        (
            Composition,
            ("input", Identity()),
            "composition.operation=Identity(): geometric, padding, upscale or mirror",
        ),
    ],
)
def test_a_transform_that_makes_no_sense_is_refused(kind: type, values: tuple[Any, ...], message: str) -> None:
    with pytest.raises(TaskError) as caught:
        kind(*values)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (PairOrder((1, 0)), "pair_order.order has 2 entries where task made has 3 demonstrations"),
        (SwapTrainTest((1, 0)), "swap_train_test.order has 2 entries where task made has 5 pairs"),
        (Composition("input", Padding(1, 0)), "input: 32x32 (rows x columns)"),
    ],
)
def test_a_transform_that_does_not_fit_its_task_is_refused(transform: Transform, message: str) -> None:
    pairs = (Pair(as_grid(np.ones((30, 30), dtype=np.int8)), EXAMPLE),) * 5
    with pytest.raises(TaskError) as caught:
        transform.apply(Task("made", pairs[:3], pairs[3:]))
    assert str(caught.value).startswith(message)


def test_a_swap_needs_every_answer() -> None:
    pair = Pair(EXAMPLE, EXAMPLE)
    with pytest.raises(TaskError, match="a test output is not known; swap_train_test needs every one"):
        SwapTrainTest((1, 0)).apply(Task("made", (pair,), (Pair(EXAMPLE),)))
