"""Completions, and the rows that write them: a row is a prompt with its completion so far, in one slot of the cache."""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Sequence

from arcft.decoding.core.draft import Draft
from arcft.decoding.core.forward import TokenChunk
from arcft.decoding.core.lm_head import AllowedTokens
from arcft.errors import DecodingError
from arcft.protocols import Cursor, Positions


@dataclasses.dataclass(frozen=True)
class Completion:
    """What the model wrote after one prompt."""

    token_ids: list[int]
    """Without the end token."""

    logprob: float
    """Natural log of the completion's probability, end token included, under the model's own distribution: sampling
    settings change what is drawn, not its log-probability. Under a grammar each token's probability is normalised over
    the allowed tokens, so it is 1 where only one is allowed."""

    num_tokens: int
    """Tokens produced, including the end token and tokens that the grammar forced."""

    finished: bool
    """Whether the model wrote an end token; False if the token limit cut it off."""


def not_finite(prompt_index: int, where: str = "") -> DecodingError:
    """The error for logits that are infinite or NaN."""
    return DecodingError(
        f"prompt {prompt_index}: the model's logits are not finite{where}; the weights are damaged, or overflow in "
        "this dtype: try inference.dtype=float32"
    )


class Row(abc.ABC):
    """A prompt and its completion, as far as it is known, in one slot of the cache.

    Each forward pass feeds the row's `next_chunk`, and `advance` receives the tokens chosen after it.
    """

    def __init__(self, prompt_index: int, prompt: Sequence[int], positions: Positions | None) -> None:
        self.prompt_index = prompt_index
        """Index of the prompt; several rows may have the same."""
        self.index = prompt_index
        """Index of the row, set by `complete`."""
        self.ids = list(prompt)
        """Token ids of prompt and completion."""
        self.prompt_length = len(self.ids)
        self.cached = 0
        """The cache holds keys and values of this many of `ids`."""
        self.num_tokens = 0
        """Completion tokens so far."""
        self.is_live = True
        """False once nothing is left to feed."""
        self._positions = positions
        self._last_position = -1  # of the last cached token

    @property
    def in_prefill(self) -> bool:
        """Whether part of the prompt is still to be fed."""
        return self.cached < self.prompt_length

    def reuse_prefix(self, tokens: int) -> None:
        """Note that keys and values of the first `tokens` tokens of the prompt were copied into the slot."""
        self.cached = tokens
        if self._positions is not None:
            self._last_position = self._positions(self.ids[:tokens])[-1]

    @abc.abstractmethod
    def next_chunk(self, max_tokens: int) -> TokenChunk:
        """The next tokens to feed, at most `max_tokens`."""

    @abc.abstractmethod
    def advance(self, chunk: TokenChunk, tokens: Sequence[int], logprobs: Sequence[float]) -> None:
        """Process the tokens chosen at `chunk.logits_at` and their log-probabilities (natural log).

        The lists may be longer than `chunk.logits_at`; the rest is meaningless.
        """

    def _next_positions(self, tokens: Sequence[int]) -> list[int]:
        """Position ids of `tokens`, which follow the cached ones."""
        if self._positions is None:
            return list(range(self.cached, self.cached + len(tokens)))
        return self._positions(tokens, self._last_position)

    def _mark_cached(self, chunk: TokenChunk, count: int) -> None:
        """Keep the first `count` tokens of `chunk` in the cache; the next pass overwrites the others."""
        self.cached += count
        self._last_position = chunk.positions[count - 1]


