"""Where a model is found: a hub id, a folder, a GGUF file or the package's assets."""

from __future__ import annotations

import copy
import functools
import os
from pathlib import Path
from typing import Any

import gguf
import httpx
import huggingface_hub
import yaml
from huggingface_hub.errors import OfflineModeIsEnabled
from transformers import AutoConfig, PretrainedConfig

from arcft.config.model import ModelConfig
from arcft.errors import ModelError
from arcft.models.bundled import BUNDLED, bundled_folder

_HUB_SECONDS = 5
_BUNDLED_LICENSE = "apache-2.0"


def resolve_path(path: str) -> str:
    """The folder of a `bundled:NAME`, the absolute path of a local folder or GGUF file, or a hub id unchanged.

    Raise ModelError for a bundled name or a local path that does not exist.
    """
    if path.startswith(BUNDLED):
        return str(bundled_folder(path))
    local = Path(path).expanduser()
    if local.exists():
        if local.is_file() and local.suffix != ".gguf":
            raise ModelError(f"model.path={path} is a file; give the folder that holds config.json, or a .gguf file")
        return str(local.resolve())
    # A hub id is `name` or `owner/name`.
    if local.is_absolute() or path.startswith((".", "~")) or path.count("/") > 1 or path.endswith(".gguf"):
        raise ModelError(f"model.path={path}: there is no such file or folder (from {Path.cwd()})")
    return path


def is_hub_id(path: str) -> bool:
    """Whether `path`, a value of model.path, names a model of the hub."""
    try:
        return not path.startswith(BUNDLED) and resolve_path(path) == path and not Path(path).exists()
    # A local path that is gone.
    except ModelError:
        return False


def public_path(path: str) -> str:
    """`path`, a value of model.path, for readers elsewhere: of a local path only the last part."""
    return path if path.startswith(BUNDLED) or is_hub_id(path) else Path(path).name


def license_of(path: str) -> str | None:
    """The licence of the model at `path`, a value of model.path, where its files name one."""
    if path.startswith(BUNDLED):
        return _BUNDLED_LICENSE
    source = resolve_path(path)
    if source.endswith(".gguf"):
        field = gguf.GGUFReader(source).get_field("general.license")
        return None if field is None else str(field.contents())
    local = Path(source) / "README.md"
    readme = local if Path(source).is_dir() else huggingface_hub.try_to_load_from_cache(source, "README.md")
    try:
        return None if not isinstance(readme, str | Path) else huggingface_hub.ModelCard.load(readme).data.license
    # No card, or one that can't be read.
    except (OSError, ValueError, yaml.YAMLError):
        return None


def model_path(config: ModelConfig) -> str:
    """`model.path`. Raise ModelError if it is not set."""
    if not config.path:
        raise ModelError("model.path is not set: give a hub id, a folder or a .gguf file")
    return config.path


def hub_options(source: str) -> dict[str, Any]:
    """Options for loading `source`, a local folder or a hub id: without a network, only files in the cache."""
    return {} if Path(source).exists() or _can_reach_hub() else {"local_files_only": True}


@functools.cache
def _can_reach_hub() -> bool:
    """Checked once: huggingface_hub would retry each file for half a minute, with a warning at each attempt."""
    try:
        huggingface_hub.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=_HUB_SECONDS)
    # Any answer will do.
    except (httpx.TransportError, OfflineModeIsEnabled):
        return False
    return True


def trusts_code(config: ModelConfig) -> bool:
    """Whether a model's own Python code may run. Raise ModelError if the config allows it, but not the environment."""
    if config.trust_remote_code and os.environ.get("ARCFT_TRUST_REMOTE_CODE") != "1":
        raise ModelError(
            f"model.trust_remote_code=true runs Python code from {config.path}: if you have read that code and trust "
            "it, also set the environment variable ARCFT_TRUST_REMOTE_CODE=1"
        )
    return config.trust_remote_code


def not_loaded(key: str, path: str, what: str, error: Exception) -> str:
    """The message for an `error` in loading `what` from `path`, the value of the config's `key`."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = " ".join(lines)[:400]
    if Path(resolve_path(path)).exists():
        return f"{key}={path}: {what} can't be loaded from there ({reason})"
    return (
        f"{key}={path} is not a local folder, and as a hub id {what} can't be fetched under that name; check the name "
        f"and the network, or give the path of a downloaded folder ({reason})"
    )


def load_architecture(config: ModelConfig) -> PretrainedConfig:
    """The model's config.json, or its equivalent in a GGUF file. Errors are transformers' own."""
    source = resolve_path(model_path(config))
    if source.endswith(".gguf"):
        return copy.deepcopy(_gguf_architecture(source, Path(source).stat().st_mtime_ns))
    return AutoConfig.from_pretrained(source, trust_remote_code=trusts_code(config), **hub_options(source))


@functools.lru_cache(maxsize=4)
def _gguf_architecture(source: str, changed: int) -> PretrainedConfig:
    """Reading it takes seconds: transformers goes through the vocabulary, too."""
    return AutoConfig.from_pretrained(Path(source).parent, gguf_file=Path(source).name)
