"""Paths in a config, made absolute once, so that a stored config means the same from every folder."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString

from arcft.config.data import DataConfig
from arcft.config.lora import LoraConfig
from arcft.config.model import ModelConfig
from arcft.config.run import EvaluateConfig, TrainConfig
from arcft.runs.setup.kinds import kind_of


def absolute(path: str) -> str:
    """`path` from the root, without `..` or a trailing slash; links stay as they are named."""
    return os.path.abspath(Path(path).expanduser())


def override(key: str, path: str | Path) -> str:
    """`key=path` to be typed in a shell, quoted where the shell or Hydra would take the path apart."""
    if re.fullmatch(r"[\w./:@%+-]+", str(path), re.ASCII):
        return f"{key}={path}"
    return in_shell(f"{key}={quoted(str(path))}")


def quoted(text: str) -> str:
    """`text` in the quotes of Hydra's grammar; an interpolation such as `${oc.env:HOME}` remains one."""
    unclosed = re.sub(r"\$\{(?![^{}]*\})", r"\\${", text)
    return QuotedString(unclosed, Quote.single).with_quotes()


def in_shell(word: str) -> str:
    """`word` in quotes for a shell: double ones, unless it has signs that have a meaning inside them."""
    return shlex.quote(word) if re.search(r"[\"$`\\!]", word) else f'"{word}"'


def with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """`config` with every path of a file or folder absolute; hub ids and `bundled:` names stay."""
    lora = config.lora
    if isinstance(lora, LoraConfig) and lora.start is not None:
        lora = dataclasses.replace(lora, start=absolute(lora.start))
    showcase = config.showcase
    if showcase is not None:
        showcase = dataclasses.replace(showcase, data=_data_paths(showcase.data))
    return dataclasses.replace(
        config, data=_data_paths(config.data), lora=lora, model=_model_paths(config.model), showcase=showcase
    )


def evaluation_with_absolute_paths(config: EvaluateConfig) -> EvaluateConfig:
    """The same for an evaluation; a pattern is made absolute as it is."""
    named = {name: getattr(config, name) for name in ("checkpoint", "adapters")}
    paths: dict[str, Any] = {name: absolute(path) for name, path in named.items() if path is not None}
    if config.predictions is not None:
        files = [config.predictions] if isinstance(config.predictions, str) else config.predictions
        paths["predictions"] = [absolute(file) for file in files]
    model = _model_paths(config.model) if config.model is not None else None
    if config.base_model is not None and Path(config.base_model).expanduser().exists():
        paths["base_model"] = absolute(config.base_model)
    return dataclasses.replace(config, data=_data_paths(config.data), model=model, **paths)


def _data_paths(data: DataConfig) -> DataConfig:
    kind = kind_of(data)
    names = [name if kind.is_set_name(name) else absolute(name) for name in data.disjoint_from]
    return dataclasses.replace(data.with_paths(absolute), disjoint_from=names)


def _model_paths(model: ModelConfig) -> ModelConfig:
    named = {name: getattr(model, name) for name in ("path", "tokenizer")}
    # A path that does not exist may be a hub id; otherwise the error should name it as the user wrote it.
    local = {name: path for name, path in named.items() if path and Path(path).expanduser().exists()}
    paths: dict[str, Any] = {name: absolute(path) for name, path in local.items()}
    return dataclasses.replace(model, **paths)
