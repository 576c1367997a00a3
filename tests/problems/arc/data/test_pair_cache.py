"""A cache of pairs is read as it was generated; one with anything missing or changed is refused, naming the file."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcft.problems.arc.augment.transforms import Chain, ColorPermutation, Geometric
from arcft.problems.arc.config.data import MixConfig, MixedArckit, MixedPairs
from arcft.problems.arc.data.contamination import overlap
from arcft.problems.arc.data.fingerprint import data_fingerprint
from arcft.problems.arc.data.pair_cache import PackedPairs, is_pair_cache, read_pair_cache
from arcft.problems.arc.data.sources import PairPool, load_arckit, load_pairs
from arcft.problems.arc.task import Pair, Task, TaskError, as_grid
from arcft.runs.contamination import main
from arcft.runs.setup.tasks import load_sources, task_sets
from tests.config.test_config import train_config
from tests.support.re_arc_script import MAKERS, contents, make, re_arc_pairs, re_arc_shards, settings
from tests.support.train_command import QUICK, run_train

WAY_OUT = "run scripts/generate_re_arc.sh on the folder again with the same arguments; it makes only what is missing"


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generated")
    make(folder)
    return folder


@pytest.fixture
def cache(generated: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "cache"
    folder.mkdir()
    for name, content in contents(generated).items():
        (folder / name).write_bytes(content)
    return folder


def test_a_cache_is_read_as_it_was_generated(generated: Path, tmp_path: Path) -> None:
    pools = load_pairs(str(generated), demonstrations=3)
    assert [pool.id for pool in pools] == sorted(MAKERS)
    expected = {}
    for pool in pools:
        pairs, _ = re_arc_pairs.generate(pool.id, MAKERS[pool.id], settings())
        expected[pool.id] = [{"input": given, "output": wanted} for given, wanted in pairs]
        assert list(pool.pairs) == [Pair(as_grid(given), as_grid(wanted)) for given, wanted in pairs]
    # The same as a JSON file of the same pairs, to the bit, and in what is drawn.
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps(expected))
    from_json = load_pairs(path, demonstrations=3)
    assert data_fingerprint(from_json) == data_fingerprint(pools)
    drawn = [[pool.draw(np.random.default_rng(5)) for pool in each] for each in (pools, from_json)]
    assert drawn[0] == drawn[1]
    assert pickle.loads(pickle.dumps(pools)) == pools


grids = st.integers(1, 30).flatmap(
    lambda columns: st.lists(st.lists(st.integers(0, 9), min_size=columns, max_size=columns), min_size=1, max_size=30)
)


@given(st.lists(st.tuples(grids, grids), max_size=4))
def test_packed_pairs_are_those_packed(pairs: list[Any]) -> None:
    expected = [Pair(as_grid(given), as_grid(wanted)) for given, wanted in pairs]
    packed = pack(expected)
    assert (len(packed), list(packed)) == (len(expected), expected)
    assert [packed[index - len(packed)] for index in range(len(packed))] == expected
    assert list(packed[1:]) == expected[1:]
    assert list(packed[::-1]) == expected[::-1]
    with pytest.raises(IndexError):
        packed[len(packed)]
    for index, pair in enumerate(expected):
        views = packed.grids(index)
        assert [view.tolist() for view in views] == [pair.input.tolist(), pair.output.tolist()]  # type: ignore[union-attr]
        assert not any(view.flags.writeable for view in views)
        assert all(view.base is not None for view in views)


def pack(pairs: list[Pair]) -> PackedPairs:
    both = [(pair.input, pair.output) for pair in pairs if pair.output is not None]
    cells = [grid.ravel() for pair in both for grid in pair]
    shapes = np.array([(*given.shape, *wanted.shape) for given, wanted in both], dtype=np.uint8).reshape(-1, 4)
    return PackedPairs(np.concatenate([np.zeros(0, np.int8), *cells]), shapes, where="here")


@pytest.mark.parametrize(
    ("cells", "shapes", "message"),
    [
        ([0, 1], [[1, 1, 1, 2]], "here: 2 cells where the shapes need another number"),
        ([], [[0, 1, 1, 0]], "here: a grid's side outside 1 to 30"),
        ([0] * 32, [[31, 1, 1, 1]], "here: a grid's side outside 1 to 30"),
        ([0, 10], [[1, 1, 1, 1]], "here: a colour outside 0 to 9"),
        ([-1, 0], [[1, 1, 1, 1]], "here: a colour outside 0 to 9"),
        ([0, 0], [[1, 1]], r"here: cells must be int8 and shapes uint8 \[pairs, 4\]"),
    ],
)
def test_what_are_no_grids_is_refused(cells: list[int], shapes: list[list[int]], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        PackedPairs(np.array(cells, dtype=np.int8), np.array(shapes, dtype=np.uint8), where="here")


def test_a_cache_takes_little_memory(generated: Path) -> None:
    for packed in read_pair_cache(generated).values():
        cells = sum(grid.size for index in range(len(packed)) for grid in packed.grids(index))
        # A byte a cell, and a few for each pair's shapes and place.
        assert len(pickle.dumps(packed)) < cells + 12 * len(packed) + 1000


def refusal(folder: Path) -> str:
    with pytest.raises(TaskError) as caught:
        load_pairs(folder, demonstrations=1)
    return str(caught.value)


@pytest.mark.parametrize("place", [0.0, 0.3, 0.6, 0.99])
def test_a_changed_byte_is_refused(cache: Path, place: float) -> None:
    for path in sorted(cache.glob("*.npz")):
        whole = path.read_bytes()
        changed = bytearray(whole)
        changed[int(place * len(whole))] ^= 0x10
        path.write_bytes(changed)
        assert refusal(cache) == f"{path}: was changed: its size or sha256 is not the manifest's; {WAY_OUT}"
        path.write_bytes(whole)
    assert len(load_pairs(cache, demonstrations=1)) == 3


def test_a_missing_or_cut_shard_is_refused(cache: Path) -> None:
    path = cache / "00d62c1b.npz"
    path.write_bytes(path.read_bytes()[:-1])
    assert refusal(cache) == f"{path}: was changed: its size or sha256 is not the manifest's; {WAY_OUT}"
    path.unlink()
    assert refusal(cache) == f"{path}: No such file or directory; the manifest lists it: {WAY_OUT}"
    make(cache)
    assert len(load_pairs(cache, demonstrations=1)) == 3


def test_a_manifest_that_is_missing_torn_or_changed_is_refused(cache: Path) -> None:
    path = cache / "manifest.json"
    text = path.read_text()
    for cut in (0, 1, len(text) // 2, len(text) - 3):
        path.write_text(text[:cut])
        assert refusal(cache).startswith(f"{path}: is damaged: ")
        assert refusal(cache).endswith(WAY_OUT)
    path.write_text(text.replace('"seed": 0', '"seed": 1'))
    assert refusal(cache) == f"{path}: was changed: its sha256 is not the one in it; {WAY_OUT}"
    path.unlink()
    assert is_pair_cache(cache)
    assert refusal(cache).startswith(
        f"{cache}: no complete cache of pairs: manifest.json: No such file or directory; run"
    )


def sealed(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Change a manifest and give it the sha256 of what it says now."""

    def rewrite(folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        change(manifest)
        del manifest["sha256"]
        manifest["sha256"] = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
        (folder / "manifest.json").write_text(json.dumps(manifest))

    return rewrite


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda manifest: manifest.update(format=2),
            "of format 2, where this version reads format 1; generate the cache",
        ),
        (lambda manifest: manifest.update(tasks={}), "lists no task"),
        (lambda manifest: manifest["tasks"]["00d62c1b"].pop("size"), "task 00d62c1b: size is missing or no int"),
        (lambda manifest: manifest["tasks"].update(x=3), "task x: made is missing or no int"),
        (
            lambda manifest: manifest["tasks"]["00d62c1b"].update(file="../x.npz"),
            "task 00d62c1b: ../x.npz is not a plain file name",
        ),
    ],
)
def test_a_manifest_that_this_version_cannot_follow_is_refused(cache: Path, change: Any, message: str) -> None:
    sealed(change)(cache)
    assert refusal(cache).startswith(f"{cache / 'manifest.json'}: {message}")


