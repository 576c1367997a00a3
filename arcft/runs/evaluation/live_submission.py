"""Keep submission.json valid while tests are predicted: a run may be killed at any time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from arcft.protocols import Kind, Problem
from arcft.runs.evaluation.results import write_submission
from arcft.scoring.predictions import Prediction
from arcft.scoring.selection import Selector
from arcft.scoring.voting import Attempts

_SHARE = 0.02
"""Share of the time that writing may take."""
_SECONDS = 2.0
"""Minimum seconds between two writes."""


class LiveSubmission:
    """Writes the submission of `submitted` into `folder`; tests without predictions have placeholders."""

    def __init__(
        self, folder: Path, kind: Kind, tasks: Sequence[Problem], submitted: Sequence[Problem], selector: Selector
    ) -> None:
        """`tasks` are those of `submitted` that are predicted."""
        self._folder = folder
        self._kind = kind
        self._tasks = tasks
        self._submitted = submitted
        self._selector = selector
        self._next = 0.0

    @property
    def is_due(self) -> bool:
        return time.monotonic() >= self._next

    def write(self, predictions: Sequence[Prediction]) -> Attempts:
        """Select from `predictions`, write, and return the attempts."""
        start = time.monotonic()
        attempts = self._selector.attempts(self._tasks, predictions, self._kind.metrics.attempts)
        write_submission(self._folder, self._kind, self._submitted, attempts)
        end = time.monotonic()
        self._next = end + max(_SECONDS, (end - start) / _SHARE)
        return attempts
