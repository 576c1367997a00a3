"""A depth-first search in one slot of the cache.

Completions are written one after the other, each from where it branches off the one before. The slot holds the common
prefix of two neighbouring leaves, so going back to the deepest open branch costs nothing: new keys and values overwrite
the rest.
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
"""Log-probability that a sum may lose to rounding."""


class NextToken(NamedTuple):
    """A possible next token and its log-probability."""

    token: int
    logprob: float


class SearchBranch(NamedTuple):
    """A prefix of a row's text, followed by another token than the row continued with."""

    length: int
    """Tokens of the prefix."""

    last_position: int
    """Position id of the last of them."""

    prefix_logprob: float
    """Log-probability of the prefix, the prompt not counted."""

    next_token: NextToken

    @property
    def logprob(self) -> float:
        """Log-probability of the prefix and the next token."""
        return self.prefix_logprob + self.next_token.logprob


class SearchState:
    """Settings and results of the search after one prompt, shared by all rows that search it."""

    def __init__(self, threshold: float, max_nodes: int, until: Callable[[], bool] | None) -> None:
        """The arguments are those of `search`."""
        self.floor = math.log(threshold) - _ROUNDING
        """Log-probability below which completions are discarded."""
        self.nodes = 0
        """Places where the model chose between several tokens."""
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
        """Keep `completion` if it reaches the threshold. Of two that differ only in their end token, the likelier one
        is kept."""
        if self.greedy is None:
            self.greedy = completion
        key = tuple(completion.token_ids)
        known = self._found.get(key)
        is_new = known is None or known.logprob < completion.logprob
        if completion.finished and completion.logprob >= self.floor and is_new:
            self._found[key] = completion

    def found(self) -> list[Completion]:
        """Completions that reach the threshold, the likeliest first."""
        return sorted(self._found.values(), key=lambda one: (-one.logprob, one.token_ids))


class BranchingRow(WrittenRow):
    """A row that writes several completions of its prompt, depth first, the likeliest next token first.

    The first completion is the greedy one, whatever its probability. The others use the completion before them as a
    draft, and are abandoned as soon as they fall below the threshold.
    """

    def __init__(
        self,
        prompt_index: int,
        prompt: Sequence[int],
        limit: int,
        state: SearchState,
        *,
        end_ids: frozenset[int],
        positions: Positions | None,
        grammar: Grammar | None,
        draft: Draft | None,
    ) -> None:
        """`draft` is for the greedy completion."""
        cursor = None if grammar is None else grammar()
        super().__init__(prompt_index, prompt, limit, end_ids=end_ids, positions=positions, cursor=cursor, draft=draft)
        self.state = state
        self.use_draft = True
        """Set by the batch: drafts pay only if all rows of a pass have one."""
        self.branches: list[SearchBranch] = []
        """Open branches, the deepest last."""
        self._grammar = grammar
        self._latest: list[int] = []  # tokens of the last finished completion
        if not self.is_live:
            self._backtrack()

    @property
    def has_draft(self) -> bool:
        """Whether there is a draft for the present completion."""
        return self._draft is not None

    @property
    def is_greedy(self) -> bool:
        """Whether this is still the first, greedy completion."""
        return self.state.greedy is None

    @property
    def slack(self) -> float:
        """Log-probability that the text may still lose; negative if it is already below the threshold."""
        return self._logprob - self.state.floor

    def advance(
        self,
        chunk: TokenChunk,
        tokens: Sequence[int],
        logprobs: Sequence[float],
        others: Sequence[Sequence[NextToken]] = (),
    ) -> None:
        """Append the likeliest `tokens`, and keep `others`, the alternatives at each place, as branches."""
        before = self._logprob
        super().advance(chunk, tokens, logprobs)
        for place, logprob, alternatives in zip(chunk.logits_at, logprobs, others, strict=False):
            length = chunk.start + place + 1
            # Places behind a rejected draft token, or behind text below the threshold, are not part of the search.
            if length > self.cached or (before < self.state.floor and not self.is_greedy):
                break
            self.state.nodes += 1
            branches = [SearchBranch(length, chunk.positions[place], before, one) for one in alternatives]
            self.branches += sorted(
                (branch for branch in branches if branch.logprob >= self.state.floor), key=lambda one: one.logprob
            )
            before += logprob
        if not self.is_live or not (self.is_greedy or self._continues()):
            self._backtrack()

    def split_off(self, branch: SearchBranch) -> BranchingRow:
        """Return a row that takes over `branch`, one of `branches`.

        It may have ended already, if the grammar forced its rest; otherwise its slot needs a copy of the first
        `cached` columns of this one's.
        """
        self.branches.remove(branch)
        other = copy.copy(self)
        other.ids = self.ids[: branch.length]
        other.branches = []
        other._follow(branch)
        if not (other.is_live and other._continues()):
            other._backtrack()
        return other

    def _drafted(self, max_tokens: int) -> list[int]:
        return super()._drafted(max_tokens) if self.use_draft else []

    def _continues(self) -> bool:
        """Whether the present text is worth another forward pass."""
        if self.slack < 0:
            return False
        if self.state.is_over():
            self.state.is_complete = False
            return False
        return True

    def _backtrack(self) -> None:
        """Store the present completion, and follow the deepest branch that needs a forward pass."""
        while True:
            if self._finished or self.is_greedy:
                self._latest = self.ids[self.prompt_length :]
                self.state.add(self.completion())
            if not self.branches:
                self.is_live = False
                return
            self._follow(self.branches.pop())
            if self.is_live and self._continues():
                return

    def _follow(self, branch: SearchBranch) -> None:
        del self.ids[branch.length :]
        self.cached, self._last_position = branch.length, branch.last_position
        self.num_tokens = branch.length - self.prompt_length
        self.is_live, self._finished = True, False
        self._logprob = branch.prefix_logprob
        if self._grammar is not None:
            self._cursor = self._grammar()
            for token in self.ids[self.prompt_length :]:
                self._cursor.advance(token)
        self._draft = Draft(self._latest)
        self._append(*branch.next_token)
        self._append_forced()
