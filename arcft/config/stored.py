"""A config as a run.yaml holds it: of this version, or of an earlier one, whose keys are carried over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from arcft.config.schema import ConfigClass, ConfigError, from_dict


def from_stored(config_class: type[ConfigClass], values: dict[str, Any], path: Path) -> ConfigClass:
    """The config that was written as `values` into the run.yaml at `path`; a ConfigError names that file."""
    try:
        return from_dict(config_class, _carried_over(values))
    except ConfigError as error:
        raise ConfigError(
            [
                f"{path}: holds no config of this version ({'; '.join(error.problems)}); was it changed by hand? If "
                "not, use the version of arcft that its first line names"
            ]
        ) from error


def _carried_over(values: dict[str, Any]) -> dict[str, Any]:
    """`values` with the keys of this version, at any depth: a group may lie in another one."""
    kept = {name: _carried_over(value) if isinstance(value, dict) else value for name, value in values.items()}
    inference = kept.get("inference")
    if isinstance(inference, dict) and "do_sample" in inference and "name" not in inference:
        # Of before inference had a name, and a grammar.
        rest = {name: value for name, value in inference.items() if name != "do_sample"}
        kept["inference"] = {"name": "sample" if inference["do_sample"] else "greedy", "grammar": False} | rest
    return kept
