"""SIGTERM and SIGINT: a run that works saves and stops at the first, and ends at once at the second; everything else,
such as loading a model, ends at once at the first. Imports nothing that takes time, because it comes first."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

from arcft import ranks
from arcft.names import visible

LAST_SECONDS = 10.0
"""A process that has been told to end at once, and is still there after this time, is ended without cleaning up: it
hangs in a library, or code that it runs has swallowed the exception."""

ECHO_SECONDS = 5.0
"""A rank's second signal within this time is an echo: Slurm signals all processes of a job, torchrun among them, which
passes the signal on to its ranks."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(Exception):  # noqa: N818 - not an error
    """A signal asked the run to stop, and it stopped in good order; the message says how to resume."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number
        self.exit_code = 128 + number


class Interrupted(KeyboardInterrupt):
    """A signal asked the process to end at once."""

    def __init__(self, number: int) -> None:
        super().__init__(f"{signal.Signals(number).name}: stopped at once; what was saved is complete")
        self.number = number


@contextlib.contextmanager
def program() -> Iterator[None]:
    """The outermost context of a program: the first SIGTERM or SIGINT ends it with a message and its exit code."""
    try:
        with end_on_signals(), uncovered():
            yield
    except Interrupted as interrupted:
        sys.stdout.flush()
        print(visible(str(interrupted)), file=sys.stderr)
        sys.exit(128 + interrupted.number)


@contextlib.contextmanager
def closed_pipe_ends_quietly() -> Iterator[None]:
    """A program whose reader has gone, as in `--help | head`, ends with the exit code that SIGPIPE would give it."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes both once more when it ends.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            os.dup2(nowhere, stream.fileno())
        sys.exit(128 + signal.SIGPIPE)


@contextlib.contextmanager
def end_on_signals() -> Iterator[None]:
    """A part of a run that has nothing to save: the first SIGTERM or SIGINT raises Interrupted."""
    with _handler(_end_at_once):
        yield


@contextlib.contextmanager
def resumable(message: str) -> Iterator[None]:
    """Raise Stopped with `message`, which says how to resume, in place of Interrupted."""
    try:
        with uncovered():
            yield
    except Interrupted as interrupted:
        raise Stopped(interrupted.number, message) from None


@contextlib.contextmanager
def stop_on_signals(ask: Callable[[str], None]) -> Iterator[list[int]]:
    """Turn the first SIGTERM or SIGINT into `ask(reason)`; a second one raises Interrupted.

    Yields the list of received signals, empty at first. The run should finish its step, save, and raise Stopped.
    """
    received: list[int] = []
    first = 0.0

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if received:
            if ranks.launched() > 1 and time.monotonic() - first < ECHO_SECONDS:
                return
            _end_at_once(number, frame)
        first = time.monotonic()
        received.append(number)
        name = signal.Signals(number).name
        again = "again" if ranks.launched() == 1 else f"again after {ECHO_SECONDS:.0f} seconds"
        print(f"\n{name}: finishing the current step and saving; send it {again} to stop at once", file=sys.stderr)
        ask(name)

    with _handler(handle):
        yield received


@contextlib.contextmanager
def _handler(handle: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle both signals by `handle` in this context.

    Only the main thread may set handlers; a launcher that runs jobs in threads keeps its own.
    """
    previous = {}
    if threading.current_thread() is threading.main_thread():
        previous = {number: signal.signal(number, handle) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def uncovered() -> Iterator[None]:
    """Raise Interrupted again where a library's clean-up failed on what the interruption left half-done, and raised an
    error of its own instead."""
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, Stopped):
            if isinstance(cause, Interrupted):
                raise cause from None
            cause = cause.__context__
        raise


def _end_at_once(number: int, frame: FrameType | None) -> None:
    interrupted = Interrupted(number)
    last = threading.Timer(LAST_SECONDS, _end_without_cleaning_up, (interrupted,))
    last.daemon = True
    last.start()
    raise interrupted


def _end_without_cleaning_up(interrupted: Interrupted) -> None:
    print(visible(str(interrupted)), file=sys.stderr, flush=True)
    os._exit(128 + interrupted.number)
