"""A watchdog: requests are answered in a child process, which is restarted when it freezes or dies.

Engines with kernels and schedulers of their own (vLLM) can hang or take their process down; neither may end a run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Generic, TypeVar

from arcft.errors import ArcftError
from arcft.processes import ChildDied, ChildProcess

Request = TypeVar("Request")
Answer = TypeVar("Answer")
Make = Callable[[], Callable[[list[Request]], list[Answer]]]
"""Called once in the child; returns the function that answers requests there."""

MAX_STARTS = 3
"""Give up once this many processes have failed at the same requests."""


class WatchdogError(ArcftError):
    """The child can't be started, or fails again and again."""


class _FailedError(Exception):
    """The present child is useless."""


class Watchdog(Generic[Request, Answer]):
    """At most one child process, started with the first requests and ended with the `with` block."""

    def __init__(
        self, make: Make[Request, Answer], *, name: str, key: str, seconds: float, say: Callable[[str], None]
    ) -> None:
        """Configure the watchdog; nothing is started yet.

        Args:
            make: See Make. Has to be picklable, like requests and answers.
            name: What messages call the child.
            key: The config key of `seconds`, for messages.
            seconds: A child that gives no answer for this long counts as frozen.
            say: Called with a message at each restart.
        """
        self._make, self._name, self._key, self._seconds, self._say = make, name, key, seconds, say
        self._child: ChildProcess | None = None

    def __enter__(self) -> Watchdog[Request, Answer]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, requests: list[Request]) -> list[Answer]:
        """Return an answer for each of `requests`, starting children as needed.

        Raise WatchdogError if none can be started, or if MAX_STARTS fail at these requests.
        """
        reason = ""
        for _ in range(MAX_STARTS):
            try:
                if self._child is None:
                    self._start()
                assert self._child is not None
                self._child.send(requests)
                answers: list[Answer] = self._receive()
                return answers
            except _FailedError as failure:
                self.close()
                reason = str(failure)
                self._say(f"{self._name} {reason}; restarting it")
        raise WatchdogError(
            f"{self._name} {reason}, {MAX_STARTS} times with the same {len(requests)} prompts; if they need more time, "
            f"raise {self._key} or lower inference.batch_size; earlier predictions are kept"
        )

    def close(self) -> None:
        """End the child and the processes that it has started."""
        if self._child is not None:
            self._child.kill()
            self._child = None

    def _start(self) -> None:
        self._child = ChildProcess(_serve, (self._make,), name=self._name, own_group=True)
        try:
            self._receive()
        except WatchdogError:
            self.close()
            raise

    def _receive(self) -> Any:
        assert self._child is not None
        try:
            kind, value = self._child.receive(self._seconds)
        except TimeoutError:
            raise _FailedError(f"has given no answer for {self._seconds:g} s ({self._key})") from None
        except ChildDied as death:
            raise _FailedError(f"has died ({death})") from None
        if kind == "refused":
            raise WatchdogError(value)
        if kind == "failed":
            raise _FailedError(f"has failed ({value})")
        return value


def _serve(connection: Connection, make: Make[Any, Any]) -> None:
    """What the child does: answer requests until the pipe is closed."""
    try:
        answer = make()
    except Exception as error:
        connection.send(("refused", _explain(error)))
        return
    connection.send(("ready", None))
    with contextlib.suppress(EOFError):
        while True:
            requests = connection.recv()
            try:
                connection.send(("answered", answer(requests)))
            except Exception as error:
                connection.send(("failed", _explain(error)))


def _explain(error: Exception) -> str:
    return str(error) if isinstance(error, ArcftError) else f"{type(error).__name__}: {error}"
