"""Where a model lies: a hub id, a folder, a GGUF file or the package's own assets."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import httpx
import huggingface_hub
from huggingface_hub.errors import OfflineModeIsEnabled
from transformers import AutoConfig, PretrainedConfig

from arcft.config.model import ModelConfig
from arcft.errors import ModelError
from arcft.models.bundled import BUNDLED, bundled_folder

_HUB_SECONDS = 5


def resolve_path(path: str) -> str:
    """A `bundled:NAME` as its folder in the package, a local folder or GGUF file as its absolute path, and anything
    else unchanged: a hub id. Raises ModelError for a bundled name or a local path that does not exist."""
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


def model_path(config: ModelConfig) -> str:
    """`model.path`; raises ModelError where it is not set."""
    if not config.path:
        raise ModelError("model.path is not set: give a hub id, a folder or a .gguf file")
    return config.path


def hub_options(source: str) -> dict[str, Any]:
    """What to load `source`, a local folder or a hub id, with: without a network, only what was downloaded before."""
    return {} if Path(source).exists() or _can_reach_hub() else {"local_files_only": True}


@functools.cache
def _can_reach_hub() -> bool:
    """Asked once, as huggingface_hub would try each file for half a minute, with a warning at each attempt."""
    try:
        huggingface_hub.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=_HUB_SECONDS)
    # Whatever the hub answers, it is there.
    except (httpx.TransportError, OfflineModeIsEnabled):
        return False
    return True


def trusts_code(config: ModelConfig) -> bool:
    """Whether a model's own Python code may run; ModelError where only one of its two keys is turned."""
    if config.trust_remote_code and os.environ.get("ARCFT_TRUST_REMOTE_CODE") != "1":
        raise ModelError(
            f"model.trust_remote_code=true runs Python code from {config.path}: if you have read that code and trust "
            "it, also set the environment variable ARCFT_TRUST_REMOTE_CODE=1"
        )
    return config.trust_remote_code


def not_loaded(key: str, path: str, what: str, error: Exception) -> str:
    """What to tell when `what` could not be loaded from where `key` says."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = " ".join(lines)[:400]
    if Path(resolve_path(path)).exists():
        return f"{key}={path}: {what} can't be loaded from there ({reason})"
    return (
        f"{key}={path} is not a local folder, and as a hub id {what} can't be fetched under that name; check the name "
        f"and the network, or give the path of a downloaded folder ({reason})"
    )


def load_architecture(config: ModelConfig) -> PretrainedConfig:
    """The config.json at `config.path`, or what a GGUF file says in its place; errors are transformers' own."""
    source = resolve_path(model_path(config))
    if source.endswith(".gguf"):
        return AutoConfig.from_pretrained(Path(source).parent, gguf_file=Path(source).name)
    return AutoConfig.from_pretrained(source, trust_remote_code=trusts_code(config), **hub_options(source))
