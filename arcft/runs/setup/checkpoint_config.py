"""The config and tasks stored in a checkpoint, read and checked without loading a model."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from arcft.checkpoints import (
    RUN_FILE,
    Checkpoint,
    CheckpointError,
    find_checkpoints,
    last_checkpoint,
    read_checkpoint,
)
from arcft.config.run import EvaluateConfig, TrainConfig
from arcft.config.schema import ConfigError, to_dict
from arcft.runs.setup.kinds import read_stored

PATTERN = "*?["
OWN_FORMAT = ("encoder", "prompt")
"""Config groups that are taken from the checkpoint."""


def is_pattern(text: str) -> bool:
    """Whether `text` contains a wildcard and is not itself a folder."""
    return any(sign in text for sign in PATTERN) and not Path(text).exists()


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """A verified checkpoint and the config and tasks of its run."""

    checkpoint: Checkpoint
    config: TrainConfig
    tasks: dict[str, Any]
    """Ids by use: `train`, `held_out`, and `adapted_to` for a run that learned tasks from their demonstrations; and
    `disjoint_from`, the sets that the training data was verified not to overlap with."""

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.checkpoint.path.parent

    @property
    def name(self) -> str:
        """A short name for titles and tables."""
        return self.checkpoint.path.name


def open_checkpoint(path: Path, base_model: str | None = None, prune_vocabulary: bool | None = None) -> TrainedRun:
    """Verify the checkpoint at `path` (for a run: its last complete one) and read its config as data.

    `base_model` is the current path of its base model, if that has moved since training; `prune_vocabulary` replaces
    model.prune_vocabulary unless it is None.
    """
    checkpoint = read_checkpoint(last_checkpoint(path))
    file = checkpoint.path / RUN_FILE
    try:
        config = read_stored(TrainConfig, checkpoint.run_config["config"], file)
        tasks = dict(checkpoint.run_config["tasks"])
    except ConfigError as error:
        raise CheckpointError(str(error)) from error
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{file}: not the config of a training run: {error}") from error
    if base_model is not None:
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, path=base_model))
    if prune_vocabulary is not None:
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, prune_vocabulary=prune_vocabulary))
    return TrainedRun(checkpoint, config, tasks)


def matching_checkpoints(pattern: str) -> list[Path]:
    """The checkpoints that `checkpoint=` names, by run, then by step: the last one of each matching run, and each
    matching checkpoint. Other matches, and half-written checkpoints, are ignored."""
    if not is_pattern(pattern):
        return [last_checkpoint(Path(pattern))]
    found = matching_folders("checkpoint", pattern)
    checkpoints = []
    for folder in found:
        siblings, own = find_checkpoints(folder.parent), find_checkpoints(folder)
        checkpoints += [folder] if folder in siblings else own[-1:]
    if not checkpoints:
        raise CheckpointError(f"checkpoint={pattern}: none of the {len(found)} matches is a complete checkpoint")
    return sorted(checkpoints, key=lambda path: (str(path.parent), int(path.name.rpartition("-")[2])))


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """A distinct name for each path: its own, prefixed by the parents that the paths do not all share."""
    common = os.path.commonpath([path.parent for path in paths])
    return ["_".join(path.relative_to(common).parts) for path in paths]


def matching_folders(key: str, pattern: str) -> list[Path]:
    """The folders that the absolute `pattern` matches, sorted. Raises CheckpointError if there is none."""
    path = Path(pattern)
    found = sorted(match for match in Path(path.anchor).glob(str(path.relative_to(path.anchor))) if match.is_dir())
    if not found:
        raise CheckpointError(f"{key}={pattern}: no folder matches; quote the pattern for the shell")
    return found


def check_base(run: TrainedRun, fingerprint: str, base_name: str) -> None:
    """Raise CheckpointError unless `fingerprint` matches the base model that `run` was trained on."""
    expected = run.checkpoint.manifest["base_fingerprint"]
    if fingerprint != expected:
        raise CheckpointError(
            f"{run.checkpoint.path}: trained on {run.checkpoint.manifest['base_model']} with fingerprint "
            f"{expected[:12]}, but {base_name} has {fingerprint[:12]} here, so it is another model; "
            "get the one that the run was started from"
        )


def own_format(config: TrainConfig | EvaluateConfig) -> dict[str, Any]:
    """The groups that a checkpoint brings along, as plain data; None for a group that the kind lacks."""
    groups = {name: getattr(config, name) for name in OWN_FORMAT}
    return {name: None if group is None else to_dict(group) for name, group in groups.items()}


def contradictions(explicit: Iterable[str], asked: Any, stored: Any, groups: Sequence[str]) -> list[str]:
    """One message for each key of `groups` that the command line set to a value other than the stored one.

    `explicit` lists the keys and groups (`lora.r`, `encoder`) set on the command line; `asked` and `stored` are whole
    configs.
    """
    explicit = list(explicit)
    problems = []
    for group in groups:
        if not any(key.partition(".")[0] == group for key in explicit):
            continue
        if getattr(asked, group) is None or getattr(stored, group) is None:
            continue
        wanted, kept = _flat(getattr(asked, group)), _flat(getattr(stored, group))
        for name, value in wanted.items():
            is_explicit = any(key == group or f"{key}.".startswith(f"{group}.{name}.") for key in explicit)
            if is_explicit and value != kept.get(name):
                problems.append(
                    f"{group}.{name}={_shown(value)} contradicts the checkpoint's {_shown(kept.get(name))}; drop it"
                )
    return problems


def _flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """The values of a config dataclass and of those in it, by dotted key."""
    flat: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        nested = dataclasses.is_dataclass(value)
        flat |= _flat(value, f"{prefix}{field.name}.") if nested else {f"{prefix}{field.name}": value}
    return flat


def _shown(value: Any) -> Any:
    """An encoder's nested nodes as a constructor call; any other value unchanged."""
    if not isinstance(value, Mapping) or "name" not in value:
        return value
    arguments = [
        f"{_shown(part)}" if isinstance(part, Mapping) else f"{name}={part!r}"
        for name, part in value.items()
        if name != "name"
    ]
    return f"{value['name']}({', '.join(arguments)})"
