"""Drafts for speculative decoding: likely completions, verified many tokens per forward pass.

A verified token costs a fraction of one that is generated alone, as long as most of them are right; computing tokens
that are then discarded costs more than it saves. So chunks grow while a draft is right, and a bad draft is dropped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

MIN_CHUNK, MAX_CHUNK = 8, 24
"""Drafted tokens per forward pass: after a wrong token, and at most."""

_WINDOW = 32
"""A draft is judged by this many of its latest tokens, not counting those that a grammar forces."""

_MIN_CORRECT = 0.8
"""A draft is dropped when a smaller fraction of the window is correct ..."""

_TOLERATED = 3
"""... and at least this many tokens are wrong: one alone says little."""


class Draft:
    """Draft tokens by place: token i drafts token i of the completion, also after a wrong token before it.

    That suits texts of fixed layout, such as grids, where a wrong cell does not move the cells behind it.
    """

    def __init__(self, token_ids: Sequence[int]) -> None:
        self._token_ids = list(token_ids)
        self._chunk = MIN_CHUNK
        self._recent: deque[bool] = deque(maxlen=_WINDOW)

    def next_tokens(self, produced: int, max_tokens: int) -> list[int]:
        """Up to `max_tokens` drafted tokens after `produced` completion tokens; none if it has ended or was dropped."""
        return self._token_ids[produced : produced + min(max_tokens, self._chunk)]

    def record(self, correct: int, *, missed: bool) -> None:
        """Record that `correct` unforced tokens were accepted, and whether the next one was wrong."""
        self._recent.extend([True] * correct + [False] * missed)
        self._chunk = MIN_CHUNK if missed else min(2 * self._chunk, MAX_CHUNK)
        wrong = self._recent.count(False)
        if wrong >= _TOLERATED and wrong > (1 - _MIN_CORRECT) * len(self._recent):
            self._token_ids = []
