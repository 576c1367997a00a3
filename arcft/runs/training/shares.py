"""How many examples a step takes, and how they are shared out over the ranks there are."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from arcft import ranks
from arcft.checkpoints import RUN_FILE, CheckpointError, read_run_yaml
from arcft.config.schema import ConfigError
from arcft.config.training import EFFECTIVE_BATCH_SIZE, TrainingConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shares:
    """Who takes which part of a step."""

    started_with: int
    """Ranks that the run was started with. They decide how many examples a step takes, also after it is resumed by
    another number of ranks."""

    accumulation: int
    """Batches of each rank in a step."""

    examples: int
    """Examples of a step, of all ranks."""


def shares(training: TrainingConfig, resumed: Path | None) -> Shares:
    """The shares of this run; `resumed` is the folder of the run that it resumes.

    Raise ConfigError where the ranks there are can't take the steps of that run.
    """
    if training.per_device_train_batch_size == "auto":
        return _shares_of_auto(effective_batch_size(training))
    started_with = ranks.count() if resumed is None else _stored_ranks(resumed)
    batches = training.gradient_accumulation_steps * started_with
    if batches % ranks.count():
        fitting = [str(number) for number in range(1, batches + 1) if batches % number == 0]
        raise ConfigError(
            [
                f"resume={resumed}: its steps take {batches} batches of {training.per_device_train_batch_size} "
                f"examples, which {ranks.count()} processes can't share evenly; start {' or '.join(fitting)}"
            ]
        )
    return Shares(
        started_with=started_with,
        accumulation=batches // ranks.count(),
        examples=batches * training.per_device_train_batch_size,
    )


def effective_batch_size(training: TrainingConfig) -> int:
    """Examples of a step with a batch size of `auto`: as configured, or the least from EFFECTIVE_BATCH_SIZE on that the
    ranks can share."""
    return training.effective_batch_size or -(-EFFECTIVE_BATCH_SIZE // ranks.count()) * ranks.count()


def _shares_of_auto(examples: int) -> Shares:
    """How a batch size of `auto` starts, until it is known: one batch for each rank."""
    if examples % ranks.count():
        raise ConfigError(
            [
                f"training.effective_batch_size={examples}: {ranks.count()} processes can't share the examples of a "
                f"step evenly; use a multiple of {ranks.count()}"
            ]
        )
    return Shares(started_with=ranks.count(), accumulation=1, examples=examples)


def _stored_ranks(folder: Path) -> int:
    """From the run.yaml of a run; those of earlier versions were started as one process."""
    stored = read_run_yaml(folder).get("ranks", 1)
    if not isinstance(stored, int) or stored < 1:
        raise CheckpointError(f"{folder / RUN_FILE}: ranks={stored} is not a number of processes; was it changed?")
    return stored
