"""What somebody thinks that a completion will be, to be verified many tokens a pass.

Verified tokens cost a fraction of those that are found one by one, as long as most of them are right; a pass over what
is then thrown away costs more than it saves. So chunks grow while a guess holds, and a bad guess is given up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

SHORTEST, LONGEST = 8, 24
"""Tokens that are verified in a pass."""

_RECENT = 32
"""Tokens with a choice over which it is judged how good a guess is."""

_LEAST = 0.8
"""The share of them that has to be right."""

_FEW = 3
"""Wrong tokens that are forgiven in any case: a single one says nothing yet."""


class Draft:
    """Token i of the guess stands for token i of the completion, also behind a token that was wrong: cells of a grid
    stay where they are."""

    def __init__(self, token_ids: Sequence[int]) -> None:
        self._token_ids = list(token_ids)
        self._length = SHORTEST
        self._recent: deque[bool] = deque(maxlen=_RECENT)

    def offer(self, produced: int, most: int) -> list[int]:
        """At most `most` tokens to come after `produced` ones; none where the guess has ended or was given up."""
        return self._token_ids[produced : produced + min(most, self._length)]

    def judge(self, right: int, *, missed: bool) -> None:
        """Learn that `right` tokens held where there was a choice, and whether the next did not."""
        self._recent.extend([True] * right + [False] * missed)
        self._length = SHORTEST if missed else min(2 * self._length, LONGEST)
        wrong = self._recent.count(False)
        if wrong >= _FEW and wrong > (1 - _LEAST) * len(self._recent):
            self._token_ids = []
