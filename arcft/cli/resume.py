"""resume=FOLDER: the config of an interrupted run, with the few keys that may change."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from arcft.checkpoints import MANIFEST_FILE, RUN_FILE, CheckpointError, read_run_yaml
from arcft.config.run import EvaluateConfig, TrainConfig
from arcft.config.schema import ConfigError, to_dict
from arcft.config.speed import SpeedConfig
from arcft.runs.common.command import command
from arcft.runs.setup.kinds import read_config, read_stored

Config = TypeVar("Config", TrainConfig, EvaluateConfig, SpeedConfig)

# What may change when a run is resumed: how much time it has and where it runs, nothing that decides its outcome.
RESUMABLE = {
    "train": (
        "resume",
        "preview",
        "training.max_time",
        "training.num_workers",
        "training.fsdp",
        "tracking.mode",
        "optimized_metric",
    ),
    "evaluate": ("resume", "ttft.budget", "ttft.workers", "ttft.num_workers", "tracking.mode", "optimized_metric"),
    "speed": ("resume", "max_time", "budget", "samples", "predictions"),
}


def resumed_config(
    config_class: type[Config], job: str, folder: Path, asked: Mapping[str, Any], explicit: dict[str, str]
) -> Config:
    """The config in the run.yaml of `folder`, a run of this `job`, with what the command line may change.

    `asked` is the config that the command line composes; only its resumable keys are used, and the rest is not
    checked. Raises ConfigError where the command line (`explicit`) sets another key, CheckpointError where `folder` is
    not such a run.
    """
    fixed = [key for key in explicit if key not in RESUMABLE[job] and not key.startswith("hydra")]
    if fixed:
        raise ConfigError(
            [f"{key}={explicit[key]} has no effect with resume=, which keeps its config; drop it" for key in fixed]
        )
    stored = to_dict(read_stored(config_class, _stored_values(job, folder), folder / RUN_FILE))
    for key in set(RESUMABLE[job]) & set(explicit) - {"resume"}:
        group, _, name = key.rpartition(".")
        target, source = (stored[group], asked[group]) if group else (stored, asked)
        target[name] = source[name]
    if config_class is TrainConfig:
        stored["resume"] = str(folder)
    # Stored and changed keys are each valid by themselves; together they may not be.
    return read_config(config_class, stored)


def _stored_values(job: str, folder: Path) -> dict[str, Any]:
    if (folder / MANIFEST_FILE).is_file():
        raise CheckpointError(f"resume={folder}: is a checkpoint; give its run: resume={folder.parent}")
    if not (folder / RUN_FILE).is_file():
        what = f"holds no {RUN_FILE}, so no run was started there" if folder.is_dir() else "there is no such folder"
        raise CheckpointError(f"resume={folder}: {what}; give the folder of a run, e.g. outputs/{job}/...")
    stored = read_run_yaml(folder)
    if stored.get("job") != job:
        other = str(stored.get("job"))
        other = other if other in RESUMABLE else next(name for name in RESUMABLE if name != job)
        raise CheckpointError(f"resume={folder}: holds no {job} run; if it is the other kind, use {command(other)}")
    if not isinstance(stored.get("config"), dict):
        raise CheckpointError(f"{folder / RUN_FILE}: holds no config; was it changed by hand?")
    return stored["config"]
