"""Checkpoint folders: sealed, found, verified, rotated, locked."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from arcft.checkpoints import (
    CheckpointError,
    Origin,
    find_checkpoints,
    last_checkpoint,
    lock_run,
    prune,
    read_checkpoint,
    read_run_yaml,
    refuse_damaged,
    remove_leftovers,
    write_checkpoint,
    write_run_yaml,
)
from tests.support.paths import ROOT

ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}
ORIGIN = Origin(base_model="m", base_fingerprint="f", data_fingerprint="d", seed=3)
RUN = {"model": {"name": "m"}, "data": {"task_ids": ["00576224", "5117e062", "855e0971", "007bbfb7"], "limit": None}}


def write(run: Path, step: int, content: bytes = b"weights") -> Path:
    with write_checkpoint(run, step, ORIGIN) as folder:
        (folder / "weights.bin").write_bytes(content)
        write_run_yaml(folder, RUN)
    return run / f"checkpoint-{step}"


def test_a_checkpoint_is_sealed_and_read(tmp_path: Path) -> None:
    path = write(tmp_path, 20)
    checkpoint = read_checkpoint(path)
    assert (checkpoint.step, checkpoint.path, checkpoint.run_config) == (20, path, RUN)
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["files"]["weights.bin"] == {
        "size": 7,
        "sha256": hashlib.sha256(b"weights").hexdigest(),
    }
    assert set(manifest["files"]) == {"weights.bin", "run.yaml"}
    assert {name: manifest[name] for name in ("step", "base_model", "base_fingerprint", "seed")} == {
        "step": 20,
        "base_model": "m",
        "base_fingerprint": "f",
        "seed": 3,
    }
    assert {"python", "torch", "transformers", "peft"} <= manifest["versions"].keys()
    assert checkpoint.digest == read_checkpoint(path).digest
    assert checkpoint.digest != read_checkpoint(write(tmp_path, 21)).digest


def test_an_error_while_writing_leaves_nothing(tmp_path: Path) -> None:
    old = write(tmp_path, 5)

    def fail() -> None:
        with write_checkpoint(tmp_path, 5, ORIGIN) as folder:
            (folder / "weights.bin").write_bytes(b"half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-5"]
    read_checkpoint(old)


def test_a_step_written_again_replaces_the_old_one(tmp_path: Path) -> None:
    write(tmp_path, 5)
    path = write(tmp_path, 5, b"newer")
    assert (path / "weights.bin").read_bytes() == b"newer"
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint-5"]


CRASH = """
import os, sys
from pathlib import Path
from arcft import checkpoints
from tests.support.paths import ROOT
run, moment = Path(sys.argv[1]), sys.argv[2]
origin = checkpoints.Origin(base_model="m", base_fingerprint="f", data_fingerprint="d", seed=3)
if moment == "manifest":
    checkpoints._write_manifest = lambda *arguments: os.kill(os.getpid(), 9)
elif moment == "rename":
    checkpoints.os.rename = lambda *arguments: os.kill(os.getpid(), 9)
with checkpoints.write_checkpoint(run, 9, origin) as folder:
    (folder / "weights.bin").write_bytes(b"x" * 1000)
    if moment == "file":
        os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("moment", ["file", "manifest", "rename"])
def test_a_kill_at_any_moment_leaves_the_older_checkpoint(tmp_path: Path, moment: str) -> None:
    old = write(tmp_path, 5)
    done = subprocess.run([sys.executable, "-c", CRASH, str(tmp_path), moment], env=ENVIRONMENT)
    assert done.returncode == -9
    assert find_checkpoints(tmp_path) == [old]
    assert last_checkpoint(tmp_path) == old
    assert len(list(tmp_path.iterdir())) == 2
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-5"]


def test_only_complete_checkpoints_are_found_in_order_of_steps(tmp_path: Path) -> None:
    paths = [write(tmp_path, step) for step in (100, 9, 20)]
    (tmp_path / "checkpoint-200").mkdir()
    (tmp_path / "checkpoint-x").mkdir()
    assert find_checkpoints(tmp_path) == [paths[1], paths[2], paths[0]]
    assert last_checkpoint(tmp_path) == paths[0]
    assert last_checkpoint(paths[1]) == paths[1]


