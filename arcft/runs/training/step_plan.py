"""The examples of an optimizer step, and how the ranks divide them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from arcft import ranks
from arcft.checkpoints import RUN_FILE, CheckpointError, read_run_yaml
from arcft.config.schema import ConfigError
from arcft.config.training import EFFECTIVE_BATCH_SIZE, TrainingConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepPlan:
    """An optimizer step."""

    started_with: int
    """Ranks that the run was started with. They decide how many examples a step takes, also after it is resumed by
    another number of ranks."""

    examples: int
    """Examples of a step, of all ranks."""

    def of_rank(self, training: TrainingConfig) -> TrainingConfig:
        """`training` with the batch size and the accumulation of each rank: the batch size of `training`, or the
        largest below that divides this rank's examples of a step."""
        own = self.examples // ranks.launched()
        size = next(size for size in range(min(training.batch_size, own), 0, -1) if own % size == 0)
        return dataclasses.replace(training, per_device_train_batch_size=size, gradient_accumulation_steps=own // size)


def plan_steps(training: TrainingConfig, resumed: Path | None) -> StepPlan:
    """The steps of this run; `resumed` is the folder of the run that it resumes.

    Raise ConfigError where the ranks can't divide a step evenly.
    """
    size = training.per_device_train_batch_size
    started_with = ranks.launched() if resumed is None or size == "auto" else _stored_ranks(resumed)
    if size == "auto":
        examples = effective_batch_size(training)
    else:
        examples = size * training.gradient_accumulation_steps * started_with
    if examples % ranks.launched():
        raise ConfigError([_uneven(examples, resumed)])
    return StepPlan(started_with=started_with, examples=examples)


def effective_batch_size(training: TrainingConfig) -> int:
    """Examples of a step with a batch size of `auto`: as configured, or the least from EFFECTIVE_BATCH_SIZE on that the
    ranks can divide."""
    return training.effective_batch_size or -(-EFFECTIVE_BATCH_SIZE // ranks.launched()) * ranks.launched()


def _uneven(examples: int, resumed: Path | None) -> str:
    started = ranks.launched()
    if resumed is None:
        return (
            f"training.effective_batch_size={examples}: {started} processes can't divide the examples of a step "
            f"evenly; use a multiple of {started}"
        )
    *others, last = [str(number) for number in range(1, examples + 1) if examples % number == 0]
    fitting = f"{', '.join(others)} or {last} processes" if others else "1 process"
    return (
        f"resume={resumed}: its steps take {examples} examples, which {started} processes can't divide evenly; start "
        f"{fitting}"
    )


def _stored_ranks(folder: Path) -> int:
    """From the run.yaml of a run; those of earlier versions were started as one process."""
    stored = read_run_yaml(folder).get("ranks", 1)
    if not isinstance(stored, int) or stored < 1:
        raise CheckpointError(f"{folder / RUN_FILE}: ranks={stored} is not a number of processes; was it changed?")
    return stored
