"""A prompt while it is being completed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from arcft.inference.errors import DecodingError
from arcft.inference.passes import Chunk
from arcft.text.tokens import Cursor, Positions


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


class Row:
    """The text so far, how much of it the cache holds, and what may come next."""

    def __init__(
        self,
        number: int,
        prompt: Sequence[int],
        limit: int,
        *,
        end_ids: frozenset[int],
        positions: Positions | None = None,
        cursor: Cursor | None = None,
    ) -> None:
        self.number = number
        self.ids = list(prompt)
        """Prompt and produced tokens, without the end token."""
        self.prompt_length = len(self.ids)
        self.limit = limit
        self.fed = 0
        """How many of `ids` the cache holds."""
        self.is_live = True
        self.logprob = 0.0
        self.num_tokens = 0
        self.finished = False
        self._end_ids = end_ids
        self._positions = positions
        self._place = -1  # of the last token fed
        self._cursor = cursor
        self._add_forced()

    @property
    def is_open(self) -> bool:
        """Whether some of the prompt is still to be fed."""
        return self.fed < self.prompt_length

    def skip(self, columns: int) -> None:
        """Take the first `columns` tokens of the prompt as fed: their keys and values were copied."""
        self.fed = columns
        if self._positions is not None:
            self._place = self._positions(self.ids[:columns])[-1]

    def chunk(self, most: int) -> Chunk:
        """The next tokens to feed, at most `most`, with the question what comes after the last of all."""
        tokens = self.ids[self.fed : self.fed + most]
        asked, choices = [], []
        if self.fed + len(tokens) == len(self.ids):
            asked = [len(tokens) - 1]
            if self._cursor is not None:
                choices = [tuple(self._cursor.choices)]
        places = list(range(self.fed, self.fed + len(tokens)))
        if self._positions is not None:
            places = self._positions(tokens, self._place)
        return Chunk(tokens, self.fed, places, asked, None if self._cursor is None else choices)

    def read(self, chunk: Chunk, tokens: Sequence[int], logprobs: Sequence[float]) -> None:
        """Go on with what was chosen after the tokens that `chunk` asked about."""
        self.fed += len(chunk.tokens)
        self._place = chunk.places[-1]
        if chunk.asked:
            self._add(tokens[0], logprobs[0])
            self._add_forced()

    def completion(self) -> Completion:
        return Completion(self.ids[self.prompt_length :], self.logprob, self.num_tokens, self.finished)

    def _add(self, token: int, logprob: float) -> None:
        # A NaN anywhere in a row reaches its normaliser, so the chosen token's value tells about all of them.
        if not math.isfinite(logprob):
            raise DecodingError(
                f"prompt {self.number}: the model's logits are not finite numbers after {self.num_tokens} tokens; the "
                "weights are damaged, or overflow in this dtype: try inference.dtype=float32"
            )
        self.logprob += logprob
        self.num_tokens += 1
        if self._cursor is not None:
            self._cursor.take(token)
        self.finished = token in self._end_ids
        if not self.finished:
            self.ids.append(token)
        self.is_live = not self.finished and self.num_tokens < self.limit

    def _add_forced(self) -> None:
        """Write what follows without a choice; it is fed together with the token before it."""
        while self.is_live and self._cursor is not None and len(self._cursor.choices) == 1:
            self._add(self._cursor.choices[0], 0.0)
