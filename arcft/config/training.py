"""How long, how large, how often. Keys: conf/training/default.yaml."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Literal

from arcft.config.duration import DurationError, parse_duration
from arcft.config.recommended import LossOn

EFFECTIVE_BATCH_SIZE = 8
"""Examples in an optimizer step, where neither a batch size nor this is given."""


@dataclasses.dataclass(kw_only=True)
class CurriculumStage:
    """A limit on the length of examples, from one point of the run to the next stage."""

    start: float
    """Share of the run's examples that come before; 0.0 for the first stage."""

    max_seq_length: int
    """As in TrainingConfig, for the examples of this stage."""


@dataclasses.dataclass(kw_only=True)
class TrainingConfig:
    max_steps: int
    """Optimizer steps."""

    learning_rate: float
    """Peak rate; the schedule multiplies it."""

    per_device_train_batch_size: int | Literal["auto"]
    """Examples per forward pass; with `max_batch_tokens` a batch may take several. `auto` is the largest number
    that fits into memory and divides `effective_batch_size`."""

    gradient_accumulation_steps: int
    """Forward passes before an optimizer step; the loss is weighted by supervised tokens over all of them. With a batch
    size of `auto`, chosen with it."""

    max_seq_length: int
    """Tokens of prompt and answer together; longer examples are skipped."""

    drop_demonstrations: bool
    """Shorten an example that is too long by leaving demonstrations out, the last first, instead of skipping it."""

    loss_on: LossOn
    """Supervise the answer, the whole text, or the outputs from the second demonstration on."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"]
    """Arithmetic of forward and backward. `auto` is bfloat16 on GPUs that have it, else float16. On a CPU it is
    float32, except for adapters of models that recommend cpu_dtype=auto: bfloat16 where the CPU multiplies it fast.
    run.yaml stores what it was, and resuming keeps it."""

    seed: int
    """Seed of examples, adapter initialisation and dropout."""

    max_grad_norm: float
    """Gradients are scaled down to this global norm."""

    gradient_checkpointing: bool | Literal["auto"]
    """Recompute activations in the backward pass: less memory, about a third more time. `auto` does so if not even one
    example in a forward pass fits into memory without."""

    save_steps: int
    """Steps between checkpoints; there is one at the end, too."""

    eval_steps: int
    """Steps between evaluations of loss and generation metrics on held-out tasks; there is one at the end, too."""

    save_total_limit: int
    """Checkpoints kept besides the best one."""

    logging_steps: int
    """Steps between logged values of loss, gradient norm and learning rate."""

    best_metric: str
    """The generation metric by which the best checkpoint is chosen."""

    generation_tasks: int
    """Held-out tasks that are predicted at each evaluation; 0 for the loss alone."""

    effective_batch_size: int | None = None
    """Examples in an optimizer step, over all forward passes and devices, which `per_device_train_batch_size=auto`
    splits; null is EFFECTIVE_BATCH_SIZE, or the next multiple of the number of ranks."""

    max_batch_tokens: int | None = None
    """Pass a batch through the model in groups of similar length, each of at most this many tokens, padding included (a
    longer example is a group); null passes whole batches. The gradient is the same up to rounding."""

    packing: bool = False
    """Lay the examples of a forward pass in one row without padding, each attending to itself only. The gradient is the
    same up to rounding. Models whose examples would see each other all the same are padded."""

    compile: bool = False
    """Compile the model's layers (torch.compile). The first step takes a minute or more, later steps are faster."""

    curriculum: list[CurriculumStage] = dataclasses.field(default_factory=list)
    """Shorter examples first: stages of growing `max_seq_length`; empty trains on all lengths throughout."""

    max_time: str | None = None
    """Save and stop after this time: 90s, 45m, 11h30m."""

    fsdp: Literal["full_shard", "shard_grad_op"] | None = None
    """Share out weights, gradients and optimizer state over the processes of the run: all the time, or the weights only
    between steps; null keeps them whole in each process."""

    profile_steps: int = 0
    """The last steps are profiled: a table in the terminal, a trace in the run's folder; 0 profiles none."""

    num_workers: int = 0
    """Processes that prepare examples; 0 prepares them in the training process."""

    @property
    def batch_size(self) -> int:
        """`per_device_train_batch_size`, once `auto` is resolved."""
        assert self.per_device_train_batch_size != "auto"
        return self.per_device_train_batch_size

    def problems(self) -> Iterator[str]:
        at_least_one = ("max_steps", "gradient_accumulation_steps", "max_seq_length")
        for name in (*at_least_one, "save_steps", "eval_steps", "save_total_limit", "logging_steps"):
            if getattr(self, name) < 1:
                yield f"training.{name}={getattr(self, name)}: at least 1"
        yield from self._batch_problems()
        for name in ("generation_tasks", "profile_steps", "num_workers", "seed"):
            if getattr(self, name) < 0:
                yield f"training.{name}={getattr(self, name)}: at least 0"
        if self.max_batch_tokens is not None and self.max_batch_tokens < 1:
            yield f"training.max_batch_tokens={self.max_batch_tokens}: at least 1, or null to pass a batch whole"
        for name in ("learning_rate", "max_grad_norm"):
            if not getattr(self, name) > 0:
                yield f"training.{name}={getattr(self, name)}: above 0"
        problem = self._curriculum_problem()
        if problem is not None:
            yield problem
        if self.max_time is not None:
            try:
                parse_duration(self.max_time)
            except DurationError as error:
                yield f"training.max_time={self.max_time}: {error}"

    def _batch_problems(self) -> Iterator[str]:
        size, effective = self.per_device_train_batch_size, self.effective_batch_size
        if size == "auto":
            if self.gradient_accumulation_steps != 1:
                yield (
                    f"training.gradient_accumulation_steps={self.gradient_accumulation_steps} with "
                    "training.per_device_train_batch_size=auto, which chooses it: drop it, and say how many examples "
                    "make a step by training.effective_batch_size, or give a batch size"
                )
            if effective is not None and effective < 1:
                yield f"training.effective_batch_size={effective}: at least 1"
        elif size < 1:
            yield f"training.per_device_train_batch_size={size}: at least 1, or auto"
        elif effective is not None:
            yield (
                f"training.effective_batch_size={effective} belongs to training.per_device_train_batch_size=auto; use "
                "that, or drop it"
            )

    def _curriculum_problem(self) -> str | None:
        """What is wrong first, as every later stage is compared with the one before."""
        before: CurriculumStage | None = None
        for number, stage in enumerate(self.curriculum):
            where = f"training.curriculum[{number}]"
            start, length = f"{where}.start={stage.start}", f"{where}.max_seq_length={stage.max_seq_length}"
            if before is None and stage.start != 0:
                return f"{start}: the first stage starts at 0.0"
            if before is not None and not before.start < stage.start < 1:
                return f"{start}: a share of the run, above that of the stage before ({before.start}) and below 1"
            if stage.max_seq_length < 1:
                return f"{length}: at least 1"
            if before is not None and stage.max_seq_length <= before.max_seq_length:
                return f"{length}: above that of the stage before ({before.max_seq_length}), as stages grow"
            if stage.max_seq_length > self.max_seq_length:
                return f"{length}: at most training.max_seq_length={self.max_seq_length}; raise that, or lower this"
            before = stage
        return None
