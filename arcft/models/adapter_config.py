"""adapter_config.json: which entries describe a plain LoRA adapter, and which values they can have."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft

from arcft.config.lora import INITIAL_WEIGHTS
from arcft.errors import ArcftError

CONFIG_FILE = "adapter_config.json"


class LoraError(ArcftError):
    """An adapter that does not fit its model, or that can't be read."""


def read_adapter_config(folder: Path) -> peft.LoraConfig:
    """Read and validate adapter_config.json in `folder`. Raise LoraError unless it describes a plain LoRA adapter."""
    path = folder / CONFIG_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise LoraError(f"{path}: can't be read: {error}") from error
    return parse_adapter_config(content, path)


def parse_adapter_config(content: Any, path: Path | str) -> peft.LoraConfig:
    """The config that `content`, read from `path`, describes. Raise LoraError unless it is a plain LoRA adapter's."""
    if not isinstance(content, dict) or content.get("peft_type") != "LORA":
        raise LoraError(f"{path}: is not a plain LoRA adapter: it has no peft_type LORA")
    defaults = vars(peft.LoraConfig())
    for name, value in content.items():
        if name in _PLAIN:
            if not _PLAIN[name](value):
                raise LoraError(f"{path}: {name}={_short(value)} is not a value that a LoRA adapter can have")
        # Anything else belongs to another method, or names code to import.
        elif name not in _UNUSED and value and value != defaults.get(name):
            raise LoraError(f"{path}: is not a plain LoRA adapter: {name}={_short(value)}")
    try:
        return peft.LoraConfig(**{name: content[name] for name in _PLAIN if name in content})
    except (TypeError, ValueError, ImportError) as error:
        raise LoraError(f"{path}: is not valid: {error}") from error


def sort_names(config: peft.LoraConfig) -> None:
    """Give the lists of names in `config` an order."""
    for key in ("target_modules", "target_parameters", "exclude_modules"):
        names = getattr(config, key)
        if names is not None and not isinstance(names, str):
            setattr(config, key, sorted(names))


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(name, str) for name in value)


def _is_pattern(value: Any, is_valid: Callable[[Any], bool]) -> bool:
    return isinstance(value, dict) and all(isinstance(name, str) and is_valid(one) for name, one in value.items())


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _short(value: Any) -> str:
    return json.dumps(value)[:80]


# The entries that are read from adapter_config.json, and which values are valid.
_PLAIN: dict[str, Callable[[Any], bool]] = {
    "task_type": lambda value: value in (None, "CAUSAL_LM"),
    "r": lambda value: type(value) is int and value > 0,
    "lora_alpha": lambda value: _is_number(value) and value > 0,
    "lora_dropout": lambda value: _is_number(value) and 0 <= value < 1,
    "target_modules": lambda value: isinstance(value, str) or _is_names(value),
    "modules_to_save": lambda value: value is None or _is_names(value),
    # PEFT adapts fused experts of a mixture by parameter, with ranks and scales of their own.
    "exclude_modules": lambda value: value is None or _is_names(value),
    "target_parameters": lambda value: value is None or _is_names(value),
    "rank_pattern": lambda value: _is_pattern(value, lambda rank: type(rank) is int and rank > 0),
    "alpha_pattern": lambda value: _is_pattern(value, lambda alpha: _is_number(alpha) and alpha > 0),
    "use_rslora": _is_bool,
    "use_dora": _is_bool,
    "fan_in_fan_out": _is_bool,
    "ensure_weight_tying": _is_bool,
    "init_lora_weights": lambda value: isinstance(value, bool | str) and value in INITIAL_WEIGHTS,
}
# Entries on where the adapter comes from, which are ignored.
_UNUSED = ("peft_type", "peft_version", "base_model_name_or_path", "revision", "inference_mode")
