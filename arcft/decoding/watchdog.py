"""A process that answers requests, ended and started anew when it freezes or dies. Knows neither models nor grids."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Generic, TypeVar

from arcft.errors import ArcftError

Request = TypeVar("Request")
Answer = TypeVar("Answer")
Make = Callable[[], Callable[[list[Request]], list[Answer]]]
"""Is called in the process, once, and gives what answers there."""

MAX_STARTS = 3
"""So many processes may fail at the same requests."""


class WatchdogError(ArcftError):
    """What answers can't be started, or fails again and again."""


class _FailedError(Exception):
    """This process is of no use any more."""


class Watchdog(Generic[Request, Answer]):
    """One process at a time, begun with the first requests. To be used in a `with` block: the process ends with it."""

    def __init__(
        self, make: Make[Request, Answer], *, name: str, key: str, seconds: float, say: Callable[[str], None]
    ) -> None:
        """`make` has to be picklable, as requests and answers. `name` is what messages call the process, and `key` the
        config's key for `seconds`: without a word for so long, it counts as frozen. `say` is told of each restart."""
        self._make, self._name, self._key, self._seconds, self._say = make, name, key, seconds, say
        self._process: Any = None
        self._connection: Connection | None = None

    def __enter__(self) -> Watchdog[Request, Answer]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, requests: list[Request]) -> list[Answer]:
        """An answer to each of `requests`, whatever number of processes that takes.

        Raises WatchdogError if none can be started, or TRIES fail at these.
        """
        reason = ""
        for _ in range(MAX_STARTS):
            try:
                if self._connection is None:
                    self._start()
                assert self._connection is not None
                with contextlib.suppress(OSError):  # `_receive` tells what became of it
                    self._connection.send(requests)
                answers: list[Answer] = self._receive()
                return answers
            except _FailedError as failure:
                self.close()
                reason = str(failure)
                self._say(f"{self._name} {reason}; starting it anew")
        raise WatchdogError(
            f"{self._name} {reason}, for the {MAX_STARTS}. time with the same {len(requests)} prompts; if they take "
            f"longer, raise {self._key} or lower inference.batch_size; what was predicted before is kept"
        )

    def close(self) -> None:
        """End the process, and those that it has started."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._process is not None:
            # Its group is its own once it has come so far.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.kill()
            self._process.join()
            self._process = None

    def _start(self) -> None:
        # Spawned: after a fork, neither CUDA nor the threads of torch would work.
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        # No daemon, for those may not start processes themselves.
        self._process = context.Process(target=_serve, args=(self._make, theirs), name=self._name)
        self._process.start()
        # Or the pipe would stay open when the process dies.
        theirs.close()
        try:
            self._receive()
        except WatchdogError:
            self.close()
            raise

    def _receive(self) -> Any:
        assert self._connection is not None
        if not self._connection.poll(self._seconds):
            raise _FailedError(f"has given no answer for {self._seconds:g} s ({self._key})")
        try:
            kind, value = self._connection.recv()
        except (EOFError, OSError):
            raise _FailedError("has died") from None
        if kind == "refused":
            raise WatchdogError(value)
        if kind == "failed":
            raise _FailedError(f"has failed ({value})")
        return value


def _serve(make: Make[Any, Any], connection: Connection) -> None:
    """Ends when the pipe is closed, so also when the other end is killed."""
    os.setsid()
    try:
        answer = make()
    except Exception as error:
        connection.send(
            ("refused", str(error) if isinstance(error, ArcftError) else f"{type(error).__name__}: {error}")
        )
        return
    connection.send(("ready", None))
    with contextlib.suppress(EOFError):
        while True:
            requests = connection.recv()
            try:
                connection.send(("answered", answer(requests)))
            except Exception as error:
                connection.send(("failed", _explained(error)))


def _explained(error: Exception) -> str:
    return str(error) if isinstance(error, ArcftError) else f"{type(error).__name__}: {error}"
