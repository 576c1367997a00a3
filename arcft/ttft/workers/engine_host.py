"""What lives in a worker: an engine in a thread, and a mailbox that the driver empties. Loads no torch itself.

An engine asks for work in the middle of its loop and waits for the answer, but neither an actor nor a process can call
its driver. So the engine has a thread of its own, its questions and events gather here, and the driver comes to fetch
them. It comes back at least once in QUIET seconds, with the answers and whether to stop.
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
"""Seconds after which an exchange returns with nothing: how late a stop reaches a busy engine."""


@dataclasses.dataclass(frozen=True)
class Ask:
    """The engine asks for a unit."""

    near: int | None
    """Length, in tokens, that the unit should be near to."""

    idle: bool
    """Whether it has nothing under way, so that the answer may wait until there is something."""


@dataclasses.dataclass(frozen=True)
class Broken:
    """The engine could not be built, or fell over as a whole."""

    reason: str
    """One line."""

    traceback: str
    users: bool
    """Whether the reason is an ArcftError's message: the same for every worker, and meant to be read."""


Message = Event | Ask | Broken


class WorkerEngine:
    """Holds an engine, and with it the base model, for as long as the worker lives."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """Set `environment`, before the factory arrives and imports what it needs."""
        os.environ.update(environment)
        # It says at every import that a kernel for 4 bits on the CPU could be had.
        logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
        self._answers: queue.SimpleQueue[Assignment | None] = queue.SimpleQueue()
        self._messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._stop = threading.Event()

    def begin(self, factory: Callable[[], Engine]) -> None:
        """Build the engine, and let it ask for work; returns at once."""
        threading.Thread(target=self._live, args=(factory,), name="engine", daemon=True).start()

    def exchange(self, answers: Sequence[Assignment | None], stop: bool) -> list[Message]:
        """Hand over the answer to the last question, if there was one, and take what the engine has said since.

        Waits up to QUIET seconds for something to be said; an empty list if nothing was.
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

    def _live(self, factory: Callable[[], Engine]) -> None:
        try:
            engine = factory()
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