class WrittenRow(Row):
    """A row whose completion the model writes, optionally under a grammar and along a draft.

    After prefill, all of `ids` is cached except the token that was chosen last and the forced tokens behind it.
    """

    def __init__(
        self,
        prompt_index: int,
        prompt: Sequence[int],
        limit: int,
        *,
        end_ids: frozenset[int],
        positions: Positions | None = None,
        cursor: Cursor | None = None,
        draft: Draft | None = None,
    ) -> None:
        """`limit` is the maximum number of completion tokens; `cursor` stands at the start of the completion."""
        super().__init__(prompt_index, prompt, positions)
        self._limit = limit
        self._logprob = 0.0
        self._finished = False
        self._end_ids = end_ids
        self._cursor = cursor
        self._draft = draft
        self._append_forced()

    def next_chunk(self, max_tokens: int) -> TokenChunk:
        """Known tokens that are not cached, then drafted ones. Logits are wanted after the last known token and after
        each drafted one, except where the grammar allows only one token."""
        tokens = self.ids[self.cached : self.cached + max_tokens]
        logits_at: list[int] = []
        allowed: list[AllowedTokens] = []
        if self.cached + len(tokens) == len(self.ids):
            self._extend_with_draft(tokens, logits_at, allowed, max_tokens)
        return TokenChunk(
            tokens,
            self.cached,
            self._next_positions(tokens),
            logits_at,
            None if self._cursor is None else allowed,
        )

    def _extend_with_draft(
        self, tokens: list[int], logits_at: list[int], allowed: list[AllowedTokens], max_tokens: int
    ) -> None:
        """Append drafted tokens to `tokens`, and the places with alternatives to `logits_at` and `allowed`."""
        cursor, drafted = self._cursor, self._drafted(max_tokens - len(tokens))
        if cursor is not None and drafted:
            cursor = cursor.copy()
        for token in [*drafted, None]:
            if cursor is None:
                logits_at.append(len(tokens) - 1)
            elif len(cursor.choices) > 1:
                logits_at.append(len(tokens) - 1)
                allowed.append(tuple(cursor.choices))
            if token is None or token in self._end_ids:
                return
            if cursor is not None:
                if token not in cursor.choices:
                    return
                cursor.advance(token)
            tokens.append(token)

    def _drafted(self, max_tokens: int) -> list[int]:
        if self._draft is None:
            return []
        # The last token within the limit is not fed: nothing follows it.
        max_tokens = min(max_tokens, self._limit - self.num_tokens - 1)
        drafted = self._draft.next_tokens(len(self.ids) - self.prompt_length, max_tokens)
        if drafted and self._cursor is not None and drafted[0] not in self._cursor.choices:
            self._draft.record(0, missed=True)
            return []
        return drafted

    def advance(self, chunk: TokenChunk, tokens: Sequence[int], logprobs: Sequence[float]) -> None:
        """Append chosen and forced tokens, as far as the draft agrees with them."""
        if not chunk.logits_at:
            self._mark_cached(chunk, len(chunk.tokens))
            return
        chosen = zip(tokens, logprobs, strict=True)
        accepted, correct, missed = chunk.logits_at[0] + 1, 0, False
        has_draft = accepted < len(chunk.tokens)
        while True:
            had_choice = self._has_choice
            self._append(*(next(chosen) if had_choice else self._forced()))
            if accepted == len(chunk.tokens) or not self.is_live:
                break
            missed = self.ids[-1] != chunk.tokens[accepted]
            if missed:
                break
            accepted += 1
            correct += had_choice
        self._mark_cached(chunk, accepted)
        if has_draft and self._draft is not None:
            self._draft.record(correct, missed=missed)
        self._append_forced()

    def completion(self) -> Completion:
        """The completion so far."""
        return Completion(self.ids[self.prompt_length :], self._logprob, self.num_tokens, self._finished)

    def _append(self, token: int, logprob: float) -> None:
        # A NaN or infinity anywhere in a row of logits makes its logsumexp non-finite, so this one value covers all.
        if not math.isfinite(logprob):
            raise not_finite(self.prompt_index, f" after {self.num_tokens} tokens")
        self._logprob += logprob
        self.num_tokens += 1
        self._finished = token in self._end_ids
        if not self._finished:
            self.ids.append(token)
        self.is_live = not self._finished and self.num_tokens < self._limit
        if self._cursor is not None:
            self._cursor.advance(token)
            if self.is_live and not self._cursor.choices:
                raise DecodingError(
                    f"prompt {self.prompt_index}: the grammar ends with token {token}, which is not in end_ids"
                )

    @property
    def _has_choice(self) -> bool:
        return self._cursor is None or len(self._cursor.choices) > 1

    def _forced(self) -> tuple[int, float]:
        """The only allowed token, and its log-probability."""
        assert self._cursor is not None
        return self._cursor.choices[0], 0.0

    def _append_forced(self) -> None:
        """Append tokens that have no alternative; they are fed together with the token before them."""
        while self.is_live and not self._has_choice:
            self._append(*self._forced())
