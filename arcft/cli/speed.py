"""`arcft speed`: a checked config, the models that it names, then the study. Loads no model library itself."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from arcft.cli.hydra_app import explicit_keys, plain_config, run_from_command_line
from arcft.cli.resume import resumed_config
from arcft.config.run import EvaluateConfig
from arcft.config.schema import ConfigError
from arcft.config.speed import SpeedConfig
from arcft.runs.common.config_folder import config_folder
from arcft.runs.common.paths import absolute
from arcft.runs.setup.kinds import read_config
from arcft.runs.speed import speed

_NO_OPTIONS = ("local",)
"""Files of conf/model that are no model by themselves."""


def main() -> None:
    """Measure as the command line says."""
    run_from_command_line(_speed, "speed", SpeedConfig, config_folder() / "speed")


def _speed(cfg: DictConfig) -> None:
    values = plain_config(cfg)
    folder = Path(HydraConfig.get().runtime.output_dir)
    if values["resume"] is None:
        config = with_absolute_paths(read_config(SpeedConfig, values))
    else:
        folder = Path(absolute(str(values["resume"])))
        config = resumed_config(SpeedConfig, "speed", folder, values, explicit_keys())
    speed(config, model_configs(config), folder)


def model_configs(config: SpeedConfig) -> dict[str, EvaluateConfig]:
    """By what reports call a model, what evaluate.py would compose for it, in the order of `config.model`. Raise
    ConfigError for a name that is neither an option nor a path."""
    paths, problems = config.paths or {}, []
    configs: dict[str, EvaluateConfig] = {}
    for name in config.axes["model"]:
        if name in options():
            configs[name] = _composed(name, paths.get(name))
        elif name in paths:
            problems.append(f"paths.{name}: {name} isn't an option of conf/model; put the path into model= itself")
        elif _may_be_path(name):
            short = short_name(name)
            short = name if short in configs or short in options() else short
            configs[short] = _composed("local", name, short)
        else:
            problems.append(_unknown(name))
    if problems:
        raise ConfigError(problems)
    return configs


def options() -> list[str]:
    """The models that conf/model names."""
    return sorted(path.stem for path in (config_folder() / "model").glob("*.yaml") if path.stem not in _NO_OPTIONS)


def with_absolute_paths(config: SpeedConfig) -> SpeedConfig:
    """`config` with every local path absolute, so that a stored one means the same from every folder. Raise ConfigError
    where two spellings name the same path."""
    model = [name if name in options() else _absolute(name) for name in config.axes["model"]]
    paths = {name: _absolute(path) for name, path in (config.paths or {}).items()}
    config = dataclasses.replace(config, model=model, paths=paths or None)
    if problems := list(config.problems()):
        raise ConfigError(problems)
    return config


def _absolute(path: str) -> str:
    # What does not exist may be a hub id; otherwise the error should name it as it was typed.
    return absolute(path) if Path(path).expanduser().exists() else path


def short_name(path: str) -> str:
    """What reports call a model that is named by its path."""
    return Path(path).stem if path.endswith(".gguf") else Path(path).name


def _may_be_path(name: str) -> bool:
    return "/" in name or name.endswith(".gguf") or Path(name).expanduser().exists()


def _unknown(name: str) -> str:
    known = options()
    nearest = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {nearest[0]}? " if nearest else ""
    return (
        f"model={name}: is neither an option of conf/model nor a folder, a .gguf file or a hub id such as owner/name; "
        f"{hint}the options are {', '.join(known)}"
    )


def _composed(option: str, path: str | None, name: str | None = None) -> EvaluateConfig:
    with _no_other_hydra(), initialize_config_dir(str(config_folder()), version_base="1.3"):
        values: dict[str, Any] = plain_config(compose("evaluate", [f"model={option}"]))
    changes = {"path": path, "name": name}
    values["model"] |= {key: value for key, value in changes.items() if value is not None}
    return read_config(EvaluateConfig, values)


@contextlib.contextmanager
def _no_other_hydra() -> Iterator[None]:
    """Hydra composes for one program at a time; put aside the one that is running."""
    outer = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = outer
