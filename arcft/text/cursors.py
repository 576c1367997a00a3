"""What those who know tokens and no grids are told about a text: where its tokens stand, and which may follow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Positions(Protocol):
    """A rule for position ids that jump: a token's position depends on the token and on the position before it."""

    def __call__(self, token_ids: Sequence[int], after: int = -1) -> list[int]:
        """The positions of `token_ids` behind a token at position `after`, or from the beginning on."""


class Cursor(Protocol):
    """A place in a text that is being written, and what may follow it."""

    @property
    def choices(self) -> Sequence[int]:
        """The token ids that may come next, ascending: one where the next token is forced, none after the end.

        Where the text may end, the end of the turn is one of them. The same choices are the same object, wherever they
        are met, so what is made for them once can be found again by identity.
        """

    def advance(self, token: int) -> None:
        """Go on with `token`; raise ValueError if it is none of `choices`."""

    def copy(self) -> Cursor:
        """A cursor at the same place that goes on independently of this one."""


class Grammar(Protocol):
    """All the texts that may be written as a completion. Called, it gives a new cursor at their beginning."""

    @property
    def longest(self) -> int:
        """Tokens of the longest text, the end of the turn included."""

    def __call__(self) -> Cursor:
        """A cursor behind the prompt and its opener."""
