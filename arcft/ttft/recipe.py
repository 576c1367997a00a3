"""What the engine may change when memory runs out, and in which order it gives things up."""

from __future__ import annotations

import dataclasses

LOWEST_RANK = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """The settings of an engine that memory decides about."""

    slots: int
    """Adapters that are trained in one pass."""

    gradient_checkpointing: bool
    """Compute activations a second time instead of keeping them."""

    max_seq_length: int
    """Tokens of a training example; demonstrations are dropped to fit."""

    rank: int
    """Of the adapters."""


def lower(recipe: Recipe, *, shortest: int) -> Recipe | None:
    """The next recipe that takes less memory; None at the end.

    First what changes nothing but the speed: half the slots, down to one, then activations computed twice. Then the
    context, three quarters at a time, but never below `shortest` tokens, and last the rank, halved down to 8.
    """
    if recipe.slots > 1:
        return dataclasses.replace(recipe, slots=recipe.slots // 2)
    if not recipe.gradient_checkpointing:
        return dataclasses.replace(recipe, gradient_checkpointing=True)
    if recipe.max_seq_length * 3 // 4 >= shortest:
        return dataclasses.replace(recipe, max_seq_length=recipe.max_seq_length * 3 // 4)
    if recipe.rank // 2 >= LOWEST_RANK:
        return dataclasses.replace(recipe, rank=recipe.rank // 2)
    return None
