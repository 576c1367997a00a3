"""How many tokens a run has trained on, and how many a second."""

from __future__ import annotations

import time


class Throughput:
    """Counts the tokens of examples, without padding, and the time since the last log, without evaluations."""

    def __init__(self) -> None:
        self.tokens = 0
        """Of the whole run, also before a stop."""

        self._tokens_logged = 0
        self._began = time.monotonic()

    def begin(self, tokens: int) -> None:
        """Training begins, or goes on after `tokens`, now."""
        self.tokens = self._tokens_logged = tokens
        self._began = time.monotonic()

    def leave_out(self, seconds: float) -> None:
        """What lasted `seconds`, up to now, was not training."""
        self._began += seconds

    def log(self) -> dict[str, float]:
        """The two values of a log, after which the next one begins."""
        now = time.monotonic()
        rate = (self.tokens - self._tokens_logged) / (now - self._began)
        self._tokens_logged, self._began = self.tokens, now
        return {"tokens": self.tokens, "tokens_per_second": rate}
