"""What the engine may change when memory runs out, and in which order it gives things up."""

from __future__ import annotations

import dataclasses
import gc
import logging

import torch

from arcft.errors import ArcftError

logger = logging.getLogger(__name__)

LOWEST_RANK = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemorySettings:
    """The settings of an engine that memory decides about."""

    slots: int
    """Adapters that are trained in one pass."""

    gradient_checkpointing: bool
    """Compute activations a second time instead of keeping them."""

    max_seq_length: int
    """Tokens of a training example; demonstrations are dropped to fit."""

    rank: int
    """Of the adapters."""

    batch_size: int
    """Prompts that are decoded together."""

    merge: bool
    """Whether an adapter may be merged into the base weights to predict."""

    slots_known: bool = True
    """False until ttft.slots=auto has chosen `slots`."""


@dataclasses.dataclass
class Current:
    """The recipe that the parts of an engine go by; replaced as a whole."""

    recipe: MemorySettings


def lower(recipe: MemorySettings, *, longest: int, shortest: int) -> MemorySettings | None:
    """The next recipe whose training takes less memory; None at the end. `longest` is the length of the longest example
    in the pass that was too much.

    First what changes nothing but the speed: half the slots, down to one, then activations computed twice. Then the
    context, to three quarters of `longest` each time, but never below `shortest`, and last the rank, halved down to 8.
    """
    if recipe.slots > 1:
        return dataclasses.replace(recipe, slots=recipe.slots // 2)
    if not recipe.gradient_checkpointing:
        return dataclasses.replace(recipe, gradient_checkpointing=True)
    context = min(recipe.max_seq_length, longest) * 3 // 4
    if context >= shortest:
        return dataclasses.replace(recipe, max_seq_length=context)
    if recipe.rank // 2 >= LOWEST_RANK:
        return dataclasses.replace(recipe, rank=recipe.rank // 2)
    return None


def difference(old: MemorySettings, new: MemorySettings) -> str:
    """What has changed, in words: `slots 4 -> 2`."""
    before, after = dataclasses.asdict(old), dataclasses.asdict(new)
    return ", ".join(f"{name} {before[name]} -> {after[name]}" for name in before if before[name] != after[name])


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or this machine had no memory left; PyTorch's CPU allocator has no error class of its own."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    words = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def release_memory(error: BaseException) -> str:
    """Let go of an error of running out of memory, and of the memory; return its first line."""
    # It holds the frames of the pass, and with them what fills the memory.
    error.__traceback__ = error.__context__ = error.__cause__ = None
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return str(error).partition("\n")[0]


def explain(error: Exception) -> str:
    """Why a unit failed, in a line; what is nobody's mistake but a bug's is logged with where it happened.

    Raises what is no unit's fault: a full disk, or a GPU in a state that no other unit would find better.
    """
    if isinstance(error, OSError | torch.AcceleratorError):
        raise error
    if isinstance(error, ArcftError):
        return str(error)
    logger.warning("a unit of test-time fine-tuning failed", exc_info=error)
    return f"{type(error).__name__}: {error}".partition("\n")[0]
