"""Checkpoint folders: complete or ignored, with every byte verified.

A checkpoint is written into a hidden sibling, flushed to disk and renamed to `checkpoint-STEP`, so that a crash at any
moment leaves older checkpoints intact. `manifest.json` is written last and lists every file with its size and sha256,
and its own sha256. Does not import torch, because checkpoints are verified before anything is loaded.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import yaml

from arcft.errors import ArcftError
from arcft.files import file_sha256, flush_to_disk, manifest_sha256, write_json, write_text

MANIFEST_FILE = "manifest.json"
RUN_FILE = "run.yaml"
LOCK_FILE = ".lock"
PREFIX = "checkpoint-"

_FORMAT = 1
_PACKAGES = ("arcft", "torch", "transformers", "peft", "accelerate", "tokenizers", "safetensors", "numpy")
_HIDDEN = re.compile(r"\.checkpoint-\d+\.(partial|replaced|removed)-\d+")


class CheckpointError(ArcftError):
    """A checkpoint or run folder that is missing, incomplete, damaged or in use."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Origin:
    """The provenance of a checkpoint, as recorded in its manifest."""

    base_model: str
    """The base model's id: the value of model.path."""

    base_fingerprint: str
    data_fingerprint: str
    seed: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A complete, verified checkpoint."""

    path: Path
    step: int
    run_config: dict[str, Any]
    """The content of run.yaml; data, not yet validated."""

    manifest: dict[str, Any]
    digest: str
    """sha256 of manifest.json, which covers every file: checkpoints with equal digests are identical."""


@contextmanager
def write_checkpoint(run_folder: Path, step: int, origin: Origin) -> Iterator[Path]:
    """Yield a temporary folder for the files of a checkpoint; on leaving, seal it as `checkpoint-STEP`.

    On an exception the folder is removed and nothing else changes; after a crash `remove_leftovers` removes it.
    """
    run_folder.mkdir(parents=True, exist_ok=True)
    target = run_folder / f"{PREFIX}{step}"
    partial = _hidden(target, "partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        _write_manifest(partial, step, origin)
        for path in partial.iterdir():
            flush_to_disk(path)
        flush_to_disk(partial)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    replaced = _hidden(target, "replaced")
    if target.exists():
        os.rename(target, replaced)
    os.rename(partial, target)
    flush_to_disk(run_folder)
    shutil.rmtree(replaced, ignore_errors=True)


def find_checkpoints(run_folder: Path) -> list[Path]:
    """The complete checkpoints of a run, by step."""
    found = [path for path in run_folder.glob(f"{PREFIX}*") if _step_of(path) is not None]
    return sorted((path for path in found if (path / MANIFEST_FILE).is_file()), key=lambda path: _step_of(path) or 0)


def last_checkpoint(run_or_checkpoint: Path) -> Path:
    """The folder itself if it is a checkpoint, else the last complete one of that run; raises CheckpointError."""
    if (run_or_checkpoint / MANIFEST_FILE).is_file():
        return run_or_checkpoint
    if not run_or_checkpoint.is_dir():
        raise CheckpointError(f"{run_or_checkpoint}: there is no such folder (from {Path.cwd()})")
    if _step_of(run_or_checkpoint) is not None:
        raise CheckpointError(f"{run_or_checkpoint}: half-written: it has no {MANIFEST_FILE}; use another checkpoint")
    complete = find_checkpoints(run_or_checkpoint)
    if not complete:
        raise CheckpointError(
            f"{run_or_checkpoint}: holds no complete checkpoint; expected {PREFIX}STEP folders with a {MANIFEST_FILE}"
        )
    return complete[-1]


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint's manifest and config, and verify that all its files are present and unchanged.

    Raises CheckpointError, which names the first missing or changed file.
    """
    manifest_path = path / MANIFEST_FILE
    try:
        raw = manifest_path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: is no complete checkpoint: {MANIFEST_FILE} can't be read ({error})") from error
    manifest = _parse_manifest(manifest_path, raw)
    for name, entry in manifest["files"].items():
        _check_file(path / name, entry)
    return Checkpoint(
        path=path,
        step=manifest["step"],
        run_config=read_run_yaml(path / RUN_FILE),
        manifest=manifest,
        digest=hashlib.sha256(raw).hexdigest(),
    )


def refuse_damaged(run_folder: Path) -> None:
    """Raise CheckpointError if the checkpoint that a run would resume from is damaged, or another process runs it."""
    with lock_run(run_folder):
        *others, last = [None, *find_checkpoints(run_folder)]
        if last is None:
            return
        try:
            read_checkpoint(last)
        except CheckpointError as error:
            earlier = others[-1].name if others[-1] is not None else "the beginning"
            raise CheckpointError(
                f"{error}: without {last.name}, the run resumes from {earlier}; rename or delete that folder"
            ) from error


def prune(run_folder: Path, keep: int, best: int | None) -> list[Path]:
    """Remove all but the `keep` latest checkpoints and the one of step `best`; returns what was removed."""
    others = [path for path in find_checkpoints(run_folder) if _step_of(path) != best]
    removed = others[: max(len(others) - keep, 0)]
    for path in removed:
        # Rename first, so that a crash halfway does not leave a checkpoint that looks complete.
        hidden = _hidden(path, "removed")
        os.rename(path, hidden)
        shutil.rmtree(hidden)
    return removed


def remove_leftovers(run_folder: Path) -> None:
    """Remove the partial checkpoints of crashed writers. Call it only while holding the run's lock."""
    for path in run_folder.iterdir():
        if _HIDDEN.fullmatch(path.name):
            shutil.rmtree(path)


