"""Child processes: what is sent to them, how their death is noticed, and what a kill takes along."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from arcft import processes
from arcft.processes import ChildDied, ChildProcess


def double(connection: Connection, offset: int) -> None:
    """Doubles numbers; a text says how to end."""
    while True:
        try:
            message = connection.recv()
        except EOFError:
            return
        if message == "exit":
            os._exit(7)
        if message == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if message == "abort":
            os.kill(os.getpid(), signal.SIGABRT)
        if message == "signals":
            for number in (signal.SIGINT, signal.SIGTERM):
                os.kill(os.getpid(), number)
            connection.send("alive")
        elif message == "stop in the middle":
            threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGSTOP)).start()
            connection.send(b"0" * 50_000_000)  # more than the pipe holds, and nobody reads yet
        elif message == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif message == "child":
            connection.send(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"]).pid)
        else:
            connection.send(2 * message + offset)


def is_running(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.mark.parametrize("own_group", [False, True])
def test_a_child_answers_and_is_killed(own_group: bool) -> None:
    child = ChildProcess(double, (1,), name="doubler", own_group=own_group)
    child.send(20)
    assert child.receive() == 41
    with pytest.raises(TimeoutError):
        child.receive(0.05)
    process = child._process.pid
    child.kill()
    assert not is_running(process)


@pytest.mark.parametrize(
    ("how", "cause"),
    [
        ("exit", "exit code 7"),
        ("abort", "SIGABRT"),
        ("kill", "SIGKILL; systems also end processes this way when memory runs out"),
    ],
)
def test_a_death_is_reported_with_its_cause(how: str, cause: str) -> None:
    child = ChildProcess(double, (0,), name="doubler")
    child.send(how)
    with pytest.raises(ChildDied) as caught:
        child.receive()
    assert str(caught.value) == cause
    # A message to the dead is no error; the next answer is.
    child.send(1)
    with pytest.raises(ChildDied):
        child.receive(1)
    child.kill()


def test_signals_of_the_group_are_for_the_parent() -> None:
    child = ChildProcess(double, (0,), name="doubler")
    child.send("signals")
    assert child.receive() == "alive"
    child.kill()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) & {signal.SIGINT, signal.SIGTERM} == set()


def test_a_child_with_its_own_group_takes_its_children_along() -> None:
    child = ChildProcess(double, (0,), name="doubler", own_group=True)
    child.send("child")
    grandchild = child.receive()
    assert is_running(grandchild)
    child.kill()
    deadline = time.monotonic() + 5
    while is_running(grandchild) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(grandchild)


def test_a_child_that_is_stopped_in_the_middle_of_a_message_counts_as_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "TRANSFER_SECONDS", 1.0)
    child = ChildProcess(double, (0,), name="doubler")
    child.send("stop in the middle")
    assert child.connection.poll(10)
    time.sleep(1)
    with pytest.raises(ChildDied, match=r"^it was silent for 1 s in the middle of a message$"):
        child.receive()
    child.kill()
    assert not is_running(child._process.pid)


def test_a_message_that_a_stopped_child_does_not_take_is_no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "TRANSFER_SECONDS", 1.0)
    child = ChildProcess(double, (0,), name="doubler")
    child.send(1)
    assert child.receive() == 2
    child.send("stop")
    time.sleep(0.5)
    start = time.monotonic()
    child.send(b"0" * 50_000_000)
    assert time.monotonic() - start < 5
    with pytest.raises(ChildDied, match=r"^it took no message for 1 s$"):
        child.receive()
    child.kill()
