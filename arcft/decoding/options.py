"""The options that `decode`, `search`, `score` and `generate` share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence, Sized

from arcft.errors import DecodingError
from arcft.protocols import Grammar, Positions

RowsChanged = Callable[[Sequence[int]], None]
"""Called with the prompt number of each row of the batch, from 0, whenever the rows change."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodingOptions:
    """How prompts are completed, whichever function completes them.

    Floating-point sums differ in their last bits with the shape of a forward pass, and so with what else is in a call.
    Where results must not depend on that, the caller decides what goes into one call.
    """

    pad_id: int
    """Pads the shorter rows of a forward pass. Nothing attends to padding, so any token will do."""

    end_ids: Sequence[int] = ()
    """Tokens that end a completion. `score` ignores them: a completion to be scored includes its end token."""

    positions: Positions | None = None
    """Position ids of prompt and completion; None counts from 0."""

    grammar: Grammar | Sequence[Grammar] | None = None
    """The valid completions, one grammar for all prompts or one for each.

    Only allowed tokens are written, tokens without an alternative cost no forward pass, and log-probabilities are
    normalised over the allowed tokens.
    """

    batch_size: int | None = None
    """Rows that are decoded side by side; None for all. Where one ends, the next one takes its place."""

    share_prefixes: bool = True
    """Compute the common prefix of prompts once and copy its keys and values."""

    adapters: Sequence[int] | None = None
    """The adapter of each prompt. Only prompts of the same adapter share a prefix."""

    on_rows_changed: RowsChanged | None = None
    """Called before the first forward pass and whenever the rows of the batch change, so that a model with several
    adapters can route each row. Without `adapters`, no two prompts then share a prefix."""

    def grammars(self, prompts: Sequence[Sequence[int]]) -> list[Grammar | None]:
        """The grammar of each prompt. Raise DecodingError where there is not one for each."""
        if isinstance(self.grammar, Sequence):
            check_one_each(prompts, {"grammars": self.grammar})
            return list(self.grammar)
        return [self.grammar] * len(prompts)


def check_one_each(prompts: Sized, lists: Mapping[str, Sized | None]) -> None:
    """Raise DecodingError unless each of `lists`, keyed by what messages call it, is None or as long as `prompts`."""
    for name, values in lists.items():
        if values is not None and len(values) != len(prompts):
            raise DecodingError(f"{len(values)} {name} for {len(prompts)} prompts; give one for each")


def token_limits(prompts: Sequence[Sequence[int]], max_new_tokens: int | Sequence[int]) -> list[int]:
    """The limit of each prompt. Raise DecodingError for an empty prompt, a limit below 1, or a wrong number of them."""
    limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
    check_one_each(prompts, {"values of max_new_tokens": limits})
    for number, (prompt, limit) in enumerate(zip(prompts, limits, strict=True)):
        if not prompt:
            raise DecodingError(f"prompt {number} is empty; a model needs at least one token to continue")
        if limit < 1:
            raise DecodingError(f"max_new_tokens={limit} for prompt {number}: at least 1")
    return limits
