"""Models that ship with the package, `bundled:NAME`, and the check that their files are intact.

Weights ship with bundle.json, which lists size and sha256 of each file of the model. A model without weights has no
bundle.json, and serves as an architecture for random weights.
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
"""The files of a bundled model with weights, beside bundle.json."""

_FORMAT = 1
_WAY_OUT = "reinstall arcft (in a checkout: git restore arcft/assets)"


def bundled_folder(path: str) -> Path:
    """The folder of a `bundled:NAME`. Raise ModelError, with the names there are, for another name."""
    folder = ASSETS / path.removeprefix(BUNDLED)
    if not (folder / "config.json").is_file():
        names = sorted(entry.parent.name for entry in ASSETS.glob("*/config.json"))
        raise ModelError(
            f"model.path={path}: the bundled models are {', '.join(BUNDLED + name for name in names) or 'none'}"
        )
    return folder


def check_weights(path: str) -> None:
    """Raise ModelError unless `path`, a `bundled:NAME`, has weights, and all its files are those that were shipped."""
    folder = bundled_folder(path)
    if not (folder / BUNDLE_FILE).is_file():
        raise ModelError(
            f"model.path={path}: no pretrained weights are bundled ({folder / BUNDLE_FILE} is missing); use "
            f"model.init=random, or if there should be some, {_WAY_OUT}"
        )
    _check(folder, FILES)


def check_tokenizer(path: str) -> None:
    """Raise ModelError unless the tokenizer of `path` is the one that was shipped. Without bundle.json, any is."""
    folder = bundled_folder(path)
    if (folder / BUNDLE_FILE).is_file():
        _check(folder, TOKENIZER_FILES)


def pretrained_on(path: str) -> list[str]:
    """Ids of the tasks that the weights of `path`, a `bundled:NAME`, were trained on, as they are or by pairs generated
    for their type; none without weights. Raise ModelError if bundle.json is damaged."""
    file = bundled_folder(path) / BUNDLE_FILE
    return [str(task_id) for task_id in _read(file).get("trained_on", ())] if file.is_file() else []


def write_bundle(folder: Path, about: Mapping[str, Any]) -> None:
    """Write bundle.json for the files in `folder`. `about` is plain data on where they come from."""
    files = {name: {"size": (folder / name).stat().st_size, "sha256": file_sha256(folder / name)} for name in FILES}
    write_json(folder / BUNDLE_FILE, {"format": _FORMAT, **about, "files": files}, indent=1)


def _check(folder: Path, names: Sequence[str]) -> None:
    files = _read_files(folder / BUNDLE_FILE)
    for name in names:
        path, entry = folder / name, files[name]
        if not path.is_file():
            raise ModelError(f"{path}: is missing, although {BUNDLE_FILE} lists it; {_WAY_OUT}")
        size = path.stat().st_size
        if size != entry["size"]:
            raise ModelError(f"{path}: has {size:,} bytes, was shipped with {entry['size']:,}; {_WAY_OUT}")
        if file_sha256(path) != entry["sha256"]:
            raise ModelError(f"{path}: was changed: its sha256 is not the one in {BUNDLE_FILE}; {_WAY_OUT}")


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
            raise ModelError(f"{path}: has format {content['format']}; this version reads format {_FORMAT}; {_WAY_OUT}")
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path, error) from error
    return content


def _damaged(path: Path, error: Exception) -> ModelError:
    return ModelError(f"{path}: is damaged ({type(error).__name__}: {error}); {_WAY_OUT}")
