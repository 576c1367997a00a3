"""The driver's side of several workers, independent of transport: assign units, record events, replace dead workers."""

from __future__ import annotations

import dataclasses
import logging
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

    def work(self, count: int) -> None:
        """Process the queue with `count` workers until it is empty, or until soon after `stopped()`; then end them all.

        Raises WorkerError if a worker's engine could not be built (with its message), or if workers keep dying.
        """
        if self._queue.done:
            return
        self._queue.expect_workers(count)
        try:
            for number in range(count):
                self._places.append(_Place(number, self._begin(number)))
            while not self._finished(stopping := self._stopped()):
                if stopping:
                    # From now on, requeued units do not count as deaths.
                    self._queue.stop()
                places = {place.worker.name: place for place in self._places}
                for worker in self._ready([place.worker for place in self._places]):
                    self._serve(places[worker.name], stopping)
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
        busy = any(place.state == "busy" for place in self._places)
        return not busy and (stopping or self._dry or self._queue.done)

    def _serve(self, place: _Place[AnyWorker], stopping: bool) -> None:
        """Handle a worker's messages and answer its requests."""
        name = place.worker.name
        answers: list[Assignment | None] = []
        try:
            for message in place.worker.receive():
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
                place.state = "busy"
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
