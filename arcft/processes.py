"""Child processes at the other end of a pipe: one way to start, talk to and end them. Loads no torch.

Children are spawned: after a fork, neither CUDA nor the threads of torch work.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.resource_tracker
import os
import signal
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

EXIT_SECONDS = 5.0
"""How long a child that has closed its pipe may take to exit, so that its exit code is known."""


class ChildDied(Exception):  # noqa: N818 - reported, and usually recovered from
    """The child process is gone; the message says how it ended."""


class ChildProcess:
    """A spawned child that runs `target(connection, *args)`, where `connection` is its end of a pipe to us.

    A target that reads from the pipe gets an EOFError once our end is closed, also because this process was killed;
    it should then return, so that no child outlives its parent.
    """

    def __init__(
        self, target: Callable[..., None], args: tuple[Any, ...] = (), *, name: str, own_group: bool = False
    ) -> None:
        """Start the child. `target` and `args` have to be picklable.

        A terminal or a batch system signals whole process groups, but what to do about it is for the parent to decide:
        by default the child ignores SIGINT and SIGTERM. With `own_group` it has a session of its own instead; it may
        then start processes itself, and `kill` ends these too.
        """
        self._own_group = own_group
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_run,
            args=(target, theirs, args, own_group),
            name=name,
            daemon=not own_group,  # daemons may not start processes
        )
        with _signals_blocked():
            self._process.start()
        # Our copy would keep the pipe open after the child's death.
        theirs.close()

    def send(self, message: object) -> None:
        """Send a picklable message. If the child is dead, only `receive` raises."""
        with contextlib.suppress(OSError):
            self.connection.send(message)

    def receive(self, timeout: float | None = None) -> Any:
        """Wait for a message. Raise ChildDied, or TimeoutError after `timeout` seconds (None: wait forever)."""
        if timeout is not None and not self.connection.poll(timeout):
            raise TimeoutError
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            self._process.join(EXIT_SECONDS)
            raise ChildDied(_cause_of_death(self._process.exitcode)) from None

    def kill(self) -> None:
        """End the child at once, whatever it is doing, and wait until it is gone."""
        if self._own_group:
            # The group exists only once the child has started its session.
            assert self._process.pid is not None
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        self._process.join()
        self.connection.close()


def _run(target: Callable[..., None], connection: Connection, args: tuple[Any, ...], own_group: bool) -> None:
    if own_group:
        os.setsid()
    else:
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    target(connection, *args)


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """A process that is started in this context inherits blocked signals, until it has decided about them."""
    # Starting the first process would start the resource tracker, which unblocks the signals.
    multiprocessing.resource_tracker.ensure_running()
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def _cause_of_death(exit_code: int | None) -> str:
    if exit_code is None:
        return "it closed its pipe"
    if exit_code == -signal.SIGKILL:
        return "SIGKILL; systems also end processes this way when memory runs out"
    if exit_code < 0:
        return signal.Signals(-exit_code).name
    return f"exit code {exit_code}"
