"""A config as a run.yaml holds it: of this version, or of an earlier one, whose keys are carried over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from arcft.config import version_0_1
from arcft.config.schema import ConfigClass, ConfigError, Kinds, from_dict


def from_stored(
    config_class: type[ConfigClass], values: dict[str, Any], path: Path, kinds: Kinds | None = None
) -> ConfigClass:
    """The config that was written as `values` into the run.yaml at `path`; a ConfigError names that file.

    `kinds` as for `from_dict`.
    """
    try:
        return from_dict(config_class, version_0_1.read(values), kinds)
    except ConfigError as error:
        raise ConfigError(
            [
                f"{path}: holds no config of this version ({'; '.join(error.problems)}); was it changed by hand? If "
                "not, use the version of arcft that its first line names"
            ]
        ) from error