def test_a_shard_that_holds_something_else_is_refused(cache: Path) -> None:
    path = cache / "00d62c1b.npz"

    def list_as_it_is(manifest: dict[str, Any]) -> None:
        raw = path.read_bytes()
        manifest["tasks"]["00d62c1b"] |= {"size": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}

    np.savez(path, cells=np.array([print], dtype=object), shapes=np.zeros((0, 4), np.uint8))
    sealed(list_as_it_is)(cache)
    assert refusal(cache).startswith(f"{path}: is no shard of pairs: Object arrays cannot be loaded")
    path.write_bytes(b"not an archive")
    sealed(list_as_it_is)(cache)
    assert refusal(cache).startswith(f"{path}: is no shard of pairs: ")
    np.savez(path, cells=np.zeros(2, np.int8), shapes=np.ones((1, 4), np.uint8))
    sealed(list_as_it_is)(cache)
    assert refusal(cache) == f"{path}: 1 pairs where the manifest says 6; {WAY_OUT}"


# As a source of training


def source(folder: Path, **changes: Any) -> MixedPairs:
    return MixedPairs(path=str(folder), **({"demonstrations": 3, "weight": 1.0} | changes))


def mix(folder: Path, **changes: Any) -> MixConfig:
    arc1 = MixedArckit(version="arcagi", split="training", weight=1.0)
    return MixConfig(sources=[arc1, source(folder)], **changes)


def test_a_config_names_a_cache_as_it_names_a_file(generated: Path, tmp_path: Path) -> None:
    options = ("data=folder", "data.name=pairs", f"data.path={generated}", "data.demonstrations=3", "data.held_out=1")
    ((weight, pools),) = load_sources(train_config(*options).data)
    assert weight == 1.0
    assert [pool.id for pool in pools] == sorted(MAKERS)
    assert run_train(tmp_path / "run", *without_tasks(QUICK), *options, "training.max_seq_length=8192") == 0


