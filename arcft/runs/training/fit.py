"""Fitting a run into the memory there is: what `auto` stands for, and a warning where it does not fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from arcft import ranks
from arcft.config.lora import LoraConfig
from arcft.config.run import TrainConfig
from arcft.config.training import TrainingConfig
from arcft.console import note, say, warn
from arcft.memory import gib
from arcft.runs.training.estimate import Estimator, Memory
from arcft.runs.training.step_plan import effective_batch_size

MARGIN = 0.9
"""The share of the available memory that `auto` fills at most: estimates are not exact."""

WORTH_NAMING = 0.1
"""A key is named if what it lowers is at least this share of the whole."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit:
    """A run as it fits, or does not fit, into memory."""

    config: TrainConfig
    """With numbers in place of `auto`."""

    memory: Memory | None
    """None where it can't be estimated."""

    longest: int
    """Tokens of the longest example that was looked at."""

    sampled: int
    """Examples that were looked at."""

    available: int
    """Bytes."""

    @property
    def fits(self) -> bool:
        """Whether the estimate is below what is available; true where there is none."""
        return self.memory is None or self.memory.total <= self.available


def fit_memory(estimator: Estimator, available: int) -> Fit:
    """Choose what `auto` leaves open in a run's config, say so, and warn where the run needs more than the `available`
    bytes. Nothing is loaded."""
    config = estimator.config
    training, memory = _chosen(estimator, available)
    fit = Fit(
        config=dataclasses.replace(config, training=training),
        memory=memory,
        longest=estimator.longest,
        sampled=len(estimator.examples),
        available=available,
    )
    if training != config.training:
        need = "" if memory is None else f": about {gib(memory.total)} of the {gib(available)} available"
        say(
            f"training.per_device_train_batch_size={training.batch_size} "
            f"training.gradient_accumulation_steps={training.gradient_accumulation_steps} "
            f"training.gradient_checkpointing={str(training.gradient_checkpointing).lower()}{need}"
        )
    if memory is None:
        note("the memory of this run can't be estimated; a step that runs out of it starts over in smaller passes")
    elif not fit.fits:
        keys = ", ".join(_keys_that_help(fit.config, memory))
        remedy = f"; to need less: {keys}" if keys else ""
        warn(f"needs about {gib(memory.total)}, more than the {gib(available)} available{remedy}")
    return fit


def _chosen(estimator: Estimator, available: int) -> tuple[TrainingConfig, Memory | None]:
    """The first setting that fits; where none does, the first of those that need least."""
    tried = []
    for training in _candidates(estimator.config.training):
        memory = estimator.memory(training)
        if memory is None or memory.total <= MARGIN * available:
            return training, memory
        tried.append((training, memory))
    return min(tried, key=lambda one: one[1].total)


def _candidates(training: TrainingConfig) -> Iterator[TrainingConfig]:
    """The settings that `auto` may stand for, the fastest first."""
    size = training.per_device_train_batch_size
    if size == "auto":
        total = effective_batch_size(training) // ranks.launched()
        sizes = [count for count in range(total, 0, -1) if total % count == 0]
    else:
        total, sizes = size * training.gradient_accumulation_steps, [size]
    wanted = training.gradient_checkpointing
    for checkpointing in (False, True) if wanted == "auto" else (wanted,):
        for count in sizes:
            yield dataclasses.replace(
                training,
                per_device_train_batch_size=count,
                gradient_accumulation_steps=total // count,
                effective_batch_size=None,
                gradient_checkpointing=checkpointing,
            )


def _keys_that_help(config: TrainConfig, memory: Memory) -> Iterator[str]:
    training = config.training
    if memory.activations > WORTH_NAMING * memory.total:
        if training.batch_size > 1:
            yield f"training.per_device_train_batch_size below {training.batch_size}"
        if not training.gradient_checkpointing:
            yield "training.gradient_checkpointing=true"
        yield f"training.max_seq_length below {training.max_seq_length}"
    quantisable = isinstance(config.lora, LoraConfig) and config.model.quantization == "none"
    if quantisable and memory.weights > WORTH_NAMING * memory.total:
        yield "model.quantization=nf4"
