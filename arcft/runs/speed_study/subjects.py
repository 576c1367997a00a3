"""What can be known to be wrong with a speed study before any model is loaded."""

from __future__ import annotations

import dataclasses
import importlib.util
import struct
from collections.abc import Iterator, Mapping

import torch
from transformers import PretrainedConfig

from arcft.config.schema import ConfigError
from arcft.config.speed import SpeedConfig
from arcft.errors import ModelError
from arcft.models.families import Decoder, stored_decoder
from arcft.models.limits import position_limit
from arcft.models.load import resolve_dtype
from arcft.models.source import load_architecture, resolve_path
from arcft.runs.setup.build import choose_device
from arcft.runs.speed_study.worker import Subject


def refuse_impossible(config: SpeedConfig, subjects: Mapping[str, Subject]) -> None:
    """Raise ConfigError with everything that can't be measured; nothing is loaded but the models' configs.

    `subjects` are by what the user typed.
    """
    problems = []
    quantised = [name for name in config.axes["quantization"] if name != "none"]
    if quantised and importlib.util.find_spec("bitsandbytes") is None:
        problems.append(f"quantization={quantised[0]} needs bitsandbytes: pip install bitsandbytes")
    problems += problems_here(config, choose_device())
    for name, subject in subjects.items():
        problems += _problems(name, subject, config)
    if problems:
        raise ConfigError(problems)


def problems_here(config: SpeedConfig, device: torch.device) -> Iterator[str]:
    """What this machine's `device` can't measure, whatever the models are."""
    if config.clock == "processor" and device.type == "cuda":
        yield "clock=processor: a GPU works on its own while the processor waits; use clock=wall"
    named: dict[torch.dtype, str] = {}
    for name in config.axes["dtype"]:
        dtype = resolve_dtype(name, device)
        if dtype in named:
            yield f"dtype: on this machine {named[dtype]} and {name} are the same; drop one of them"
        named[dtype] = name


def _problems(name: str, subject: Subject, config: SpeedConfig) -> Iterator[str]:
    model = subject.model
    for quantization in config.axes["quantization"]:
        for problem in dataclasses.replace(model, quantization=quantization).problems():
            yield f"model={name}: {problem}"
    try:
        architecture = load_architecture(model)
        decoder = stored_decoder(model)
    except (OSError, ValueError, KeyError, ImportError, ModelError, struct.error) as error:
        yield f"model={name}: {_unreadable(name, str(model.path), error)}"
        return
    if decoder is Decoder.GENERATE and model.positions != "none":
        yield f"model={name}: has model.positions={model.positions}, which transformers' generate can't count"
    yield from _too_long(name, architecture, config)


def _unreadable(name: str, path: str, error: Exception) -> str:
    if isinstance(error, ModelError):
        return str(error).replace(f"model.path={path}", path, 1).removeprefix(f"{name}: ")
    reason = " ".join(str(error).split()).partition(". ")[0][:200]
    if resolve_path(path) != path:
        return f"no causal language model can be read at {path} ({reason})"
    return (
        f"the hub id {path} can't be reached from here; if the model is on this machine, give its folder or .gguf "
        f"file, in place of its name or as paths={{NAME: FILE}} ({reason})"
    )


def _too_long(name: str, architecture: PretrainedConfig, config: SpeedConfig) -> Iterator[str]:
    limit = position_limit(architecture)
    longest = max(config.axes["input"]) + max(config.axes["output"])
    if limit is not None and longest > limit:
        yield (
            f"input={max(config.axes['input'])} with output={max(config.axes['output'])} is {longest} tokens, and "
            f"model={name} takes at most {limit} (max_position_embeddings in its config); choose shorter ones, or "
            "study it by itself"
        )
