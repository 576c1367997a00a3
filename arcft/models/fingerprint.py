"""Fingerprints of base models, so that an adapter is never put on another one than it was trained on."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import cached_file

from arcft.config.model import ModelConfig
from arcft.errors import ModelError
from arcft.models.bundled import WEIGHTS_FILE
from arcft.models.load import draw_random_model
from arcft.models.source import hub_options, load_architecture, model_path, not_loaded, resolve_path

_READ_WHOLE = 8 * 2**20
_BLOCKS = 64
_BLOCK_BYTES = 4096

# Entries of a model's config that do not change what it computes.
_IRRELEVANT = (
    "_name_or_path",
    "architectures",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "name_or_path",
    "pad_token_id",
    "quantization_config",
    "torch_dtype",
    "transformers_version",
    "use_cache",
)


def architecture_values(config: PretrainedConfig) -> dict[str, Any]:
    """The entries of a model's config that determine what it computes: equal for models of one architecture."""
    # Without the defaults of its class, which grow with every version of transformers.
    return dict(_relevant(config.to_diff_dict()))


def base_fingerprint(config: ModelConfig, model: PreTrainedModel) -> str:
    """sha256 (hexadecimal) of the architecture and the stored base weights.

    It does not depend on device, dtype or quantisation, nor on an adapter on `model` or any training since.

    Weight files of up to 8 MiB are hashed whole; larger ones by their size and 64 evenly spaced blocks of 4 KiB, which
    takes milliseconds for files of any size. Random weights are drawn again. Raise ModelError.
    """
    return _fingerprint(config, model.config)


def stored_fingerprint(config: ModelConfig) -> str:
    """`base_fingerprint` of a model that is not loaded. Raise ModelError."""
    try:
        architecture = load_architecture(config)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise ModelError(not_loaded("model.path", model_path(config), "a config.json", error)) from error
    return _fingerprint(config, architecture)


def _fingerprint(config: ModelConfig, architecture: PretrainedConfig) -> str:
    digest = hashlib.sha256(json.dumps(architecture_values(architecture), sort_keys=True, default=str).encode())
    if config.init == "random":
        for name, tensor in draw_random_model(config).state_dict().items():
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy().tobytes())
    else:
        for path in weight_files(resolve_path(str(config.path))):
            _add_file(digest, path)
    return digest.hexdigest()


def _relevant(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {name: _relevant(entry) for name, entry in value.items() if name not in _IRRELEVANT}


def weight_files(source: str) -> list[Path]:
    """The files that hold the weights of `source`, a folder, a GGUF file or a hub id. Raise ModelError for none."""
    if source.endswith(".gguf"):
        return [Path(source)]
    single, index = WEIGHTS_FILE, "model.safetensors.index.json"
    for name in (single, index):
        # Looks in a local folder or the hub's cache; None if there is no such file.
        found = cached_file(source, name, _raise_exceptions_for_missing_entries=False, **hub_options(source))
        if found is None:
            continue
        if name == single:
            return [Path(found)]
        shards = sorted(set(json.loads(Path(found).read_text(encoding="utf-8"))["weight_map"].values()))
        return [Path(str(cached_file(source, shard, **hub_options(source)))) for shard in shards]
    raise ModelError(f"model.path={source}: there is no {single}; weights in other formats are not read")


def _add_file(digest: hashlib._Hash, path: Path) -> None:
    size = path.stat().st_size
    digest.update(f"{size}".encode())
    if size <= _READ_WHOLE:
        digest.update(path.read_bytes())
        return
    with path.open("rb") as file:
        for number in range(_BLOCKS):
            file.seek(number * max(size - _BLOCK_BYTES, 0) // (_BLOCKS - 1))
            digest.update(file.read(_BLOCK_BYTES))
