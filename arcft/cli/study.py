"""`arcft study`: a checked config, then the study. Loads no model library."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from arcft.cli.hydra_app import plain_config, run_from_command_line
from arcft.config.schema import from_dict
from arcft.config.study import StudyConfig
from arcft.console import complain
from arcft.runs.common.paths import quoted
from arcft.runs.study import study


def main() -> None:
    """Compare as the command line says."""
    problem = misplaced(sys.argv[1:])
    if problem:
        complain(f"error: {problem}")
        sys.exit(1)
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


def misplaced(words: Sequence[str]) -> str:
    """What is wrong with the places of bare paths; empty if nothing is."""
    options = [word for word in words if not _is_path(word)]
    first = words.index(options[0]) if options else len(words)
    paths, late = words[:first], [word for word in words[first:] if _is_path(word)]
    if any(word.startswith("-") for word in options):
        # Hydra's flags take bare words.
        return ""
    if late:
        return f"{late[0]}: paths come first: arcft study {shlex.join([*paths, *late])} ..."
    named = [word for word in options if word.startswith("runs=")]
    if paths and named:
        return f"{paths[0]} and {named[0]} both name runs; give all of them as paths, or all in runs=[...]"
    return ""


def _is_path(word: str) -> bool:
    return not word.startswith("-") and ("=" not in word or Path(word).expanduser().exists())


def _study(cfg: DictConfig) -> None:
    study(from_dict(StudyConfig, plain_config(cfg)))
