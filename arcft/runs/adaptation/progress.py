"""Live progress of an evaluation with test-time fine-tuning: the progress line, and an always valid submission."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from arcft.memory import peak_bytes
from arcft.protocols import Kind, Problem
from arcft.reporting.words import duration
from arcft.runs.common.progress import Advance
from arcft.runs.evaluation.live_submission import LiveSubmission
from arcft.scoring.metrics import score_problems
from arcft.tracking import Tracker
from arcft.ttft.ledger.ledger import Ledger
from arcft.ttft.scheduling.queue import Progress, Queue
from arcft.ttft.units import Event, Failed, Finished, Lowered, Predicted

Say = Callable[[str], None]

_LINE_SECONDS = 0.25
"""Minimum seconds between two progress lines."""


class LiveProgress:
    """Called with every event once it is in the ledger; `close` writes the latest state."""

    def __init__(
        self,
        kind: Kind,
        tasks: Sequence[Problem],
        queue: Queue,
        submission: LiveSubmission,
        *,
        tracker: Tracker,
        advance: Advance,
        ledger: Ledger,
        say: Say,
    ) -> None:
        """`say` prints a message to the user immediately."""
        self._kind = kind
        self._tasks = tasks
        self._queue = queue
        self._submission = submission
        self._tracker = tracker
        self._advance = advance
        self._ledger = ledger
        self._say = say
        self._known = any(answer is not None for task in tasks for answer in task.answers)
        self._solved = 0
        self._next_line = 0.0
        # The file is valid from the start, even without predictions.
        self.look()

    def __call__(self, event: Event) -> None:
        if isinstance(event, Lowered):
            self._say(event.reason)
        if isinstance(event, Failed):
            self._say(self._failure(event))
        now = time.monotonic()
        if isinstance(event, Predicted | Finished) and self._queue.changed and self._submission.is_due:
            self.look()
        if now >= self._next_line or isinstance(event, Finished | Failed):
            self._next_line = now + _LINE_SECONDS
            progress = self._queue.progress()
            self._advance(progress.done + progress.failed, self.words(progress))

    def _failure(self, event: Failed) -> str:
        round, name = event.key
        words = f"{name} failed{'' if round else ' as it is, before adapting'}: {event.reason}"
        return f"{words}; tried once more" if self._ledger.find(event.key).state == "queued" else words

    def look(self) -> None:
        """Select from the current predictions, write the submission, and log how many tasks are solved."""
        self._queue.changed = False
        predictions = self._queue.predictions()
        metric_set = self._kind.metrics
        attempts = self._submission.write(predictions)
        if self._known:
            scores = score_problems(self._tasks, predictions, attempts, metric_set)
            self._solved = sum(scores.solved(metric_set).values())
            progress = self._queue.progress()
            seconds = self._ledger.elapsed()
            values = {"ttft/solved": self._solved, "ttft/done": progress.done, "ttft/failed": progress.failed}
            # There is no training step, so the elapsed seconds serve as the step, and as the charts' axis.
            self._tracker.log({**values, "ttft/seconds": seconds}, int(seconds))

    def words(self, progress: Progress) -> str:
        """For example `3 solved, 12m left, 3,412 tokens/s, 1.2 GB`."""
        words = []
        if progress.done + progress.failed == 0 and progress.predicted_before and progress.seconds_left is None:
            words.append(f"{progress.predicted_before} predicted as it is")
        if progress.failed:
            words.append(f"{progress.failed} failed")
        if self._known:
            words.append(f"{self._solved} solved")
        if progress.extra:
            words.append(f"{progress.extra} again")
        if progress.seconds_left is not None and progress.seconds_left >= 1:
            words.append(f"{duration(progress.seconds_left)} left")
        return ", ".join([*words, f"{progress.tokens_per_second:,.0f} tokens/s", f"{memory() / 1e9:.1f} GB"])


def memory() -> int:
    """Peak memory in bytes: of the GPU if this process uses one, else of the process."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_reserved()
    return peak_bytes(torch.device("cpu"))
