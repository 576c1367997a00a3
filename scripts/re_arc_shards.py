"""The files of a cache of pairs: written here for re_arc_pairs.py, read by arcft/problems/arc/data/pair_cache.py.

Each task type is one shard, `ID.npz`, written whole or not at all: `cells` int8, for each pair the cells of the input,
then of the output, row by row; `shapes` uint8 [pairs, 4], rows and columns of input and output; `entry`, the type's
manifest entry as JSON. `manifest.json` is written last. Imports nothing of arcft, which this environment lacks.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = 1
MANIFEST_FILE = "manifest.json"

Grid = tuple[tuple[int, ...], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that determines a shard's content; shards with different settings are never mixed."""

    pairs: int
    seed: int
    diff_lb: float
    diff_ub: float
    pair_seconds: float
    task_seconds: float
    package: str = "reasoning-gym"
    version: str = ""
    python: str = dataclasses.field(default_factory=lambda: ".".join(platform.python_version_tuple()[:2]))


class CacheError(Exception):
    """A cache folder that cannot be completed."""


def write_shard(
    folder: Path, task_id: str, pairs: Sequence[tuple[Grid, Grid]], entry: Mapping[str, Any], settings: Settings
) -> None:
    """Write `ID.npz`, whole or not at all."""
    content = json.dumps({**entry, "settings": dataclasses.asdict(settings)}, sort_keys=True).encode()
    shapes = [(len(given), len(given[0]), len(wanted), len(wanted[0])) for given, wanted in pairs]
    cells = [cell for pair in pairs for grid in pair for row in grid for cell in row]
    file = io.BytesIO()
    np.savez_compressed(
        file,
        cells=np.array(cells, dtype=np.int8),
        shapes=np.array(shapes, dtype=np.uint8).reshape(-1, 4),
        entry=np.frombuffer(content, dtype=np.uint8),
    )
    _write(shard_path(folder, task_id), file.getvalue())


def finished_entries(folder: Path, task_ids: Sequence[str], settings: Settings) -> dict[str, dict[str, Any]]:
    """The entries of the intact shards in `folder`; damaged ones are omitted, so that they are generated again.

    Raises CacheError for a shard with other settings.
    """
    entries = {}
    known = _known_digests(folder)
    for task_id in task_ids:
        path = shard_path(folder, task_id)
        try:
            raw = path.read_bytes()
            with np.load(io.BytesIO(raw), allow_pickle=False) as arrays:
                # Reading an array verifies its checksum in the archive.
                content = {name: arrays[name] for name in ("cells", "shapes", "entry")}
            entry = json.loads(content["entry"].tobytes())
            made_with = entry.pop("settings")
        # A broken archive can raise nearly anything; in every case the shard is generated again.
        except Exception:
            continue
        if made_with != dataclasses.asdict(settings):
            here = dataclasses.asdict(settings)
            differs = [
                f"{name}={made_with.get(name)}, now {here[name]}" for name in here if made_with.get(name) != here[name]
            ]
            raise CacheError(f"{path}: was made with {'; '.join(differs)}; choose another folder, or remove this one")
        if known.get(task_id) in (None, hashlib.sha256(raw).hexdigest()):
            entries[task_id] = entry
    return entries


def write_manifest(
    folder: Path, entries: Mapping[str, Mapping[str, Any]], settings: Settings, left_out: Sequence[str]
) -> dict[str, Any]:
    """Write manifest.json: settings, entries with each shard's name, size and sha256, and its own sha256."""
    tasks = {}
    for task_id, entry in sorted(entries.items()):
        raw = shard_path(folder, task_id).read_bytes()
        tasks[task_id] = {
            **entry,
            "file": shard_path(folder, task_id).name,
            "size": len(raw),
            "sha256": hashlib.sha256(raw).hexdigest(),
        }
    content: dict[str, Any] = {
        "format": FORMAT,
        "types_of": "ARC-1 training tasks, by their ids",
        "settings": dataclasses.asdict(settings),
        "left_out": list(left_out),
        "tasks": tasks,
    }
    content["sha256"] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    _write(folder / MANIFEST_FILE, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())
    return content


def shard_path(folder: Path, task_id: str) -> Path:
    return folder / f"{task_id}.npz"


def _known_digests(folder: Path) -> dict[str, str]:
    """Digests of the shards from an earlier manifest, so that a modified shard is generated again."""
    try:
        tasks = json.loads((folder / MANIFEST_FILE).read_bytes())["tasks"]
        return {task_id: entry["sha256"] for task_id, entry in tasks.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _write(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
