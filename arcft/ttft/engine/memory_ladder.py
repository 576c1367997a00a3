"""What the engine reduces on out of memory, and in which order."""

from __future__ import annotations

import dataclasses
import logging

import torch

from arcft.errors import ArcftError

logger = logging.getLogger(__name__)

LOWEST_RANK = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemorySettings:
    """The engine settings that depend on the available memory."""

    slots: int
    """Adapters trained in one pass."""

    gradient_checkpointing: bool
    """Recompute activations in the backward pass instead of storing them."""

    max_seq_length: int
    """Longest training example, in tokens; demonstrations are dropped to fit."""

    rank: int
    """LoRA rank of the adapters."""

    batch_size: int
    """Prompts decoded in one batch."""

    merge: bool
    """Whether adapters are merged into the base weights for prediction."""

    slots_known: bool = True
    """False until ttft.slots=auto has chosen `slots`."""


@dataclasses.dataclass
class Current:
    """The settings in force, shared by the parts of an engine; replaced as a whole."""

    memory: MemorySettings


def lower(memory: MemorySettings, *, longest: int, shortest: int) -> MemorySettings | None:
    """The next settings that need less memory to train; None at the end of the ladder.

    First come steps that change only the speed: half the slots, down to one, then gradient checkpointing. Then a
    context of three quarters of `longest`, the longest example (tokens) of the pass that failed, as long as it is not
    below `shortest`; last the rank, halved down to LOWEST_RANK.
    """
    if memory.slots > 1:
        return dataclasses.replace(memory, slots=memory.slots // 2)
    if not memory.gradient_checkpointing:
        return dataclasses.replace(memory, gradient_checkpointing=True)
    context = min(memory.max_seq_length, longest) * 3 // 4
    if context >= shortest:
        return dataclasses.replace(memory, max_seq_length=context)
    if memory.rank // 2 >= LOWEST_RANK:
        return dataclasses.replace(memory, rank=memory.rank // 2)
    return None


def difference(old: MemorySettings, new: MemorySettings) -> str:
    """The changed settings, as `slots 4 -> 2`."""
    before, after = dataclasses.asdict(old), dataclasses.asdict(new)
    return ", ".join(f"{name} {before[name]} -> {after[name]}" for name in before if before[name] != after[name])


def explain(error: Exception) -> str:
    """Why a unit failed, in one line; unexpected errors are logged with their traceback.

    Raises errors that would hit every other unit too: a full disk, or a GPU that no longer works.
    """
    if isinstance(error, OSError | torch.AcceleratorError):
        raise error
    if isinstance(error, ArcftError):
        return str(error)
    logger.warning("a unit of test-time fine-tuning failed", exc_info=error)
    return f"{type(error).__name__}: {error}".partition("\n")[0]
