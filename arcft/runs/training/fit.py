"""Fitting a run into the available memory: what `auto` stands for, and a warning where it does not fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch

from arcft import ranks
from arcft.config.lora import LoraConfig
from arcft.config.training import TrainingConfig
from arcft.console import note, say, warn
from arcft.memory import available_memory, gib
from arcft.runs.training.estimate import Estimator, Memory
from arcft.runs.training.step_plan import StepPlan
from arcft.training import collectives

MARGIN = 0.9
"""The share of the available memory that `auto` fills at most: estimates are not exact."""

WORTH_NAMING = 0.05
"""A key is named if it lowers the peak by at least this share."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Available:
    """Bytes that a process of the run may occupy, the least of all ranks."""

    device: int
    """Where it trains."""

    cpu: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit:
    """A run as it fits, or does not fit, into memory."""

    training: TrainingConfig
    """With numbers in place of `auto`."""

    memory: Memory | None
    """None where it can't be estimated."""

    longest: int
    """Tokens of the longest example that was looked at."""

    sampled: int
    """Examples that were looked at."""

    available: Available

    @property
    def fits(self) -> bool:
        """Whether the estimate is below what is available; true where there is none."""
        return self.memory is None or (
            self.memory.total <= self.available.device and self.memory.host <= self.available.cpu
        )


def least_available(device: torch.device) -> Available:
    """What each rank has at least. All ranks call it."""
    cpu = torch.device("cpu")
    found = collectives.gathered((available_memory(device), available_memory(cpu)))
    return Available(device=min(own for own, _ in found), cpu=min(own for _, own in found))


def fit_memory(estimator: Estimator, plan: StepPlan, available: Available) -> Fit:
    """Choose what `auto` leaves open in a run's config, say so, and warn where the run needs more than what is
    available. Nothing is loaded."""
    config = estimator.config
    training, memory = _chosen(estimator, plan, available)
    fit = Fit(
        training=training,
        memory=memory,
        longest=estimator.longest,
        sampled=estimator.sampled,
        available=available,
    )
    if training != config.training:
        need = "" if memory is None else f": about {gib(memory.total)} of the {gib(available.device)} available"
        say(
            f"training.per_device_train_batch_size={training.batch_size} "
            f"training.gradient_accumulation_steps={training.gradient_accumulation_steps} "
            f"training.gradient_checkpointing={str(training.gradient_checkpointing).lower()}{need}"
        )
    if memory is None:
        then = "is repeated in smaller passes" if config.training.fsdp is None else "ends the run"
        note(f"the memory of this run can't be estimated; if a step runs out of memory, it {then}")
    else:
        _warn(estimator, plan, fit, memory)
    return fit


def _warn(estimator: Estimator, plan: StepPlan, fit: Fit, memory: Memory) -> None:
    if memory.total > fit.available.device:
        keys = ", ".join(_keys_that_help(estimator, plan, fit.training, memory))
        remedy = f"; to need less: {keys}" if keys else ""
        warn(f"needs about {gib(memory.total)}, more than the {gib(fit.available.device)} available{remedy}")
    if memory.host > fit.available.cpu:
        processes = f" in each of {ranks.local_count()} processes; start fewer on a machine" * (ranks.local_count() > 1)
        warn(
            f"needs about {gib(memory.host)} of CPU memory while the weights are loaded, more than the "
            f"{gib(fit.available.cpu)} available{processes}"
        )


def _chosen(estimator: Estimator, plan: StepPlan, available: Available) -> tuple[TrainingConfig, Memory | None]:
    """The first setting that fits; where none does, the first of those that need least."""
    tried = []
    for training in _candidates(estimator.config.training, plan.examples // ranks.launched()):
        memory = estimator.memory(plan.of_rank(training))
        if memory is None or memory.total <= MARGIN * available.device:
            return training, memory
        tried.append((training, memory))
    return min(tried, key=lambda one: one[1].total)


def _candidates(training: TrainingConfig, examples: int) -> Iterator[TrainingConfig]:
    """The settings that `auto` may stand for, the fastest first; `examples` are those of a rank in a step."""
    size = training.per_device_train_batch_size
    wanted = training.gradient_checkpointing
    for checkpointing in (False, True) if wanted == "auto" else (wanted,):
        changed = dataclasses.replace(training, gradient_checkpointing=checkpointing)
        if size != "auto":
            yield changed
            continue
        for count in range(examples, 0, -1):
            if examples % count == 0:
                yield dataclasses.replace(
                    changed,
                    per_device_train_batch_size=count,
                    gradient_accumulation_steps=examples // count,
                    effective_batch_size=None,
                )


def _keys_that_help(estimator: Estimator, plan: StepPlan, training: TrainingConfig, memory: Memory) -> Iterator[str]:
    """Each key that alone lowers the peak: none about the batch, for instance, where loading is the peak."""
    config = estimator.config
    has_adapter = isinstance(config.lora, LoraConfig)

    def helps(lower: Memory | None) -> bool:
        return lower is not None and lower.total <= (1 - WORTH_NAMING) * memory.total

    def of_rank(**changes: Any) -> TrainingConfig:
        return dataclasses.replace(plan.of_rank(training), **changes)

    singly = plan.of_rank(dataclasses.replace(training, per_device_train_batch_size=1))
    if training.batch_size > 1 and helps(estimator.memory(singly)):
        yield f"training.per_device_train_batch_size below {training.batch_size}"
    if not training.gradient_checkpointing and helps(estimator.memory(of_rank(gradient_checkpointing=True))):
        yield "training.gradient_checkpointing=true"
    if helps(dataclasses.replace(memory, activations=memory.activations // 2, kept=memory.kept // 2)):
        yield f"training.max_seq_length below {estimator.longest}"
    if not has_adapter and helps(dataclasses.replace(memory, gradients=0, optimizer=0)):
        yield "lora=default"
    eight_bits = dataclasses.replace(memory, optimizer=memory.optimizer // 4)
    if config.optimizer.name in ("adamw", "muon") and helps(eight_bits):
        yield "optimizer=paged_adamw_8bit"
    if training.fsdp is not None:
        return
    quantised = dataclasses.replace(config, model=dataclasses.replace(config.model, quantization="nf4"))
    if has_adapter and config.model.quantization == "none" and helps(estimator.of(quantised).memory(of_rank())):
        yield "model.quantization=nf4"
    sharded = dataclasses.replace(config, training=dataclasses.replace(config.training, fsdp="full_shard"))
    if ranks.launched() > 1 and helps(estimator.of(sharded).memory(of_rank())):
        yield "training.fsdp=full_shard"
