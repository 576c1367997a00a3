"""Workers as local processes, each behind a pipe. Does not import torch itself."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from arcft.processes import ChildDied, ChildProcess
from arcft.ttft.units import Assignment
from arcft.ttft.workers.engine_host import QUIET, Message, WorkerEngine
from arcft.ttft.workers.pool import WorkerDied

if TYPE_CHECKING:
    from arcft.ttft.engine.engine import Engine


class ProcessWorker:
    """A child process that holds a WorkerEngine. It ends with its pipe, so also when the driver is killed."""

    def __init__(self, number: int, factory: Callable[[], Engine], environment: Mapping[str, str]) -> None:
        """Start the child with the variables in `environment`, and let it build its engine by `factory`."""
        self.name = f"process-{number}"
        self._child = ChildProcess(_serve, (dict(environment),), name=self.name)
        # Not as an argument of the process: what unpickling it imports must find the environment set, and takes long.
        self._child.send(factory)

    @property
    def connection(self) -> Connection:
        """Our end of the pipe."""
        return self._child.connection

    def send(self, answers: Sequence[Assignment | None], stop: bool) -> None:
        """Begin the next exchange."""
        self._child.send((list(answers), stop))

    def receive(self) -> list[Message]:
        """The result of the exchange. Raise WorkerDied."""
        try:
            messages: list[Message] = self._child.receive()
        except ChildDied as death:
            raise WorkerDied(str(death)) from death
        return messages

    def close(self) -> None:
        """Kill the worker. A polite end would wait for the step to finish, and nothing is lost: the driver has all
        results."""
        self._child.kill()


def ready(workers: Sequence[ProcessWorker]) -> list[ProcessWorker]:
    """Wait up to QUIET seconds; return the workers that have sent something."""
    connections = multiprocessing.connection.wait([worker.connection for worker in workers], timeout=QUIET)
    return [worker for worker in workers if worker.connection in connections]


def _serve(connection: Connection, environment: Mapping[str, str]) -> None:
    """What the child does: host an engine until the pipe is closed."""
    hosted = WorkerEngine(environment)
    try:
        factory = connection.recv_bytes()
        ours, theirs = multiprocessing.Pipe()
        hosted.begin(theirs.recv)
        ours.send_bytes(factory)
        while True:
            connection.send(hosted.exchange(*connection.recv()))
    except (EOFError, OSError):
        # The driver closed the pipe or is gone. The engine's thread may be in the middle of a step: do not wait for it.
        os._exit(0)
