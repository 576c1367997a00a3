"""Gathers on rank 0 what a checkpoint needs from all ranks: random states, optimizer and, sharded, weights."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from arcft.checkpoints import CheckpointError
from arcft.memory import is_out_of_memory
from arcft.models.sharding import saved_weights, slices_like, whole_state
from arcft.training import collectives

OPTIMIZER_FILE = "optimizer.pt"
SCHEDULER_FILE = "scheduler.pt"


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointStates:
    """The state of a run beside its loop; complete on rank 0."""

    random_files: dict[str, bytes]
    """The random states of all ranks, as transformers writes them, by file name."""

    weights: dict[str, torch.Tensor] | None
    """Whole weights of a sharded model; None where the model's own are whole."""

    optimizer: Any
    """The optimizer's state, with whole tensors."""

    schedule: Any
    """The schedule's state."""

    def write(self, folder: Path) -> None:
        """Write all but the weights into a checkpoint's folder."""
        for name, content in self.random_files.items():
            (folder / name).write_bytes(content)
        torch.save(self.optimizer, folder / OPTIMIZER_FILE)
        torch.save(self.schedule, folder / SCHEDULER_FILE)


def gather_states(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: LRScheduler,
    save_random_states: Callable[[str], None],
) -> CheckpointStates:
    """Called by all ranks. `save_random_states` writes this rank's into a folder."""
    with tempfile.TemporaryDirectory() as folder:
        save_random_states(folder)
        own = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    first = collectives.rank() == 0
    return CheckpointStates(
        random_files={name: content for files in collectives.gathered(own) for name, content in files.items()},
        weights=saved_weights(model, keep=first),
        optimizer=whole_state(optimizer.state_dict(), keep=first),
        schedule=schedule.state_dict(),
    )


def load_optimizer(optimizer: torch.optim.Optimizer, schedule: LRScheduler, folder: Path) -> None:
    """Restore optimizer and schedule from a checkpoint written by any number of ranks. Raise CheckpointError if they do
    not fit."""
    try:
        state = torch.load(folder / OPTIMIZER_FILE, map_location="cpu", weights_only=True)
        optimizer.load_state_dict(slices_like(state, optimizer))
        schedule.load_state_dict(torch.load(folder / SCHEDULER_FILE, weights_only=True))
    except (KeyError, ValueError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        raise CheckpointError(
            f"{folder}: its optimizer state does not fit this run ({error}); resume with the optimizer that the run "
            "was started with"
        ) from error
