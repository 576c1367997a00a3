"""How a run is asked to end early: it finishes its step, saves, and returns."""

from __future__ import annotations

import time


class StopRequest:
    """Carries the wish to stop from a signal handler, or a time limit, to the training loop.

    The loop looks at `reason` after every optimizer step; long work between steps may look at it too.
    """

    def __init__(self, max_seconds: float | None = None) -> None:
        self._deadline = None if max_seconds is None else time.monotonic() + max_seconds
        self._max_seconds = max_seconds
        self._reason: str | None = None

    def request(self, reason: str) -> None:
        """Ask to stop; the first reason stays. Safe in a signal handler."""
        self._reason = self._reason or reason

    @property
    def reason(self) -> str | None:
        """Why to stop, or None to go on."""
        if self._reason is None and self._deadline is not None and time.monotonic() >= self._deadline:
            self._reason = f"training.max_time ({self._max_seconds:.0f} s) has passed"
        return self._reason