def without_tasks(options: list[str]) -> list[str]:
    return [option for option in options if not option.startswith("data.")]


def test_a_pool_has_to_have_a_test_beside_the_demonstrations(generated: Path) -> None:
    with pytest.raises(
        TaskError, match=r"00d62c1b|007bbfb7: data.demonstrations=6, but of 6 pairs 1 to 5 can be demon"
    ):
        load_sources(MixConfig(sources=[source(generated, demonstrations=6)]))


def cells(task: Task) -> int:
    return sum(pair.input.size for pair in task.train)


def test_a_held_out_task_takes_the_pool_of_its_type_with_it(generated: Path) -> None:
    real = {task.id: task for task in load_arckit("arcagi", "training")}
    chosen = {"007bbfb7", "00d62c1b", "017c7c7b", "25ff71a9"}
    sets = task_sets(mix(generated, task_ids=sorted(chosen), held_out=2), cells, None)
    # The real tasks are held out, not ones drawn from the pools of their names.
    assert sets.held_out == [real[task.id] for task in sets.held_out]
    assert len(sets.held_out) == 2
    held_out = {task.id for task in sets.held_out}
    assert {item.id for _, items in sets.train for item in items} == chosen - held_out
    pools = {item.id for _, items in sets.train for item in items if isinstance(item, PairPool)}
    assert pools == set(MAKERS) - held_out


def test_a_pool_stays_where_the_task_of_its_type_is_too_long(generated: Path) -> None:
    lengths = {task.id: cells(task) for task in load_arckit("arcagi", "training") if task.id in MAKERS}
    longest = max(lengths, key=lambda task_id: lengths[task_id])
    sets = task_sets(mix(generated, task_ids=sorted(MAKERS)), cells, lengths[longest] - 1)
    assert sets.too_long == [longest]
    tasks = {item.id for _, items in sets.train for item in items if isinstance(item, Task)}
    pools = {item.id for _, items in sets.train for item in items if isinstance(item, PairPool)}
    assert (tasks, pools) == (set(MAKERS) - {longest}, set(MAKERS))


# What a cache shares with other sets


def test_shared_pairs_and_types_are_found(generated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluation = load_arckit("arcagi", "evaluation")
    clean = overlap(load_pairs(generated, demonstrations=1), evaluation)
    assert not clean.found
    # The pools are named after three tasks of ARC-1's training set.
    of_training = overlap(load_pairs(generated, demonstrations=1), load_arckit("arcagi", "training"))
    assert of_training.types == tuple((task_id, task_id) for task_id in sorted(MAKERS))
    assert of_training.share_a_part == ()

    disguise = Chain((Geometric(flip=True, quarter_turns=3), ColorPermutation((3, 1, 0, 2, 4, 5, 9, 7, 8, 6))))
    plain, turned = evaluation[10].train[1], disguise.apply(evaluation[20]).train[0]
    for task_id, pair in (("plain", plain), ("turned", turned), ("40853293", None)):
        made = [as_rows(pair)] if pair is not None else []
        made += re_arc_pairs.generate("00d62c1b", MAKERS["00d62c1b"], settings())[0]
        entry = {"made": len(made), "attempts": len(made), "refused": {}, "given_up": None}
        re_arc_shards.write_shard(tmp_path, task_id, made, entry, settings())
    make(tmp_path, dict.fromkeys(["plain", "turned", "40853293"], MAKERS["00d62c1b"]))

    found = overlap(load_pairs(tmp_path, demonstrations=1), evaluation)
    assert found.pairs_exact == (("plain", evaluation[10].id),)
    assert found.share_a_part == (("plain", evaluation[10].id), ("turned", evaluation[20].id))
    assert found.types == (("40853293", "070dd51e"),)
    assert (found.tasks_exact, found.same) == ((), ())
    backwards = overlap(evaluation, load_pairs(tmp_path, demonstrations=1))
    assert backwards.types == (("070dd51e", "40853293"),)
    assert backwards.share_a_part == tuple(sorted((b, a) for a, b in found.share_a_part))

    assert main([str(tmp_path), "arcagi:evaluation", "--fail"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"a: {tmp_path} (3 pools of 20 pairs)"
    assert lines[-4:] == [
        "tasks sharing a pair, up to symmetry and colours       2     2",
        f"    plain={evaluation[10].id} turned={evaluation[20].id}",
        "pools of the types of tasks there                      1     1",
        "    40853293=070dd51e",
    ]
    assert main([str(generated), "arcagi:evaluation", "--fail"]) == 0
    (tmp_path / "turned.npz").unlink()
    assert main([str(tmp_path), "arcagi:evaluation"]) == 1
    assert f"{tmp_path / 'turned.npz'}: No such file" in capsys.readouterr().err


def as_rows(pair: Pair) -> tuple[Any, Any]:
    assert pair.output is not None
    given, wanted = (tuple(map(tuple, grid.tolist())) for grid in (pair.input, pair.output))
    return given, wanted
