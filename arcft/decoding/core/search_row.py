"""A search in a slot of the cache: one completion is written after the other, each from where it leaves the one before.

A slot holds what is common to two neighbours of a tree's leaves, so going back to the deepest branch that is open costs
nothing: its end is written over what is there.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from arcft.decoding.core.completion import Completion, WrittenRow
from arcft.decoding.core.draft import Draft
from arcft.decoding.core.forward import TokenChunk
from arcft.protocols import Grammar, Positions

_ROUNDING = 1e-6
"""Log-probability that a sum may lack for its rounding."""


class NextToken(NamedTuple):
    """A token that may come next, and its log-probability."""

    token: int
    logprob: float


class SearchBranch(NamedTuple):
    """A text that is still to be followed: some of the row's, and another token than the row went on with."""

    length: int
    """Of the row's tokens, those before the other one."""

    place: int
    """The position of the last of these."""

    before: float
    """The log-probability of these."""

    way: NextToken

    @property
    def logprob(self) -> float:
        return self.before + self.way.logprob


class SearchState:
    """What is looked for after a prompt, and what was found; common to all rows that have the prompt."""

    def __init__(self, threshold: float, max_nodes: int, until: Callable[[], bool] | None) -> None:
        self.floor = math.log(threshold) - _ROUNDING
        self.nodes = 0
        """Places in texts where the model has said which of several tokens comes next."""
        self.is_complete = True
        self.greedy: Completion | None = None
        """The first completion."""
        self._found: dict[tuple[int, ...], Completion] = {}
        self._max_nodes = max_nodes
        self._until = until

    def is_over(self) -> bool:
        """Whether a limit is reached."""
        return self.nodes >= self._max_nodes or (self._until is not None and self._until())

    def add(self, completion: Completion) -> None:
        """Keep it if it is worth it. If two differ in their end token only, the likelier one stays."""
        if self.greedy is None:
            self.greedy = completion
        key = tuple(completion.token_ids)
        known = self._found.get(key)
        is_new = known is None or known.logprob < completion.logprob
        if completion.finished and completion.logprob >= self.floor and is_new:
            self._found[key] = completion

    def found(self) -> list[Completion]:
        """The likeliest first."""
        return sorted(self._found.values(), key=lambda one: (-one.logprob, one.token_ids))


class BranchingRow(WrittenRow):
    """A prompt whose completions are written by depth first, each likeliest token before the others.

    The first completion takes the likeliest tokens to its end, whatever it is worth. The others are verified along the
    one that was found before, and given up as soon as they are not worth the threshold.
    """

    def __init__(
        self,
        number: int,
        prompt: Sequence[int],
        limit: int,
        state: SearchState,
        *,
        end_ids: frozenset[int],
        positions: Positions | None,
        grammar: Grammar | None,
        guess: Draft | None,
    ) -> None:
        """`guess` is for the first completion."""
        cursor = None if grammar is None else grammar()
        super().__init__(number, prompt, limit, end_ids=end_ids, positions=positions, cursor=cursor, guess=guess)
        self.state = state
        self.may_guess = True
        self.branches: list[SearchBranch] = []
        """The deepest last."""
        self._grammar = grammar
        self._latest: list[int] = []  # tokens of the last completion that was found
        if not self.is_live:
            self._go_back()

    @property
    def has_guess(self) -> bool:
        return self._guess is not None

    @property
    def is_first(self) -> bool:
        """Whether this is still the first completion."""
        return self.state.greedy is None

    @property
    def room(self) -> float:
        """Log-probability that may still be lost; negative where there is nothing left to branch off."""
        return self._logprob - self.state.floor

    def read(
        self,
        chunk: TokenChunk,
        tokens: Sequence[int],
        logprobs: Sequence[float],
        others: Sequence[Sequence[NextToken]] = (),
    ) -> None:
        """Go on with the likeliest `tokens`, and keep in mind the `others` that were worth it at each place."""
        before = self._logprob
        super().read(chunk, tokens, logprobs)
        for place, logprob, ways in zip(chunk.asked, logprobs, others, strict=False):
            length = chunk.start + place + 1
            if length > self.fed or (before < self.state.floor and not self.is_first):
                break
            self.state.nodes += 1
            branches = [SearchBranch(length, chunk.places[place], before, way) for way in ways]
            self.branches += sorted(
                (branch for branch in branches if branch.logprob >= self.state.floor), key=lambda one: one.logprob
            )
            before += logprob
        if not self.is_live or not (self.is_first or self._goes_on()):
            self._go_back()

    def divide(self, branch: SearchBranch) -> BranchingRow:
        """Another row, that goes on with `branch`, one of `branches`, in place of this one. It has ended where that
        took no pass; else it wants a copy of this one's `fed` first columns."""
        self.branches.remove(branch)
        other = copy.copy(self)
        other.ids = self.ids[: branch.length]
        other.branches = []
        other._follow(branch)
        if not (other.is_live and other._goes_on()):
            other._go_back()
        return other

    def _guessed(self, most: int) -> list[int]:
        return super()._guessed(most) if self.may_guess else []

    def _goes_on(self) -> bool:
        """Whether more is to be fed for what is written now."""
        if self.room < 0:
            return False
        if self.state.is_over():
            self.state.is_complete = False
            return False
        return True

    def _go_back(self) -> None:
        """Leave what is written, and go on with the deepest branch that takes a pass; the others end by themselves."""
        while True:
            if self._finished or self.is_first:
                self._latest = self.ids[self.prompt_length :]
                self.state.add(self.completion())
            if not self.branches:
                self.is_live = False
                return
            self._follow(self.branches.pop())
            if self.is_live and self._goes_on():
                return

    def _follow(self, branch: SearchBranch) -> None:
        del self.ids[branch.length :]
        self.fed, self._place = branch.length, branch.place
        self.num_tokens = branch.length - self.prompt_length
        self.is_live, self._finished = True, False
        self._logprob = branch.before
        if self._grammar is not None:
            self._cursor = self._grammar()
            for token in self.ids[self.prompt_length :]:
                self._cursor.advance(token)
        self._guess = Draft(self._latest)
        self._add(*branch.way)
        self._add_forced()
