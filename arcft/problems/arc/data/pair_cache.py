"""Read caches of many verified pairs per task, as written by scripts/generate_re_arc.sh, in compact form.

A cache is a folder of shards, one `ID.npz` per task, and `manifest.json`, written last, which lists each shard with its
size and sha256, and its own sha256. 240,000 pairs take about 135 MB of memory at one byte per cell; as lists they would
take more than a gigabyte.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from arcft.files import manifest_sha256
from arcft.problems.arc.task import MAX_SIDE, NUM_COLORS, Grid, Pair, TaskError, check_id

MANIFEST_FILE = "manifest.json"
FORMAT = 1

WAY_OUT = "run scripts/generate_re_arc.sh on the folder again with the same arguments; it makes only what is missing"


class PackedPairs(Sequence[Pair]):
    """Pairs in one flat array, converted to Pair on access. Their outputs are known.

    `cells` is int8: for each pair the cells of the input, then of the output, row by row. `shapes` is uint8 [pairs, 4]:
    rows and columns of input and output. Raises TaskError, prefixed with `where`, for invalid grids.
    """

    def __init__(self, cells: NDArray[np.int8], shapes: NDArray[np.uint8], *, where: str) -> None:
        if cells.dtype != np.int8 or cells.ndim != 1 or shapes.dtype != np.uint8 or shapes.shape[1:] != (4,):
            raise TaskError(f"{where}: cells must be int8 and shapes uint8 [pairs, 4]; {WAY_OUT}")
        sizes = shapes.astype(np.int64)
        ends = np.cumsum(sizes[:, ::2] * sizes[:, 1::2])
        if len(shapes) and not (shapes.min() >= 1 and shapes.max() <= MAX_SIDE):
            raise TaskError(f"{where}: a grid's side outside 1 to {MAX_SIDE}; {WAY_OUT}")
        if len(cells) != (ends[-1] if len(ends) else 0):
            raise TaskError(f"{where}: {len(cells)} cells where the shapes need another number; {WAY_OUT}")
        if len(cells) and not (cells.min() >= 0 and cells.max() < NUM_COLORS):
            raise TaskError(f"{where}: a colour outside 0 to {NUM_COLORS - 1}; {WAY_OUT}")
        self._cells, self._shapes = cells, shapes
        cells.setflags(write=False)
        self._starts = np.concatenate([[0], ends]).astype(np.int32)
        """Offsets in `cells` of the grids, alternately inputs and outputs, and the end of the last."""

    def __len__(self) -> int:
        return len(self._shapes)

    @overload
    def __getitem__(self, index: int) -> Pair: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Pair]: ...
    def __getitem__(self, index: int | slice) -> Pair | Sequence[Pair]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        return Pair(*self.grids(place))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PackedPairs) and (
            np.array_equal(self._cells, other._cells) and np.array_equal(self._shapes, other._shapes)
        )

    def __hash__(self) -> int:
        return hash((self._cells.tobytes(), self._shapes.tobytes()))

    @property
    def shapes(self) -> NDArray[np.uint8]:
        """Rows and columns of input and output, [pairs, 4]."""
        return self._shapes

    def color_counts(self) -> NDArray[np.int64]:
        """Number of cells by colour, [pairs, 2 (input, output), colours]."""
        grids = np.repeat(np.arange(2 * len(self)), np.diff(self._starts))
        counts = np.bincount(grids * NUM_COLORS + self._cells, minlength=2 * len(self) * NUM_COLORS)
        return counts.reshape(len(self), 2, NUM_COLORS)

    def grids(self, index: int) -> tuple[Grid, Grid]:
        """Input and output of pair `index` (from 0) as read-only views, for fast iteration: no check, no copy."""
        rows_in, columns_in, rows_out, columns_out = self._shapes[index].tolist()
        start, middle, end = self._starts[2 * index : 2 * index + 3].tolist()
        return (
            self._cells[start:middle].reshape(rows_in, columns_in),
            self._cells[middle:end].reshape(rows_out, columns_out),
        )


def is_pair_cache(path: str | Path) -> bool:
    """Whether `path` is a folder with a file of a cache of pairs, complete or not."""
    path = Path(path)
    return path.is_dir() and ((path / MANIFEST_FILE).exists() or any(path.glob("*.npz")))


def read_pair_cache(folder: str | Path) -> dict[str, PackedPairs]:
    """The pairs of each task by id, without abandoned task types.

    Raises TaskError, which names the file, if the manifest is missing, torn, changed or of another format, or if a
    shard is missing or changed.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    return {
        task_id: _read_shard(folder / entry["file"], entry)
        for task_id, entry in manifest["tasks"].items()
        if entry["made"]
    }


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a cache, checked against its own sha256. Raises TaskError."""
    path = folder / MANIFEST_FILE
    try:
        manifest = json.loads(path.read_bytes())
    except OSError as error:
        raise TaskError(f"{folder}: no complete cache of pairs: {MANIFEST_FILE}: {error.strerror}; {WAY_OUT}") from None
    except ValueError as error:
        raise TaskError(f"{path}: is damaged: {error}; {WAY_OUT}") from None
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != FORMAT:
        raise TaskError(
            f"{path}: of format {found}, where this version reads format {FORMAT}; generate the cache anew, into "
            "another folder, with the scripts/generate_re_arc.sh of this version"
        )
    if manifest_sha256(manifest) != manifest.get("sha256"):
        raise TaskError(f"{path}: was changed: its sha256 is not the one in it; {WAY_OUT}")
    for task_id, entry in _entries(path, manifest):
        check_id(task_id, str(path))
        # Names are joined to the folder's path, so they must not escape it.
        if Path(entry["file"]).name != entry["file"]:
            raise TaskError(f"{path}: task {task_id}: {entry['file']} is not a plain file name")
    return manifest


def _entries(path: Path, manifest: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    tasks = manifest.get("tasks")
    if not isinstance(tasks, dict) or not tasks:
        raise TaskError(f"{path}: lists no task; {WAY_OUT}")
    kinds = {"made": int, "size": int, "file": str, "sha256": str}
    for task_id, entry in tasks.items():
        for name, kind in kinds.items():
            if not isinstance(entry, dict) or not isinstance(entry.get(name), kind):
                raise TaskError(f"{path}: task {task_id}: {name} is missing or no {kind.__name__}; {WAY_OUT}")
        yield task_id, entry


def _read_shard(path: Path, entry: Mapping[str, Any]) -> PackedPairs:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise TaskError(f"{path}: {error.strerror}; the manifest lists it: {WAY_OUT}") from None
    if len(raw) != entry["size"] or hashlib.sha256(raw).hexdigest() != entry["sha256"]:
        raise TaskError(f"{path}: was changed: its size or sha256 is not the manifest's; {WAY_OUT}")
    try:
        with np.load(io.BytesIO(raw), allow_pickle=False) as arrays:
            cells, shapes = arrays["cells"], arrays["shapes"]
    except (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise TaskError(f"{path}: is no shard of pairs: {error}; {WAY_OUT}") from None
    packed = PackedPairs(cells, shapes, where=str(path))
    if len(packed) != entry["made"]:
        raise TaskError(f"{path}: {len(packed)} pairs where the manifest says {entry['made']}; {WAY_OUT}")
    return packed
