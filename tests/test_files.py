"""Files that appear whole or not at all, and checksums."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from arcft.files import (
    atomic_path,
    data_sha256,
    file_sha256,
    manifest_sha256,
    new_folder,
    open_atomic,
    write_bytes,
    write_json,
    write_text,
)


def test_a_file_is_replaced_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "numbers.txt"
    write_text(path, "old\n")
    with open_atomic(path, sync=True) as file:
        file.write("new\n")
        file.flush()
        assert path.read_text(encoding="utf-8") == "old\n"
    assert path.read_text(encoding="utf-8") == "new\n"
    assert [entry.name for entry in tmp_path.iterdir()] == ["numbers.txt"]


@pytest.mark.parametrize("interrupted_by", [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_the_earlier_file_and_nothing_else(
    interrupted_by: type[BaseException], tmp_path: Path
) -> None:
    path = tmp_path / "weights.bin"
    write_bytes(path, b"old")

    def interrupted() -> None:
        with atomic_path(path) as partial:
            partial.write_bytes(b"half")
            raise interrupted_by

    with pytest.raises(interrupted_by):
        interrupted()
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["weights.bin"]


def test_what_a_killed_process_left_is_replaced(tmp_path: Path) -> None:
    (tmp_path / ".run.yaml.partial").write_text("half", encoding="utf-8")
    write_text(tmp_path / "run.yaml", "whole\n")
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.yaml"]
    assert (tmp_path / "run.yaml").read_text(encoding="utf-8") == "whole\n"


def test_synced_content_is_flushed_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    replace = os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: steps.append("fsync"))
    monkeypatch.setattr(os, "replace", lambda *paths: steps.append("rename") or replace(*paths))
    with open_atomic(tmp_path / "submission.json", sync=True) as file:
        file.write("{}")
    assert steps == ["fsync", "rename"]
    with open_atomic(tmp_path / "predictions.jsonl") as file:
        file.write("{}")
    assert steps == ["fsync", "rename", "rename"]


def test_half_a_surrogate_pair_is_written_as_a_question_mark(tmp_path: Path) -> None:
    write_text(tmp_path / "report.html", "ò \ud83d")
    assert (tmp_path / "report.html").read_bytes() == "ò ?".encode()


def test_json_keeps_letters_and_order(tmp_path: Path) -> None:
    write_json(tmp_path / "values.json", {"b": "ò", "a": [1]})
    assert (tmp_path / "values.json").read_text(encoding="utf-8") == '{\n  "b": "ò",\n  "a": [\n    1\n  ]\n}\n'
    write_json(tmp_path / "values.json", {"b": 1}, indent=1)
    assert (tmp_path / "values.json").read_text(encoding="utf-8") == '{\n "b": 1\n}\n'


def test_checksums(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"weights" * 100_000)
    assert file_sha256(tmp_path / "weights.bin") == hashlib.sha256(b"weights" * 100_000).hexdigest()
    # As ledgers, indexes and manifests of version 0.1.0 hold it.
    assert data_sha256({"a": 1}) == "f9d86028c6e0d64e225186f96acb69338b2c59764df79162107f5c4bb34d1310"
    assert data_sha256({"a": 1, "b": [2]}) == data_sha256({"b": [2], "a": 1})
    assert data_sha256({"a": 1, "b": [2]}) != data_sha256({"a": 1, "b": [3]})
    manifest = {"format": 1, "files": {"x": "y"}}
    assert manifest_sha256(manifest | {"sha256": "anything"}) == data_sha256(manifest)


def test_a_new_folder_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "new"

    def fail() -> None:
        with new_folder(target / "deep") as partial:
            (partial / "a").write_text("a")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not list(tmp_path.iterdir())
    # What a killed process leaves.
    (tmp_path / ".new.partial").mkdir()
    (tmp_path / ".new.partial" / "old").touch()
    with new_folder(target) as partial:
        (partial / "b").mkdir()
        (partial / "b" / "c").write_text("c")
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == ["new", "new/b", "new/b/c"]
