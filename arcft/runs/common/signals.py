"""SIGTERM and SIGINT: the first asks a run to save and stop, the second ends it at once."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType


class Stopped(Exception):  # noqa: N818 - not an error
    """A signal asked the run to stop, and it stopped in good order; the message says how to resume."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number
        self.exit_code = 128 + number


@contextlib.contextmanager
def stop_on_signals(ask: Callable[[str], None]) -> Iterator[list[int]]:
    """Turn the first SIGTERM or SIGINT into `ask(reason)`; a second one raises KeyboardInterrupt.

    Yields the list of received signals, empty at first. The run should finish its step, save, and raise Stopped.
    """
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)
        name = signal.Signals(number).name
        print(f"\n{name}: finishing the current step and saving; send it again to stop at once", file=sys.stderr)
        ask(name)

    previous = {}
    # Only the main thread may set handlers; a launcher that runs jobs in threads keeps its own.
    if threading.current_thread() is threading.main_thread():
        previous = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
