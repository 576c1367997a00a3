"""`arcft study`: a checked config, then the study. Loads no model library."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from arcft.cli.hydra_app import plain_config, run_from_command_line
from arcft.config.schema import from_dict
from arcft.config.study import StudyConfig
from arcft.runs.common.paths import quoted
from arcft.runs.study import study


def main() -> None:
    """Compare as the command line says."""
    sys.argv[1:] = with_leading_paths(sys.argv[1:])
    run_from_command_line(_study, "study", StudyConfig)


def with_leading_paths(words: Sequence[str]) -> list[str]:
    """`words` with the bare paths that come first as `runs=[...]`."""
    number = 0
    while number < len(words) and _is_path(words[number]):
        number += 1
    if not number:
        return list(words)
    return [f"runs=[{','.join(map(quoted, words[:number]))}]", *words[number:]]


def _is_path(word: str) -> bool:
    return not word.startswith("-") and ("=" not in word or Path(word).expanduser().exists())


def _study(cfg: DictConfig) -> None:
    study(from_dict(StudyConfig, plain_config(cfg)))
