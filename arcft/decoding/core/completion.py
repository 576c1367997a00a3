"""A completion while it is being written."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from arcft.decoding.core.draft import Draft
from arcft.decoding.core.forward import TokenChunk
from arcft.decoding.core.lm_head import AllowedTokens
from arcft.decoding.core.rows import Row
from arcft.errors import DecodingError
from arcft.protocols import Cursor, Positions


@dataclasses.dataclass(frozen=True)
class Completion:
    """What the model wrote after one prompt."""

    token_ids: list[int]
    """Without the end token."""

    logprob: float
    """Natural logarithm of the completion's probability, the end token included, under the model's own distribution:
    temperature and top_p change what is drawn, not what it is worth. Under a grammar, a token's probability is its
    share of those that may come: 1 where there is no choice."""

    num_tokens: int
    """Tokens produced, the end token and those without a choice included."""

    finished: bool
    """Whether the model ended by itself; False where the limit cut it off."""


class WrittenRow(Row):
    """A prompt whose completion is written token by token, by a grammar and along a guess if there are any."""

    def __init__(
        self,
        number: int,
        prompt: Sequence[int],
        limit: int,
        *,
        end_ids: frozenset[int],
        positions: Positions | None = None,
        cursor: Cursor | None = None,
        guess: Draft | None = None,
    ) -> None:
        """At most `limit` tokens are written."""
        super().__init__(number, prompt, positions)
        self._limit = limit
        self._logprob = 0.0
        self._finished = False
        self._end_ids = end_ids
        self._cursor = cursor
        self._guess = guess
        self._add_forced()

    def chunk(self, most: int) -> TokenChunk:
        """The next tokens to feed, at most `most`: what is written and was not fed, and behind it what the guess says.
        It is asked what comes after the last one that is written, and after each that is guessed."""
        tokens = self.ids[self.fed : self.fed + most]
        asked: list[int] = []
        choices: list[AllowedTokens] = []
        if self.fed + len(tokens) == len(self.ids):
            self._ask(tokens, asked, choices, most)
        return TokenChunk(tokens, self.fed, self._places(tokens), asked, None if self._cursor is None else choices)

    def _ask(self, tokens: list[int], asked: list[int], choices: list[AllowedTokens], most: int) -> None:
        """Add what is guessed to `tokens`, the places in it where there is a choice to `asked`, and what there is to
        choose from to `choices`."""
        cursor, guessed = self._cursor, self._guessed(most - len(tokens))
        if cursor is not None and guessed:
            cursor = cursor.copy()
        for token in [*guessed, None]:
            if cursor is None:
                asked.append(len(tokens) - 1)
            elif len(cursor.choices) > 1:
                asked.append(len(tokens) - 1)
                choices.append(tuple(cursor.choices))
            if token is None or token in self._end_ids:
                return
            if cursor is not None:
                if token not in cursor.choices:
                    return
                cursor.advance(token)
            tokens.append(token)

    def _guessed(self, most: int) -> list[int]:
        if self._guess is None:
            return []
        # The last token within the limit is not fed.
        most = min(most, self._limit - self.num_tokens - 1)
        guessed = self._guess.offer(len(self.ids) - self.prompt_length, most)
        if guessed and self._cursor is not None and guessed[0] not in self._cursor.choices:
            self._guess.judge(0, missed=True)
            return []
        return guessed

    def read(self, chunk: TokenChunk, tokens: Sequence[int], logprobs: Sequence[float]) -> None:
        """Go on with what was chosen after the tokens that `chunk` asked about, as far as the guess holds."""
        if not chunk.asked:
            self._feed(chunk, len(chunk.tokens))
            return
        chosen = zip(tokens, logprobs, strict=True)
        fed, right, missed = chunk.asked[0] + 1, 0, False
        is_guessed = fed < len(chunk.tokens)
        while True:
            had_choice = self._has_choice
            self._add(*(next(chosen) if had_choice else self._forced()))
            if fed == len(chunk.tokens) or not self.is_live:
                break
            missed = self.ids[-1] != chunk.tokens[fed]
            if missed:
                break
            fed += 1
            right += had_choice
        self._feed(chunk, fed)
        if is_guessed and self._guess is not None:
            self._guess.judge(right, missed=missed)
        self._add_forced()

    def completion(self) -> Completion:
        return Completion(self.ids[self.prompt_length :], self._logprob, self.num_tokens, self._finished)

    def _add(self, token: int, logprob: float) -> None:
        # A NaN anywhere in a row reaches its normaliser, so the chosen token's value tells about all of them.
        if not math.isfinite(logprob):
            raise DecodingError(
                f"prompt {self.number}: the model's logits are not finite numbers after {self.num_tokens} tokens; the "
                "weights are damaged, or overflow in this dtype: try inference.dtype=float32"
            )
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
                    f"prompt {self.number}: its grammar ends with {token}, which is none of the end_ids"
                )

    @property
    def _has_choice(self) -> bool:
        return self._cursor is None or len(self._cursor.choices) > 1

    def _forced(self) -> tuple[int, float]:
        """The next token and its log-probability where there is no choice."""
        assert self._cursor is not None
        return self._cursor.choices[0], 0.0

    def _add_forced(self) -> None:
        """Write what follows without a choice; it is fed together with the token before it."""
        while self.is_live and not self._has_choice:
            self._add(*self._forced())
