"""Workers as local processes, each behind a pipe. Does not import torch itself."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import multiprocessing.resource_tracker
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from arcft.ttft.units import Assignment
from arcft.ttft.workers.engine_host import QUIET, Message, WorkerEngine
from arcft.ttft.workers.pool import WorkerDied

if TYPE_CHECKING:
    from arcft.ttft.engine.engine import Engine

SIGNALS = (signal.SIGINT, signal.SIGTERM)
LAST_WORDS = 5.0
"""Seconds for a process that has closed its pipe to be gone, so that its exit code is known."""


class ProcessWorker:
    """A child process that holds a WorkerEngine. It ends when the pipe is closed, so also when the driver is killed."""

    def __init__(self, number: int, factory: Callable[[], Engine], environment: Mapping[str, str]) -> None:
        self.name = f"process-{number}"
        # Spawned: after a fork, neither CUDA nor the threads of torch would work.
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, dict(environment)), name=self.name, daemon=True)
        with _signals_held_back():
            self._process.start()
        # Or the pipe would stay open when the process dies.
        theirs.close()
        # Not as an argument: what it imports must find the environment set.
        self._say(factory)

    def send(self, answers: Sequence[Assignment | None], stop: bool) -> None:
        self._say((list(answers), stop))

    def _say(self, what: object) -> None:
        # Where it is dead, `receive` will tell how.
        with contextlib.suppress(OSError):
            self.connection.send(what)

    def receive(self) -> list[Message]:
        try:
            messages: list[Message] = self.connection.recv()
        except (EOFError, OSError) as error:
            self._process.join(LAST_WORDS)
            raise WorkerDied(_cause(self._process.exitcode)) from error
        return messages

    def close(self) -> None:
        # Politeness would wait for the end of a step. Nothing is lost: what is worth keeping, the driver has.
        self._process.kill()
        self._process.join()
        self.connection.close()


def ready(workers: Sequence[ProcessWorker]) -> list[ProcessWorker]:
    """Those that have something to be received, after a moment."""
    connections = multiprocessing.connection.wait([worker.connection for worker in workers], timeout=QUIET)
    return [worker for worker in workers if worker.connection in connections]


def _serve(connection: Connection, environment: Mapping[str, str]) -> None:
    """What the child process does."""
    # A terminal and a batch system signal the whole group; it is the driver that decides.
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    hosted = WorkerEngine(environment)
    try:
        hosted.begin(connection.recv())
        while True:
            connection.send(hosted.exchange(*connection.recv()))
    except (EOFError, OSError):
        # The driver closed the pipe, or is gone. The engine's thread may be in the midst of a step, and is not waited
        # for.
        os._exit(0)


@contextlib.contextmanager
def _signals_held_back() -> Iterator[None]:
    """A process started in this context is born with SIGINT and SIGTERM blocked, until it has chosen to ignore them."""
    # It is started with the first process, and would unblock the signals.
    multiprocessing.resource_tracker.ensure_running()
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _cause(exit_code: int | None) -> str:
    if exit_code is None:
        return "it closed its pipe"
    if exit_code == -signal.SIGKILL:
        return "SIGKILL; that is also how a system ends processes when its memory is full"
    if exit_code < 0:
        return signal.Signals(-exit_code).name
    return f"exit code {exit_code}"
