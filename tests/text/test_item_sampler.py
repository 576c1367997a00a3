"""Items are drawn reproducibly from weighted sources."""

from __future__ import annotations

import pickle
from collections import Counter

import numpy as np
import pytest

from arcft.problems.arc.task import Pair, Task, as_grid
from arcft.protocols import ProblemError
from arcft.text.item_sampler import ItemSampler


def tasks_called(*ids: str) -> list[Task]:
    pair = Pair(as_grid([[1]]), as_grid([[2]]))
    return [Task(task_id, (pair,), (pair,)) for task_id in ids]


def test_one_source_is_passed_through_again_and_again() -> None:
    tasks = tasks_called("a", "b", "c", "d", "e")
    sampler = ItemSampler([(1.0, tasks)], seed=0)
    ids = [sampler.item(k).id for k in range(50)]
    passes = [ids[start : start + 5] for start in range(0, 50, 5)]
    assert all(sorted(one) == ["a", "b", "c", "d", "e"] for one in passes)
    assert len({tuple(one) for one in passes}) > 5
    again = ItemSampler([(1.0, tasks)], seed=0)
    assert [again.item(k).id for k in reversed(range(50))] == ids[::-1]
    assert [ItemSampler([(1.0, tasks)], seed=1).item(k).id for k in range(50)] != ids


def test_several_sources_are_drawn_by_weight() -> None:
    sampler = ItemSampler([(3.0, tasks_called("a", "b")), (1.0, tasks_called("c"))], seed=0)
    counts = Counter(sampler.item(k).id for k in range(4000))
    for task_id, expected in {"a": 1500, "b": 1500, "c": 1000}.items():
        assert counts[task_id] == pytest.approx(expected, abs=120)
    copy = pickle.loads(pickle.dumps(sampler))
    assert [copy.item(k).id for k in range(99, -1, -1)] == [sampler.item(k).id for k in range(100)][::-1]


def test_the_sampler_is_not_in_step_with_generators_seeded_alike() -> None:
    tasks = tasks_called(*(f"{number:03}" for number in range(200)))
    sampler = ItemSampler([(1.0, tasks), (1.0, tasks)], seed=0)
    halves = [np.random.default_rng((0, k, 0)).random() < 0.5 for k in range(400)]
    low = [int(sampler.item(k).id) for k in range(400)]
    correlation = np.corrcoef(halves, low)[0, 1]
    assert abs(correlation) < 0.15


def test_a_sampler_needs_tasks_and_weights() -> None:
    with pytest.raises(ProblemError, match="no task to draw from"):
        ItemSampler([], seed=0)
    with pytest.raises(ProblemError, match="no task to draw from"):
        ItemSampler([(1.0, [])], seed=0)
    with pytest.raises(ProblemError, match=r"weights of sources \[1\.0, 0\.0\]: each must be above 0"):
        ItemSampler([(1.0, tasks_called("a")), (0.0, tasks_called("b"))], seed=0)
