"""Child processes at the other end of a pipe: one way to start, talk to and end them. Loads no torch.

Children are spawned: after a fork, neither CUDA nor the threads of torch work.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.resource_tracker
import os
import signal
import socket
import struct
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

EXIT_SECONDS = 5.0
"""How long a child that was killed, or has closed its pipe, may take to exit."""

TRANSFER_SECONDS = 10.0
"""A message counts as lost once no byte of it has moved for this long: the child was stopped in the middle of it."""


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
        _limit_transfers(self.connection)
        self._torn = False
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
        """Send a picklable message. If the child is dead, or does not take it in time, only `receive` raises."""
        if self._torn:
            return
        try:
            self.connection.send(message)
        except BlockingIOError:
            self._torn = True
        except OSError:
            pass

    def receive(self, timeout: float = TRANSFER_SECONDS) -> Any:
        """Wait for a message. Raise ChildDied, or TimeoutError where none begins within `timeout` seconds."""
        if self._torn:
            raise ChildDied(f"it took no message for {TRANSFER_SECONDS:g} s")
        if not self.connection.poll(timeout):
            raise TimeoutError
        try:
            return self.connection.recv()
        except BlockingIOError:
            self._torn = True
            raise ChildDied(f"it was silent for {TRANSFER_SECONDS:g} s in the middle of a message") from None
        except (EOFError, OSError):
            self._process.join(EXIT_SECONDS)
            raise ChildDied(_cause_of_death(self._process.exitcode)) from None

    def kill(self) -> None:
        """End the child at once, whatever it is doing, and wait until it is gone.

        A process that hangs inside the kernel, on a dead disk or driver, is left behind after EXIT_SECONDS.
        """
        if self._own_group:
            # The group exists only once the child has started its session.
            assert self._process.pid is not None
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        self._process.join(EXIT_SECONDS)
        self.connection.close()


def _run(target: Callable[..., None], connection: Connection, args: tuple[Any, ...], own_group: bool) -> None:
    if own_group:
        os.setsid()
    else:
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    target(connection, *args)


def _limit_transfers(connection: Connection) -> None:
    """Let reads and writes that have begun raise BlockingIOError after TRANSFER_SECONDS without a byte."""
    limit = struct.pack("ll", int(TRANSFER_SECONDS), 0)
    with socket.socket(fileno=os.dup(connection.fileno())) as pipe:
        pipe.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        pipe.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)


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
