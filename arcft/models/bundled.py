"""Models that come with the package, `bundled:NAME`: found by name, and held to the files they were shipped with.

Weights are shipped together with bundle.json, which names every file of the model with its size and sha256. Without
weights there is no bundle.json, and the model serves as an architecture for random ones.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from arcft.errors import ModelError
from arcft.files import file_sha256, write_json

ASSETS = Path(__file__).resolve().parent.parent / "assets"
BUNDLED = "bundled:"
BUNDLE_FILE = "bundle.json"
WEIGHTS_FILE = "model.safetensors"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
FILES = (WEIGHTS_FILE, "config.json", *TOKENIZER_FILES)
"""What a bundled model with weights consists of, beside bundle.json."""

_FORMAT = 1
_WAY_OUT = "reinstall arcft (in a checkout: git restore arcft/assets)"


def bundled_folder(path: str) -> Path:
    """The folder of a `bundled:NAME`; raises ModelError, naming those that there are."""
    folder = ASSETS / path.removeprefix(BUNDLED)
    if not (folder / "config.json").is_file():
        names = sorted(entry.parent.name for entry in ASSETS.glob("*/config.json"))
        raise ModelError(f"model.path={path}: bundled are {', '.join(BUNDLED + name for name in names) or 'none'}")
    return folder


def check_weights(path: str) -> None:
    """Raise ModelError unless `path`, a `bundled:NAME`, has weights and all its files are as they were shipped."""
    folder = bundled_folder(path)
    if not (folder / BUNDLE_FILE).is_file():
        raise ModelError(
            f"model.path={path}: no pretrained weights are bundled ({folder / BUNDLE_FILE} is missing); use "
            f"model.init=random, or if they were there, {_WAY_OUT}"
        )
    _check(folder, FILES)


def check_tokenizer(path: str) -> None:
    """The same for the tokenizer's files; nothing is known of a tokenizer that was shipped without weights."""
    folder = bundled_folder(path)
    if (folder / BUNDLE_FILE).is_file():
        _check(folder, TOKENIZER_FILES)


def pretrained_on(path: str) -> list[str]:
    """Ids of the tasks that the weights of `path`, a `bundled:NAME`, were trained on, or on pairs generated for their
    type; none where there are no weights. Raises ModelError where bundle.json is damaged."""
    file = bundled_folder(path) / BUNDLE_FILE
    return [str(task_id) for task_id in _read(file).get("trained_on", ())] if file.is_file() else []


def write_bundle(folder: Path, about: Mapping[str, Any]) -> None:
    """Write bundle.json for the files that lie in `folder`, with `about`, plain data on where they come from."""
    files = {name: {"size": (folder / name).stat().st_size, "sha256": file_sha256(folder / name)} for name in FILES}
    write_json(folder / BUNDLE_FILE, {"format": _FORMAT, **about, "files": files}, indent=1)


def _check(folder: Path, names: Sequence[str]) -> None:
    files = _read_files(folder / BUNDLE_FILE)
    for name in names:
        path, entry = folder / name, files[name]
        if not path.is_file():
            raise ModelError(f"{path}: is missing, and {BUNDLE_FILE} beside it lists it; {_WAY_OUT}")
        size = path.stat().st_size
        if size != entry["size"]:
            raise ModelError(f"{path}: has {size:,} bytes, was shipped with {entry['size']:,}; {_WAY_OUT}")
        if file_sha256(path) != entry["sha256"]:
            raise ModelError(f"{path}: was changed: its sha256 is not that of {BUNDLE_FILE} beside it; {_WAY_OUT}")


def _read_files(path: Path) -> dict[str, dict[str, Any]]:
    content = _read(path)
    try:
        listed = {name: content["files"][name] for name in FILES}
        return {name: {"size": int(entry["size"]), "sha256": str(entry["sha256"])} for name, entry in listed.items()}
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path, error) from error


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != _FORMAT:
            raise ModelError(f"{path}: is of format {content['format']}, this version reads {_FORMAT}; {_WAY_OUT}")
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path, error) from error
    return content


def _damaged(path: Path, error: Exception) -> ModelError:
    return ModelError(f"{path}: is damaged ({type(error).__name__}: {error}); {_WAY_OUT}")
