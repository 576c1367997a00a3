"""Files that appear whole or not at all, and checksums of files and of plain data."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a hidden sibling of `path` to write; on leaving, rename it to `path`, or remove it after an exception.

    A reader sees the earlier file or the new one, never a part. A killed process leaves the sibling behind, and the
    next write of the same file replaces it.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a hidden sibling of `path`, a folder that does not exist yet, to fill; on leaving, flush it to disk and
    rename it to `path`, or remove it after an exception.

    A killed process leaves the sibling behind, and the next one to make the same folder replaces it.
    """
    partial = path.with_name(f".{path.name}.partial")
    missing = [parent for parent in path.parents if not parent.exists()]
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        for written in [*partial.rglob("*"), partial]:
            flush_to_disk(written)
        os.rename(partial, path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        for parent in missing:
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise
    flush_to_disk(path.parent)


@contextlib.contextmanager
def open_atomic(path: Path, *, sync: bool = False) -> Iterator[TextIO]:
    """Open a UTF-8 file that replaces `path` on leaving; with `sync` its content is on the disk before that."""
    with atomic_path(path) as partial, partial.open("w", encoding="utf-8") as file:
        yield file
        if sync:
            file.flush()
            os.fsync(file.fileno())


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all.

    A model's text may hold half of a surrogate pair, which UTF-8 can't encode; it is written as `?`.
    """
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="replace")


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content`, whole or not at all."""
    with atomic_path(path) as partial:
        partial.write_bytes(content)


def write_json(path: Path, values: Any, *, indent: int | None = 2) -> None:
    """Write plain data as a JSON file, whole or not at all."""
    write_text(path, json.dumps(values, indent=indent, ensure_ascii=False) + "\n")


def flush_to_disk(path: Path) -> None:
    """Wait until the content of a file, or the names in a folder, are on the disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(path: Path) -> str:
    """sha256 of a file's content, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def data_sha256(values: Any) -> str:
    """sha256 of plain data, hexadecimal: of its JSON with sorted keys, so their order does not matter."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def manifest_sha256(manifest: Mapping[str, Any]) -> str:
    """`data_sha256` of every entry of a manifest except its own `sha256`."""
    return data_sha256({name: value for name, value in manifest.items() if name != "sha256"})
