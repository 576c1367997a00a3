"""The kinds of problems, one row each: the only place that knows arcft.problems."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from arcft.config.data import DataConfig
from arcft.config.run import EvaluateConfig, TrainConfig
from arcft.config.schema import ConfigClass, Kinds, from_dict
from arcft.config.selection import VerifyConfig
from arcft.config.stored import from_stored
from arcft.problems.arc.kind import ArcKind
from arcft.protocols import Kind, ProblemError

KINDS: dict[str, Callable[[], Kind]] = {
    "arc": ArcKind,
}
"""By the name that `data.kind` gives it, what makes a kind."""


def kind_of(data: DataConfig) -> Kind:
    """The kind of the problems that `data` names."""
    return KINDS[data.kind]()


def kind_configs() -> Kinds:
    """The config classes that kinds bring, as arcft.config.schema takes them."""
    return {name: make().configs for name, make in KINDS.items()}


def read_config(config_class: type[ConfigClass], values: dict[str, Any]) -> ConfigClass:
    """The config of a run (TrainConfig or EvaluateConfig) from plain data; ConfigError with all that is wrong with it,
    as far as it can be told without loading anything."""
    return from_dict(config_class, values, kind_configs(), check=_kind_problems)


def read_stored(config_class: type[ConfigClass], values: dict[str, Any], path: Path) -> ConfigClass:
    """The config that was written as `values` into the run.yaml at `path`, by this version or an earlier one; a
    ConfigError names that file."""
    return from_stored(config_class, values, path, kind_configs())


def read_data(values: dict[str, Any]) -> DataConfig:
    """The `data` group by itself."""
    configs = kind_configs()
    config: DataConfig = from_dict(configs[values["kind"]]["data"], values, path="data")
    return config


def _kind_problems(config: Any) -> Iterator[str]:
    """What only the kind can tell."""
    if not isinstance(config, TrainConfig | EvaluateConfig):
        return
    kind = kind_of(config.data)
    if isinstance(config, TrainConfig) and config.training.best_metric not in kind.metrics.best:
        known = ", ".join(kind.metrics.best)
        yield f"training.best_metric={config.training.best_metric}: one of {known}"
    if config.model is not None and config.model.positions not in ("none", *kind.positions):
        yield f"model.positions={config.model.positions}: one of {', '.join(('none', *kind.positions))}"
    yield from _unknown_augmentations(kind, "inference", config.inference.augmentations)
    showcase = config.showcase if isinstance(config, TrainConfig) else None
    if showcase is not None:
        there = kind_of(showcase.data)
        yield from _unknown_augmentations(there, "showcase.inference", showcase.inference.augmentations)
    if isinstance(config.selection, VerifyConfig):
        try:
            kind.verifier()
        except ProblemError as error:
            yield str(error)
    yield from kind.problems(config)


def _unknown_augmentations(kind: Kind, group: str, names: list[str] | str) -> Iterator[str]:
    unknown = [] if isinstance(names, str) else [name for name in names if name not in kind.augmentations]
    if unknown:
        known = ", ".join(kind.augmentations) or "none"
        yield f"{group}.augmentations=[{','.join(names)}]: {unknown[0]} is unknown; known are {known}"
