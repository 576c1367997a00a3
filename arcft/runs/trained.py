"""What a checkpoint says about its run, read and checked without loading a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from arcft.checkpoints import Checkpoint, CheckpointError, find_checkpoints, last_checkpoint, read_checkpoint
from arcft.config.run import TrainConfig
from arcft.config.schema import ConfigError, from_dict, to_dict

PATTERN = "*?["


def is_pattern(text: str) -> bool:
    """Whether `text` has a wildcard, so that it names several folders."""
    return any(sign in text for sign in PATTERN)


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """A verified checkpoint and the config and tasks of its run."""

    checkpoint: Checkpoint
    config: TrainConfig
    tasks: dict[str, Any]
    """Ids by use: `train`, `held_out`, and `adapted_to` for a run that learned tasks from their demonstrations."""

    @property
    def name(self) -> str:
        """For titles: run folder and checkpoint."""
        return f"{self.checkpoint.path.parent.name}/{self.checkpoint.path.name}"


def open_checkpoint(path: Path) -> TrainedRun:
    """Verify the checkpoint at `path` (for a run: its last complete one) and read its config as data."""
    checkpoint = read_checkpoint(last_checkpoint(path))
    try:
        config = from_dict(TrainConfig, checkpoint.run_config["config"])
        tasks = dict(checkpoint.run_config["tasks"])
    except (KeyError, TypeError, ConfigError) as error:
        raise CheckpointError(f"{checkpoint.path / 'run.yaml'}: not the config of a training run: {error}") from error
    return TrainedRun(checkpoint, config, tasks)


def matching_checkpoints(pattern: str) -> list[Path]:
    """The checkpoints that `checkpoint=` names: those of a pattern in order of step, or the last one of a run."""
    if not is_pattern(pattern):
        return [last_checkpoint(Path(pattern).expanduser())]
    found = matching_folders("checkpoint", pattern)
    checkpoints = []
    for folder in found:
        complete = (
            find_checkpoints(folder.parent) if folder.name.startswith("checkpoint-") else find_checkpoints(folder)
        )
        checkpoints += [path for path in complete if folder in (path, path.parent)]
    if not checkpoints:
        raise CheckpointError(f"checkpoint={pattern}: none of the {len(found)} matches is a complete checkpoint")
    unique = {path.resolve(): path for path in checkpoints}
    return sorted(unique.values(), key=lambda path: (str(path.parent), int(path.name.rpartition("-")[2])))


def matching_folders(key: str, pattern: str) -> list[Path]:
    """The folders that `key=pattern` matches, sorted; CheckpointError when there is none."""
    path = Path(pattern).expanduser()
    anchor = Path(path.anchor) if path.is_absolute() else Path()
    relative = path.relative_to(anchor) if path.is_absolute() else path
    found = sorted(match for match in anchor.glob(str(relative)) if match.is_dir())
    if not found:
        raise CheckpointError(
            f"{key}={pattern}: no folder matches (from {Path.cwd()}); quote the pattern for the shell"
        )
    return found


def check_base(run: TrainedRun, fingerprint: str, base_name: str) -> None:
    """Raise CheckpointError unless `fingerprint` is that of the base model that `run` was trained on."""
    expected = run.checkpoint.manifest["base_fingerprint"]
    if fingerprint != expected:
        raise CheckpointError(
            f"{run.checkpoint.path}: trained on {run.checkpoint.manifest['base_model']} with fingerprint "
            f"{expected[:12]}, but {base_name} has {fingerprint[:12]} here: other weights under the same name; "
            "get the base model that the run was started from"
        )


def contradictions(explicit: Iterable[str], asked: Any, stored: Any, groups: Sequence[str]) -> list[str]:
    """One message for each key of `groups` that the command line set to something else than what is stored.

    `explicit` are the keys and groups (`lora.r`, `encoder`) that were set by hand, `asked` and `stored` whole configs.
    """
    explicit = list(explicit)
    problems = []
    for group in groups:
        if not any(key.partition(".")[0] == group for key in explicit):
            continue
        wanted, kept = to_dict(getattr(asked, group)), to_dict(getattr(stored, group))
        for name, value in wanted.items():
            if value != kept[name] and any(
                key == group or f"{key}.".startswith(f"{group}.{name}.") for key in explicit
            ):
                problems.append(f"{group}.{name}={value} contradicts the checkpoint's {kept[name]}; drop it")
    return problems