def _lock(file: IO[str], tries: int = 4) -> None:
    """Raise BlockingIOError if another process holds the lock for longer than the moment in which `arcft study` looks
    whether the run is in use."""
    for _ in range(tries - 1):
        with suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(0.05)
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def lock_run(run_folder: Path) -> Iterator[None]:
    """Hold an exclusive lock on a run folder, created if missing; raises CheckpointError if another process holds it.

    The lock is the operating system's (flock), so it is released when its owner is killed.
    """
    run_folder.mkdir(parents=True, exist_ok=True)
    with open(run_folder / LOCK_FILE, "a+", encoding="utf-8") as file:
        try:
            _lock(file)
        except BlockingIOError as error:
            file.seek(0)
            raise CheckpointError(
                f"{run_folder}: in use by another process ({file.read().strip() or 'unknown'}); wait for it to end, or "
                "choose another folder"
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
        yield


def write_run_yaml(folder: Path, config: Mapping[str, Any]) -> None:
    """Write `config`, nested plain data, to run.yaml in `folder`, whole or not at all, because resuming needs it.

    Its second key is a checksum of the others, near the top so that a file that was cut off has it too.
    """
    entries = list(config.items())
    content = dict(entries[:1]) | {"sha256": manifest_sha256(config)} | dict(entries[1:])
    text = yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    write_text(folder / RUN_FILE, text)


def read_run_yaml(path: Path) -> dict[str, Any]:
    """The content of a run.yaml, given the file or its folder; plain data only, without its checksum.

    Raises CheckpointError, also where the content is not what was written. Files of version 0.1.0 have no checksum.
    """
    path = path / RUN_FILE if path.is_dir() else path
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read: {error.strerror}") from error
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise CheckpointError(f"{path}: can't be read: {error}; {_undamaged(path)}") from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path}: expected a mapping of keys to values, not {type(content).__name__}; {_undamaged(path)}"
        )
    stored = content.pop("sha256", None)
    if stored is not None and stored != manifest_sha256(content):
        raise CheckpointError(
            f"{path}: was changed after it was written, or is damaged; {_undamaged(path)}. To use a change of yours, "
            "delete its line sha256"
        )
    return content


def _undamaged(path: Path) -> str:
    """Where to get a run.yaml that is not damaged."""
    copies = [folder / RUN_FILE for folder in find_checkpoints(path.parent)]
    return f"copy {copies[-1]} over it" if copies else "put back a copy of it"


_Loader: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""Ten times as fast where PyYAML was built with libyaml."""


class _Dumper(yaml.SafeDumper):
    """Quotes strings that a YAML reader could take for a number: task id 5117e062 is 5.117e+65 in YAML 1.2."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    try:
        float(text)
        style = "'"
    except ValueError:
        style = None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def _write_manifest(folder: Path, step: int, origin: Origin) -> None:
    files = {
        path.name: {"size": path.stat().st_size, "sha256": file_sha256(path)}
        for path in sorted(folder.iterdir())
        if path.is_file()
    }
    content = {
        "format": _FORMAT,
        "step": step,
        **dataclasses.asdict(origin),
        "versions": _versions(),
        "files": files,
    }
    content["sha256"] = manifest_sha256(content)
    write_json(folder / MANIFEST_FILE, content, indent=1)


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        # A checkout on sys.path that is not installed has no version.
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _parse_manifest(path: Path, raw: bytes) -> dict[str, Any]:
    try:
        manifest = json.loads(raw)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path}: is damaged: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
        raise CheckpointError(f"{path}: is not a manifest of format {_FORMAT}, the only one this version reads")
    kinds = {"step": int, "files": dict, "versions": dict}
    kinds |= {"base_model": str, "base_fingerprint": str, "data_fingerprint": str, "seed": int}
    for name, kind in kinds.items():
        if not isinstance(manifest.get(name), kind):
            raise CheckpointError(f"{path}: is damaged: {name} is missing or not of type {kind.__name__}")
    for name, entry in manifest["files"].items():
        # Names are joined to the folder's path, so they must not escape it.
        if Path(name).name != name:
            raise CheckpointError(f"{path}: lists {name}, which is not a plain file name")
        if not isinstance(entry, dict) or {"size", "sha256"} - entry.keys():
            raise CheckpointError(f"{path}: is damaged: {name} needs size and sha256")
    if RUN_FILE not in manifest["files"]:
        raise CheckpointError(f"{path}: lists no {RUN_FILE}, so the checkpoint does not say how it was made")
    if manifest.get("sha256") != manifest_sha256(manifest):
        raise CheckpointError(f"{path}: was changed: its sha256 is not the one in it. Use another checkpoint")
    return manifest


def _check_file(path: Path, entry: Mapping[str, Any]) -> None:
    if not path.is_file():
        raise CheckpointError(f"{path}: is missing; the manifest beside it lists it. Use another checkpoint")
    size = path.stat().st_size
    if size != entry["size"]:
        raise CheckpointError(f"{path}: has {size} bytes, was written with {entry['size']}. Use another checkpoint")
    if file_sha256(path) != entry["sha256"]:
        raise CheckpointError(f"{path}: was changed: its sha256 is not the manifest's. Use another checkpoint")


def _step_of(path: Path) -> int | None:
    match = re.fullmatch(rf"{PREFIX}(\d+)", path.name)
    return int(match.group(1)) if match else None


def _hidden(target: Path, kind: str) -> Path:
    return target.with_name(f".{target.name}.{kind}-{os.getpid()}")
