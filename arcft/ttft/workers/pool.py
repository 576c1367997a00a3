"""The driver's side of several workers, independent of transport: assign units, record events, replace dead workers."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Generic, Literal, Protocol, TypeVar

from arcft.errors import ArcftError
from arcft.ttft.units import Assignment, Event, Failed, Finished
from arcft.ttft.workers.engine_host import Ask, Broken, Message

if TYPE_CHECKING:
    from arcft.ttft.scheduling.queue import Queue

START_TRIES = 2
"""A worker that died this often before requesting work is not replaced: something in its environment is missing."""

DEATHS_IN_A_ROW = 25
"""This many deaths without a finished unit in between end the run. It is more than the queue needs to give up on a
unit that kills its worker in every round and attempt."""

SILENT_SECONDS = {"starting": 120.0, "idle": 60.0, "busy": 60.0}
"""A process that has left an exchange unanswered for this long hangs as a whole. One that starts may be given to a busy
machine, and holds Python's lock while it loads large libraries."""

START_SECONDS = 3600.0
"""A worker must have loaded its model within this time."""

STOP_SECONDS = 5.0
"""Time for engines to end their step, or their adapter's files, once a stop is asked for."""

_TICK_SECONDS = 5.0
"""A round of the driver counts as at most this long: if the driver itself was suspended, its workers are not blamed."""

logger = logging.getLogger(__name__)


class WorkerError(ArcftError):
    """Workers can't be started, or keep dying."""


class WorkerDied(Exception):  # noqa: N818 - handled by starting another worker
    """A worker died; the message says how."""


class Worker(Protocol):
    """A handle on a WorkerEngine (arcft.ttft.workers.engine_host) in another process."""

    name: str

    def send(self, answers: Sequence[Assignment | None], stop: bool) -> None:
        """Begin the next exchange. If the worker is dead, `receive` raises."""

    def receive(self) -> list[Message]:
        """The result of the exchange; raises WorkerDied."""

    def close(self) -> None:
        """End the worker immediately."""


AnyWorker = TypeVar("AnyWorker", bound=Worker)


@dataclasses.dataclass
class _Place(Generic[AnyWorker]):
    """A position in the pool: holds a worker and, after its death, its replacement."""

    number: int
    worker: AnyWorker
    state: Literal["starting", "idle", "busy"] = "starting"
    failed_starts: int = 0
    silent: float = 0.0
    """Seconds since the process answered an exchange."""

    quiet: float = 0.0
    """Seconds since its engine sent a message."""


