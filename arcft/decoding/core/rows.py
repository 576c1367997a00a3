"""A text in a slot of the cache: what of it is there, and what is fed next."""

from __future__ import annotations

import abc
from collections.abc import Sequence

from arcft.decoding.core.forward import TokenChunk
from arcft.protocols import Positions


class Row(abc.ABC):
    """A prompt and what comes after it."""

    def __init__(self, number: int, prompt: Sequence[int], positions: Positions | None) -> None:
        self.number = number
        """Which of the prompts it has, from 0."""
        self.key = number
        """Which of the rows it is, if several have one prompt."""
        self.ids = list(prompt)
        """Prompt and completion."""
        self.prompt_length = len(self.ids)
        self.fed = 0
        """How many of `ids` the cache holds."""
        self.num_tokens = 0
        """Of the completion, so far."""
        self.is_live = True
        """Whether there is more to be fed."""
        self._positions = positions
        self._place = -1  # of the last token fed

    @property
    def is_open(self) -> bool:
        """Whether some of the prompt is still to be fed."""
        return self.fed < self.prompt_length

    def skip(self, columns: int) -> None:
        """Take the first `columns` tokens of the prompt as fed: their keys and values were copied."""
        self.fed = columns
        if self._positions is not None:
            self._place = self._positions(self.ids[:columns])[-1]

    @abc.abstractmethod
    def chunk(self, most: int) -> TokenChunk:
        """The next tokens to feed, at most `most`, and what is asked about them."""

    @abc.abstractmethod
    def read(self, chunk: TokenChunk, tokens: Sequence[int], logprobs: Sequence[float]) -> None:
        """Go on with the tokens that were chosen where `chunk` asked, and their log-probabilities."""

    def _places(self, tokens: Sequence[int]) -> list[int]:
        """The positions of the next tokens."""
        if self._positions is None:
            return list(range(self.fed, self.fed + len(tokens)))
        return self._positions(tokens, self._place)

    def _feed(self, chunk: TokenChunk, count: int) -> None:
        """Take the first `count` tokens of `chunk` as fed."""
        self.fed += count
        self._place = chunk.places[count - 1]