def test_what_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-7").mkdir()
    with pytest.raises(CheckpointError, match="holds no complete checkpoint"):
        last_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="checkpoint-7: half-written"):
        last_checkpoint(tmp_path / "checkpoint-7")
    with pytest.raises(CheckpointError, match="there is no such folder"):
        last_checkpoint(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"is no complete checkpoint: manifest\.json can't be read"):
        read_checkpoint(tmp_path / "checkpoint-7")


def test_every_changed_byte_is_found(tmp_path: Path) -> None:
    path = write(tmp_path, 5)
    weights = path / "weights.bin"
    weights.write_bytes(b"weightz")
    with pytest.raises(CheckpointError, match=r"weights\.bin: was changed"):
        read_checkpoint(path)
    weights.write_bytes(b"weight")
    with pytest.raises(CheckpointError, match=r"weights\.bin: has 6 bytes, was written with 7"):
        read_checkpoint(path)
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"weights\.bin: is missing"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "not a manifest of format 1"),
        ({"step": "5"}, "step is missing or not of type int"),
        ({"files": {"../x": {"size": 1, "sha256": "0"}}}, r"lists \.\./x, which is not a plain file name"),
        ({"files": {"/etc/passwd": {"size": 1, "sha256": "0"}}}, "not a plain file name"),
        ({"files": {"weights.bin": {"size": 7}}}, "needs size and sha256"),
        ({"files": {}}, r"lists no run\.yaml"),
    ],
)
def test_bad_manifests_are_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = write(tmp_path, 5) / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(path.parent)


@pytest.mark.parametrize("content", ["{", "[]", "\udcff"])
def test_a_damaged_manifest_is_refused(tmp_path: Path, content: str) -> None:
    path = write(tmp_path, 5) / "manifest.json"
    path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        read_checkpoint(path.parent)


@pytest.mark.parametrize(
    ("keep", "best", "left"),
    [(1, None, [4]), (1, 2, [2, 4]), (2, 4, [2, 3, 4]), (9, None, [1, 2, 3, 4]), (2, 7, [3, 4])],
)
def test_rotation_keeps_the_latest_and_the_best(tmp_path: Path, keep: int, best: int | None, left: list[int]) -> None:
    paths = {step: write(tmp_path, step) for step in (1, 2, 3, 4)}
    assert prune(tmp_path, keep, best) == [path for step, path in paths.items() if step not in left]
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"checkpoint-{step}" for step in left]


CRASH_IN_PRUNE = """
import os, sys
from pathlib import Path
from arcft import checkpoints
def removed_by_half(folder):
    (folder / "weights.bin").unlink()
    os.kill(os.getpid(), 9)
checkpoints.shutil.rmtree = removed_by_half
checkpoints.prune(Path(sys.argv[1]), 1, None)
"""


def test_a_kill_while_a_checkpoint_is_removed_leaves_no_half_of_it(tmp_path: Path) -> None:
    write(tmp_path, 5)
    kept = write(tmp_path, 6)
    done = subprocess.run([sys.executable, "-c", CRASH_IN_PRUNE, str(tmp_path)], env=ENVIRONMENT)
    assert done.returncode == -9
    assert find_checkpoints(tmp_path) == [kept]
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-6"]


CRASH_IN_RUN_YAML = """
import os, pathlib, sys
from arcft import checkpoints
def written_by_half(path, text, **options):
    with open(path, "w") as file:
        file.write(text[: len(text) // 2])
    os.kill(os.getpid(), 9)
pathlib.Path.write_text = written_by_half
checkpoints.write_run_yaml(pathlib.Path(sys.argv[1]), {"arcft": "later"})
"""


def test_a_kill_while_run_yaml_is_written_leaves_the_earlier_one(tmp_path: Path) -> None:
    write_run_yaml(tmp_path, RUN)
    done = subprocess.run([sys.executable, "-c", CRASH_IN_RUN_YAML, str(tmp_path)], env=ENVIRONMENT)
    assert done.returncode == -9
    assert read_run_yaml(tmp_path) == RUN


