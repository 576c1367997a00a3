"""JSON that was written elsewhere: its encodings, its repeated keys, and what is said of files that are none."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import time
import zipfile
from pathlib import Path

import pytest

from arcft.json_text import JsonError, parse_json, read_text

TEXT = json.dumps({"é": [1, 2]}, ensure_ascii=False)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_encodings_are_told_apart(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "tasks.json"
    path.write_bytes(TEXT.encode(encoding))
    assert parse_json(read_text(path), "") == {"é": [1, 2]}


def zipped(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("tasks.json", content)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("pack", "name"), [(gzip.compress, "gzip"), (zipped, "zip"), (bz2.compress, "bzip2"), (lzma.compress, "xz")]
)
def test_packed_files_are_named(tmp_path: Path, pack: object, name: str) -> None:
    path = tmp_path / "tasks.json"
    path.write_bytes(pack(TEXT.encode()))  # type: ignore[operator]
    with pytest.raises(JsonError, match=rf"tasks.json: is packed with {name}; unpack it, and name the JSON file"):
        read_text(path)


def test_a_file_cut_within_a_letter_is_named(tmp_path: Path) -> None:
    path = tmp_path / "tasks.json"
    path.write_bytes(TEXT.encode()[:3])
    with pytest.raises(JsonError, match=r"tasks.json: is no text in UTF-8 \(byte 3\); save it as UTF-8, or copy it"):
        read_text(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "a": 2}', "FILE: 'a' is there twice"),
        ('{"b": {}, "a": {"c": [{}, {"d": 1, "d": 1}]}}', "FILE: task a: 'd' is there twice"),
        ('[{"d": 1, "d": 1}]', "FILE: 'd' is there twice"),
        ('{"\\u001b": {"d": 1, "d": 1}}', r"FILE: task \x1b: 'd' is there twice"),
        ("[" * 100_000, "FILE: not valid JSON: its lists or objects are nested too deep"),
    ],
)
def test_what_is_wrong_is_named_with_its_entry(text: str, message: str) -> None:
    with pytest.raises(JsonError) as caught:
        parse_json(text, "FILE", "task")
    assert str(caught.value).startswith(message)


def test_numbers_beyond_computing_are_infinite() -> None:
    assert parse_json(f"[1{'0' * 5000}, 7]", "") == [float("inf"), 7]


@pytest.mark.parametrize("name", ["'same'", "'id-99999'"])
def test_repeated_keys_are_found_in_linear_time(name: str) -> None:
    ids = ["same"] * 100_000 if name == "'same'" else [*(f"id-{number}" for number in range(100_000)), "id-99999"]
    text = "{" + ", ".join(f'"{each}": {{}}' for each in ids) + "}"
    start = time.monotonic()
    with pytest.raises(JsonError, match=f"{name} is there twice"):
        parse_json(text, "FILE")
    assert time.monotonic() - start < 2
