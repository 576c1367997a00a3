"""The inside of a worker: an engine in a thread, and a mailbox that the driver polls. Does not import torch itself.

An engine requests work in the middle of its loop and waits for the answer, but neither an actor nor a process can call
its driver. So the engine runs in its own thread, its requests and events are queued here, and the driver fetches them.
It polls at least every QUIET seconds, and brings the answers and whether to stop. An exchange that does not return
means that the whole process hangs, also while the engine's thread imports its libraries or loads the model.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import queue
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from arcft.errors import ArcftError
from arcft.ttft.units import Assignment, Event

if TYPE_CHECKING:
    from arcft.ttft.engine.engine import Engine

QUIET = 0.5
"""Seconds after which an exchange returns empty: the longest delay before a busy engine learns of a stop."""


@dataclasses.dataclass(frozen=True)
class Ask:
    """The engine requests a unit."""

    near: int | None
    """Preferred length of the unit, in tokens."""

    idle: bool
    """Whether the engine is idle, so that the answer may wait until there is a unit."""


@dataclasses.dataclass(frozen=True)
class Broken:
    """The engine could not be built, or crashed."""

    reason: str
    """One line."""

    traceback: str
    users: bool
    """Whether `reason` is the message of an ArcftError: the same for every worker, and meant for the user."""


Message = Event | Ask | Broken


class WorkerEngine:
    """Holds an engine, and with it the base model, for the worker's lifetime."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """Set `environment` before the factory arrives and imports its libraries."""
        os.environ.update(environment)
        # Silences a hint, logged at every import, that a 4-bit CPU kernel is available.
        logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
        self._answers: queue.SimpleQueue[Assignment | None] = queue.SimpleQueue()
        self._messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._stop = threading.Event()

    def begin(self, fetch: Callable[[], Callable[[], Engine]]) -> None:
        """Build the engine in its thread and let it request work; returns immediately.

        `fetch` returns the engine's factory. It is called in the thread too: unpickling the factory imports libraries.
        """
        threading.Thread(target=self._live, args=(fetch,), name="engine", daemon=True).start()

    def exchange(self, answers: Sequence[Assignment | None], stop: bool) -> list[Message]:
        """Deliver `answers` to the engine's requests and return its messages since the last exchange.

        Waits up to QUIET seconds for a message; returns an empty list if there is none.
        """
        for answer in answers:
            self._answers.put(answer)
        if stop:
            self._stop.set()
        messages: list[Message] = []
        try:
            messages.append(self._messages.get(timeout=QUIET))
            while True:
                messages.append(self._messages.get_nowait())
        except queue.Empty:
            return messages

    def _live(self, fetch: Callable[[], Callable[[], Engine]]) -> None:
        try:
            engine = fetch()()
            while True:
                first = self._ask(None, idle=True)
                if first is not None:
                    self._work(engine, first)
        except ArcftError as error:
            self._messages.put(Broken(str(error), traceback.format_exc(), users=True))
        except BaseException as error:
            self._messages.put(Broken(f"{type(error).__name__}: {error}", traceback.format_exc(), users=False))

    def _work(self, engine: Engine, first: Assignment) -> None:
        waiting = [first]

        def pull(near: int | None) -> Assignment | None:
            return waiting.pop() if waiting else self._ask(near, idle=False)

        for event in engine.work(pull, self._stop.is_set):
            self._messages.put(event)

    def _ask(self, near: int | None, *, idle: bool) -> Assignment | None:
        self._messages.put(Ask(near, idle))
        return self._answers.get()
