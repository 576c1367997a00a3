"""How a run is asked to end early: it finishes its optimizer step, saves, and returns."""

from __future__ import annotations

import time


class StopRequest:
    """Passes a request to stop, from a signal handler or a time limit, to the training loop.

    The loop checks `reason` after every optimizer step; long work between steps may check it too.
    """

    def __init__(self, max_seconds: float | None = None) -> None:
        """Stop after `max_seconds` seconds from now; None: no time limit."""
        self._deadline = None if max_seconds is None else time.monotonic() + max_seconds
        self._max_seconds = max_seconds
        self._reason: str | None = None

    def request(self, reason: str) -> None:
        """Ask to stop; the first reason is kept. Safe to call in a signal handler."""
        self._reason = self._reason or reason

    @property
    def reason(self) -> str | None:
        """Why to stop; None to continue."""
        if self._reason is None and self._deadline is not None and time.monotonic() >= self._deadline:
            self._reason = f"training.max_time ({self._max_seconds:.0f} s) has passed"
        return self._reason
