"""A process that freezes, dies or fails is started anew, and what it was asked is answered all the same."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from arcft.decoding.watchdog import MAX_STARTS, Watchdog, WatchdogError
from arcft.errors import ArcftError

SECONDS = 20.0
"""To start a Python process in, on a busy machine."""


def make(folder: Path, trouble: str, times: int) -> Callable[[list[int]], list[int]]:
    """What squares numbers, but for the first so many processes that are asked to square 3."""
    begun = len(list(folder.glob("process-*")))
    (folder / f"process-{begun}").write_text(str(os.getpid()), encoding="utf-8")
    if trouble == "refuses":
        raise ArcftError("there is no such model")
    if trouble == "freezes at once" and begun < times:
        time.sleep(1000)

    def answer(numbers: list[int]) -> list[int]:
        if 3 in numbers and begun < times:
            if trouble == "freezes":
                child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
                (folder / "child").write_text(str(child.pid), encoding="utf-8")
                time.sleep(1000)
            if trouble == "dies":
                os._exit(9)
            if trouble == "fails":
                raise RuntimeError("out of blocks")
        return [number * number for number in numbers]

    return answer


def watched(folder: Path, trouble: str, times: int, said: list[str], seconds: float = SECONDS) -> Watchdog[int, int]:
    return Watchdog(
        functools.partial(make, folder, trouble, times),
        name="the engine",
        key="inference.restart_seconds",
        seconds=seconds,
        say=said.append,
    )


def is_running(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def processes(folder: Path) -> list[int]:
    return [int(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("process-*"))]


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [("dies", "has died (exit code 9)"), ("fails", "has failed (RuntimeError: out of blocks)")],
)
def test_a_process_that_goes_wrong_is_followed_by_another(tmp_path: Path, trouble: str, reason: str) -> None:
    said: list[str] = []
    with watched(tmp_path, trouble, 1, said) as engine:
        assert engine.ask([1, 2]) == [1, 4]
        assert engine.ask([2, 3, 4]) == [4, 9, 16]
        assert engine.ask([3]) == [9]
        assert len(processes(tmp_path)) == 2
    assert said == [f"the engine {reason}; restarting it"]
    assert not any(map(is_running, processes(tmp_path)))


@pytest.mark.slow
@pytest.mark.parametrize("trouble", ["freezes", "freezes at once"])
def test_a_process_that_freezes_is_ended_with_those_that_it_has_started(tmp_path: Path, trouble: str) -> None:
    said: list[str] = []
    with watched(tmp_path, trouble, 1, said, seconds=10.0) as engine:
        assert engine.ask([2, 3]) == [4, 9]
        first, second = processes(tmp_path)
        assert not is_running(first)
        assert is_running(second)
        if trouble == "freezes":
            assert not is_running(int((tmp_path / "child").read_text(encoding="utf-8")))
    assert said == ["the engine has given no answer for 10 s (inference.restart_seconds); restarting it"]


def test_what_fails_again_and_again_is_given_up(tmp_path: Path) -> None:
    said: list[str] = []
    with watched(tmp_path, "dies", 99, said) as engine:
        assert engine.ask([2]) == [4]
        with pytest.raises(WatchdogError) as caught:
            engine.ask([3, 5])
        # What else is asked is answered.
        assert engine.ask([5]) == [25]
    assert str(caught.value) == (
        f"the engine has died (exit code 9), {MAX_STARTS} times with the same 2 prompts; if they need more time, raise "
        "inference.restart_seconds or lower inference.batch_size; earlier predictions are kept"
    )
    assert len(said) == MAX_STARTS


def test_what_can_not_be_started_is_an_error_at_once(tmp_path: Path) -> None:
    said: list[str] = []
    with watched(tmp_path, "refuses", 0, said) as engine, pytest.raises(WatchdogError) as caught:
        engine.ask([1])
    assert str(caught.value) == "there is no such model"
    assert said == []
    assert not any(map(is_running, processes(tmp_path)))
