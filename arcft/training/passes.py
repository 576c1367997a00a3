"""The forward passes of a training step, and what it falls back to when memory runs out: fewer examples in a pass, then
recomputation of activations."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import peft
import torch
from transformers import PreTrainedModel, TrainingArguments

from arcft.memory import OutOfMemoryError, is_out_of_memory, release_memory
from arcft.models.base_model import base_model
from arcft.models.sharding import Strategy
from arcft.training.batches import Batch, Group, Grouping, rows_of


class Passes:
    """Splits a step's batches into forward passes, and restarts the step with smaller ones.

    The examples of the step and its loss stay the same. Dropout restarts from the same random state; its masks differ,
    because passes have other shapes.
    """

    def __init__(
        self,
        model: PreTrainedModel | peft.PeftModel,
        grouping: Grouping,
        args: TrainingArguments,
        sharding: Strategy | None,
        on_change: Callable[[str], None],
    ) -> None:
        """Set up the passes of a run.

        Args:
            model: The model in training.
            grouping: Makes forward passes of examples.
            args: Say whether activations are recomputed from the start, and how.
            sharding: How `model` was sharded. Such a model's steps do not restart: its passes wait for those of other
                ranks.
            on_change: Called with a message where a step restarts.
        """
        self.max_rows: int | None = None
        """Examples in a forward pass; None as long as memory has not run out."""

        self.gradient_checkpointing = args.gradient_checkpointing
        """Whether activations are recomputed, as configured or because memory ran out."""

        self._model = model
        self._grouping = grouping
        self._checkpointing_options = args.gradient_checkpointing_kwargs
        self._sharding = sharding
        self._on_change = on_change
        self._batches: list[Batch] = []
        self._random: list[torch.Tensor] = []

    def begin(self, batches: Sequence[Batch]) -> None:
        """Start a step with these batches."""
        self._batches = list(batches)
        self._random = []

    def loss(self, batch: Batch, step: int, one_pass: Callable[[Group], torch.Tensor]) -> torch.Tensor:
        """Run `one_pass`, forward and backward, for each group of `batch`; return the sum of the losses.

        Where memory runs out, `step` restarts up to `batch` in smaller passes. Raise OutOfMemoryError if that is not
        possible.
        """
        if not self._random:
            # Not in `begin`, after which transformers restores the random state of a checkpoint.
            self._random = _random_state()
        todo = [batch]
        while True:
            current = batch
            try:
                losses = []
                for current in todo:
                    losses = [one_pass(group) for group in self._of(current)["groups"]]
                return torch.stack(losses).sum()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self._lower(error, current, step)
            self._model.zero_grad()
            todo = self._until(batch)

    def _of(self, batch: Batch) -> Batch:
        """The batch in groups that have fit so far."""
        return batch if self.max_rows is None else self._grouping(batch["examples"], self.max_rows)

    def _until(self, batch: Batch) -> list[Batch]:
        """The batches of the step up to `batch`, to repeat from the step's random state."""
        torch.set_rng_state(self._random[0])
        if len(self._random) > 1:
            torch.cuda.set_rng_state(self._random[1])
        position = next(number for number, each in enumerate(self._batches) if each is batch)
        return self._batches[: position + 1]

    def _lower(self, error: BaseException, batch: Batch, step: int) -> None:
        """Choose what needs less memory than the passes of `batch`, in one of which `error` was raised."""
        words = release_memory(error)
        rows = max(rows_of(group) for group in self._of(batch)["groups"])
        if self._sharding is not None:
            raise OutOfMemoryError(self._too_large_for_shards(words, step, rows))
        if rows > 1:
            self.max_rows = rows // 2
            change = f"at most {self.max_rows} example{'s' * (self.max_rows > 1)} per forward pass (was {rows})"
        elif not self.gradient_checkpointing:
            self.gradient_checkpointing = True
            base_model(self._model).gradient_checkpointing_enable(self._checkpointing_options)
            change = "training.gradient_checkpointing=true"
        else:
            raise OutOfMemoryError(
                f"step {step} does not fit into memory, with one example in a forward pass and gradient checkpointing "
                f"({words}); use a lower training.max_seq_length, or model.quantization=nf4, or train where there is "
                "more memory"
            )
        self._on_change(f"out of memory in step {step}; the step is repeated, and the run goes on, with {change}")

    def _too_large_for_shards(self, words: str, step: int, rows: int) -> str:
        remedies = ["more processes"]
        if rows > 1:
            remedies.insert(0, "a lower training.per_device_train_batch_size")
        if not self.gradient_checkpointing:
            remedies.insert(0, "training.gradient_checkpointing=true")
        return (
            f"step {step} does not fit into memory with training.fsdp={self._sharding} ({words}); use "
            f"{' or '.join(remedies)}"
        )


def _random_state() -> list[torch.Tensor]:
    cuda = [torch.cuda.get_rng_state()] if torch.cuda.is_available() else []
    return [torch.get_rng_state(), *cuda]
