"""Training throughput in tokens per second."""

from __future__ import annotations

import time


class Throughput:
    """Counts trained tokens without padding, and training time without evaluations."""

    def __init__(self) -> None:
        self.tokens = 0
        """Tokens of the whole run, including those before a stop."""

        self._tokens_logged = 0
        self._began = time.monotonic()

    def begin(self, tokens: int) -> None:
        """Start the clock, with `tokens` tokens already trained on before a stop."""
        self.tokens = self._tokens_logged = tokens
        self._began = time.monotonic()

    def leave_out(self, seconds: float) -> None:
        """Exclude the last `seconds` seconds: they were not training."""
        self._began += seconds

    def log(self) -> dict[str, float]:
        """`tokens` so far and `tokens_per_second` since the last call."""
        now = time.monotonic()
        rate = (self.tokens - self._tokens_logged) / (now - self._began)
        self._tokens_logged, self._began = self.tokens, now
        return {"tokens": self.tokens, "tokens_per_second": rate}
