"""What a checkpoint holds of ranks other than the one that writes it, so that it is that of a single process."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from arcft.models.sharding import is_sharded, saved_weights, slices_like, whole_state
from arcft.training import collectives

OPTIMIZER_FILE = "optimizer.pt"
SCHEDULER_FILE = "scheduler.pt"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RankStates:
    """What rank 0 needs from the others to write a checkpoint."""

    random_files: dict[str, bytes]
    """The random states of all ranks, as transformers writes them, by file name."""

    weights: dict[str, torch.Tensor] | None
    """Whole weights of a sharded model; None where the model's own are whole."""

    optimizer: Any
    """The same for the state of its optimizer."""

    def write_random_states(self, folder: Path) -> None:
        """Write the random states into a checkpoint's folder."""
        for name, content in self.random_files.items():
            (folder / name).write_bytes(content)


def gather_states(
    model: nn.Module, optimizer: torch.optim.Optimizer, save_random_states: Callable[[str], None]
) -> RankStates:
    """Called by all ranks; the result is complete on rank 0. `save_random_states` writes this rank's into a folder."""
    with tempfile.TemporaryDirectory() as folder:
        save_random_states(folder)
        own = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    first = collectives.rank() == 0
    sharded = is_sharded(model)
    return RankStates(
        random_files={name: content for files in collectives.gathered(own) for name, content in files.items()},
        weights=saved_weights(model, keep=first),
        optimizer=whole_state(optimizer.state_dict(), keep=first) if sharded else None,
    )


def load_optimizer(optimizer: torch.optim.Optimizer, schedule: LRScheduler, folder: Path, *, sharded: bool) -> None:
    """Load what a checkpoint of any number of ranks has of an optimizer and of its schedule."""
    state = torch.load(folder / OPTIMIZER_FILE, map_location="cpu", weights_only=True)
    optimizer.load_state_dict(slices_like(state, optimizer) if sharded else state)
    schedule.load_state_dict(torch.load(folder / SCHEDULER_FILE, weights_only=True))
