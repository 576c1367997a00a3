"""What tells one base model from another."""

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

# Entries of a model's config that say how it is used, not what it computes.
_VOLATILE = (
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
    """The entries of a model's config that say what it computes: equal for models of one architecture."""
    # Without what a class says by default, which grows with every version of transformers.
    return dict(_without_volatile(config.to_diff_dict()))


def base_fingerprint(config: ModelConfig, model: PreTrainedModel) -> str:
    """sha256 (hexadecimal) over the architecture and a digest of the base weights; the same for every device, dtype
    and quantisation that they are loaded in, and whether or not `model` carries an adapter or was trained since.

    Weight files are digested whole up to 8 MiB, and by size and 64 evenly spread blocks of 4 KiB each above, which
    takes milliseconds for files of any size; random weights by drawing them again. Raises ModelError.
    """
    return _fingerprint(config, model.config)


def stored_fingerprint(config: ModelConfig) -> str:
    """`base_fingerprint` of a model that is not loaded; raises ModelError."""
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
        for path in _weight_files(resolve_path(str(config.path))):
            _add_file(digest, path)
    return digest.hexdigest()


def _without_volatile(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {name: _without_volatile(entry) for name, entry in value.items() if name not in _VOLATILE}


def _weight_files(source: str) -> list[Path]:
    if source.endswith(".gguf"):
        return [Path(source)]
    single, index = WEIGHTS_FILE, "model.safetensors.index.json"
    for name in (single, index):
        # Finds a file in a folder or in the hub's cache; None where there is none.
        found = cached_file(source, name, _raise_exceptions_for_missing_entries=False, **hub_options(source))
        if found is None:
            continue
        if name == single:
            return [Path(found)]
        shards = sorted(set(json.loads(Path(found).read_text(encoding="utf-8"))["weight_map"].values()))
        return [Path(str(cached_file(source, shard, **hub_options(source)))) for shard in shards]
    raise ModelError(f"model.path={source}: it holds no {single}; weights in other formats are not read")


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
