"""What a training step falls back to when memory runs out: fewer examples in a forward pass, then recomputation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from arcft.console import warn
from arcft.memory import OutOfMemoryError, release_memory
from arcft.training.batches import Batch, rows_of

Split = Callable[[Batch, int], Batch]
"""A batch with at most so many examples in a group."""


class Passes:
    """The forward passes of the current optimizer step, in which it can start over.

    A step in smaller passes has the same examples and the same loss. The random numbers of dropout start from where
    they were, but fall on the examples otherwise.
    """

    def __init__(self, split: Split) -> None:
        self.max_rows: int | None = None
        """Examples in a forward pass; None as long as memory has not run out."""

        self.gradient_checkpointing = False
        """Whether memory ran out so far that it had to be switched on."""

        self._split = split
        self._batches: list[Batch] = []
        self._random: list[torch.Tensor] = []

    def begin(self, batches: Sequence[Batch]) -> None:
        """A step of `batches` is to come."""
        self._batches = list(batches)
        self._random = [torch.get_rng_state()]
        if torch.cuda.is_available():
            self._random.append(torch.cuda.get_rng_state())

    def of(self, batch: Batch) -> Batch:
        """The batch in groups that have fit so far."""
        return batch if self.max_rows is None else self._split(batch, self.max_rows)

    def until(self, batch: Batch) -> list[Batch]:
        """The batches of the step up to `batch`, to start over with, from the step's random numbers."""
        torch.set_rng_state(self._random[0])
        if len(self._random) > 1:
            torch.cuda.set_rng_state(self._random[1])
        position = next(number for number, each in enumerate(self._batches) if each is batch)
        return self._batches[: position + 1]

    def lower(self, error: BaseException, batch: Batch, step: int, *, checkpointed: bool) -> None:
        """Choose what needs less memory than the passes of `batch` in which `error` was raised, and say so.

        `checkpointed` tells whether activations are recomputed already. Raise OutOfMemoryError if nothing is left.
        """
        words = release_memory(error)
        rows = max(rows_of(group) for group in self.of(batch)["groups"])
        if rows > 1:
            self.max_rows = rows // 2
            change = f"at most {self.max_rows} of {rows} examples in a forward pass from here on"
        elif not checkpointed:
            self.gradient_checkpointing = True
            change = "training.gradient_checkpointing=true from here on"
        else:
            raise OutOfMemoryError(
                f"step {step} does not fit into memory, with one example in a forward pass and gradient checkpointing "
                f"({words}); use a lower training.max_seq_length, or model.quantization=nf4, or train where there is "
                "more memory"
            )
        warn(f"out of memory in step {step}, which starts over: {change}")