class WorkerPool(Generic[AnyWorker]):
    """Workers that process one queue."""

    def __init__(
        self,
        start: Callable[[int], AnyWorker],
        ready: Callable[[Sequence[AnyWorker]], Sequence[AnyWorker]],
        queue: Queue,
        *,
        stopped: Callable[[], bool],
        on_event: Callable[[Event], None],
    ) -> None:
        """`start(number)` starts a worker; `ready` waits briefly and returns workers whose exchange has finished."""
        self._start, self._ready, self._queue = start, ready, queue
        self._stopped, self._on_event = stopped, on_event
        self._places: list[_Place[AnyWorker]] = []
        self._deaths = 0
        self._last_reason = ""
        # Report a bug once, not once per worker.
        self._reported: set[str] = set()
        # Whether the queue had nothing for an idle worker, and nothing was requeued since.
        self._dry = False
        self._stopping_for = 0.0

    def work(self, count: int) -> None:
        """Process the queue with `count` workers until it is empty, or until soon after `stopped()`; then end them all.

        A worker that hangs is ended like one that died, and at the latest STOP_SECONDS after `stopped()`. Raises
        WorkerError if a worker's engine could not be built (with its message), or if workers keep dying.
        """
        if self._queue.done:
            return
        self._queue.expect_workers(count)
        try:
            for number in range(count):
                self._places.append(_Place(number, self._begin(number)))
            before = time.monotonic()
            while not self._finished(stopping := self._stopped()):
                if stopping:
                    # From now on, requeued units do not count as deaths.
                    self._queue.stop()
                places = {place.worker.name: place for place in self._places}
                for worker in self._ready([place.worker for place in self._places]):
                    self._serve(places[worker.name], stopping)
                now = time.monotonic()
                self._end_hanging(min(now - before, _TICK_SECONDS), stopping)
                before = now
        finally:
            for place in self._places:
                place.worker.close()
            for place in self._places:
                self._queue.requeue(place.worker.name)

    def _begin(self, number: int) -> AnyWorker:
        worker = self._start(number)
        worker.send([], False)
        return worker

    def _finished(self, stopping: bool) -> bool:
        if not self._places and not stopping and not self._queue.done:
            raise WorkerError(
                f"no worker could be started: {self._last_reason}; to see it in one process use ttft.workers=local"
            )
        busy = any(place.state == "busy" for place in self._places) and self._stopping_for < STOP_SECONDS
        return not busy and (stopping or self._dry or self._queue.done)

    def _end_hanging(self, passed: float, stopping: bool) -> None:
        """Replace the workers that hang, `passed` seconds after the last look."""
        self._stopping_for += passed if stopping else 0.0
        for place in list(self._places):
            place.silent += passed
            place.quiet += passed
            reason = self._hangs(place)
            if reason is not None:
                self._replace(place, reason, stopping)

    def _hangs(self, place: _Place[AnyWorker]) -> str | None:
        """Why a worker is not waited for any longer."""
        if place.silent > SILENT_SECONDS[place.state]:
            return f"its process has not answered for {place.silent:.0f} s"
        if place.state == "starting" and place.quiet > START_SECONDS:
            return f"it has not loaded its model in {place.quiet:.0f} s"
        return self._queue.overdue(place.worker.name, place.quiet)

    def _serve(self, place: _Place[AnyWorker], stopping: bool) -> None:
        """Handle a worker's messages and answer its requests."""
        name = place.worker.name
        answers: list[Assignment | None] = []
        place.silent = 0.0
        try:
            for message in place.worker.receive():
                place.quiet = 0.0
                match message:
                    case Broken(users=True):
                        raise WorkerError(message.reason)
                    case Broken():
                        if message.traceback not in self._reported:
                            logger.error("%s: %s", name, message.traceback.rstrip())
                        self._reported.add(message.traceback)
                        raise WorkerDied(message.reason)
                    case Ask(idle=True):
                        place.state = "idle"
                    case Ask():
                        answers.append(None if stopping else self._queue.pull(name, message.near))
                    case _:
                        self._record(message, name)
        except WorkerDied as death:
            self._replace(place, str(death), stopping)
            return
        if place.state == "idle" and not stopping:
            first = self._queue.pull(name)
            self._dry = first is None
            if first is not None:
                place.state, place.quiet = "busy", 0.0
                answers.append(first)
        place.worker.send(answers, stopping)

    def _record(self, event: Event, name: str) -> None:
        self._queue.record(event, name)
        if isinstance(event, (Finished, Failed)):
            self._deaths = 0
        self._on_event(event)

    def _replace(self, place: _Place[AnyWorker], reason: str, stopping: bool) -> None:
        """Requeue the units of a dead worker and start a replacement."""
        name, starting = place.worker.name, place.state == "starting"
        place.worker.close()
        self._queue.requeue(name)
        self._dry = False
        self._deaths += 1
        self._last_reason = reason
        text = f"{name} {'did not start' if starting else 'died, its units are queued again'}: {reason}"
        logger.warning("%s", text)
        self._queue.note("worker", text)
        if self._deaths >= DEATHS_IN_A_ROW:
            raise WorkerError(f"{self._deaths} workers died before one of them finished a unit; the last one: {reason}")
        place.failed_starts = place.failed_starts + 1 if starting else 0
        if stopping or place.failed_starts >= START_TRIES:
            self._places.remove(place)
        else:
            place.worker, place.state = self._begin(place.number), "starting"
            place.silent = place.quiet = 0.0