def test_everything_is_on_the_disk_before_a_checkpoint_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, rename = os.fsync, os.rename

    def noted_fsync(descriptor: int) -> None:
        done.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name.partition("-")[0])
        fsync(descriptor)

    def noted_rename(old: Path, new: Path) -> None:
        done.append("rename")
        rename(old, new)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "rename", noted_rename)
    write(tmp_path, 5)
    before, after = done[: done.index("rename")], done[done.index("rename") + 1 :]
    assert {"weights.bin", "run.yaml", "manifest.json", ".checkpoint"} == set(before)
    assert before[-1] == ".checkpoint"
    assert after == [tmp_path.name.partition("-")[0]]


def test_ids_that_look_like_numbers_survive_every_yaml_reader(tmp_path: Path) -> None:
    write_run_yaml(tmp_path, RUN | {"name": "ñò: |"})
    assert read_run_yaml(tmp_path) == read_run_yaml(tmp_path / "run.yaml") == RUN | {"name": "ñò: |"}
    text = (tmp_path / "run.yaml").read_text()
    for task_id in ("00576224", "5117e062", "855e0971"):
        assert f"'{task_id}'" in text
    from omegaconf import OmegaConf

    assert OmegaConf.to_container(OmegaConf.load(tmp_path / "run.yaml"))["data"] == RUN["data"]


@pytest.mark.parametrize("text", ["a: [", "- 1", "!!python/object/apply:os.system ['true']"])
def test_a_bad_run_yaml_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(CheckpointError, match=r"run\.yaml"):
        read_run_yaml(tmp_path)
    assert issubclass(yaml.constructor.ConstructorError, yaml.YAMLError)


def test_a_changed_run_yaml_is_told_with_the_way_out(tmp_path: Path) -> None:
    write_run_yaml(tmp_path, RUN)
    path = tmp_path / "run.yaml"
    text = path.read_text()
    path.write_text(text.replace("name: m", "name: n"))
    with pytest.raises(CheckpointError) as caught:
        read_run_yaml(tmp_path)
    assert str(caught.value) == (
        f"{path}: was changed after it was written, or is damaged; put back a copy of it. To use a change of yours, "
        "delete its line sha256"
    )
    copy = write(tmp_path, 4) / "run.yaml"
    with pytest.raises(CheckpointError, match=rf"or is damaged; copy {copy} over it\. To use"):
        read_run_yaml(tmp_path)
    lines = text.replace("name: m", "name: n").splitlines(keepends=True)
    path.write_text("".join(line for line in lines if not line.startswith("sha256")))
    assert read_run_yaml(tmp_path)["model"] == {"name": "n"}


def test_damage_anywhere_in_a_run_yaml_is_told_or_changes_nothing(tmp_path: Path) -> None:
    content = {"arcft": "0.2.0", "job": "train", **RUN}
    write_run_yaml(tmp_path, content)
    path = tmp_path / "run.yaml"
    original = path.read_bytes()
    told = 0
    for place in range(len(original)):
        for bad in (
            original[:place],
            original[:place] + bytes([original[place] ^ 1 << place % 8]) + original[place + 1 :],
        ):
            path.write_bytes(bad)
            try:
                stored = read_run_yaml(path)
                # Cut off after its first line, it names no job, and is no run of any kind.
                assert {name: stored.get(name) for name in content} == content or stored.keys() == {"arcft"}
            except CheckpointError:
                told += 1
    assert told > len(original)


def test_the_checkpoint_to_resume_from_is_verified(tmp_path: Path) -> None:
    refuse_damaged(tmp_path)
    write(tmp_path, 5)
    later = write(tmp_path, 6)
    refuse_damaged(tmp_path)
    (later / "weights.bin").write_bytes(b"weightz")
    with pytest.raises(CheckpointError, match="without checkpoint-6, the run resumes from checkpoint-5; rename or"):
        refuse_damaged(tmp_path)
    later.rename(tmp_path / "away")
    (tmp_path / "checkpoint-5" / "run.yaml").unlink()
    with pytest.raises(CheckpointError, match="without checkpoint-5, the run resumes from the beginning"):
        refuse_damaged(tmp_path)


def test_a_run_has_one_owner(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with (
        lock_run(run),
        pytest.raises(CheckpointError, match=rf"{run}: in use by another process \(process {os.getpid()} on"),
        lock_run(run),
    ):
        pass
    with lock_run(run):
        pass


def test_reading_checkpoints_needs_no_torch() -> None:
    program = "import sys, arcft.checkpoints; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, env=ENVIRONMENT)
