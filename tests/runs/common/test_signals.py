"""SIGTERM and SIGINT, sent to processes of their own: what they print, and with which exit code they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.support.paths import ROOT

PROGRAM = """
import sys, time
from arcft.runs.common import signals
from arcft.runs.common.signals import end_on_signals, program, resumable, stop_on_signals, Stopped

signals.LAST_SECONDS = 1.0

def wait(seconds):
    print("waiting", flush=True)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.01)

with program():
    {body}
"""

BODIES = {
    "nothing to save": "wait(60)",
    "resumable": """
    try:
        with resumable("stopped; resume with: again"), stop_on_signals(print), end_on_signals():
            wait(60)
    except Stopped as stopped:
        print(stopped, stopped.exit_code, file=sys.stderr)
        sys.exit(stopped.exit_code)""",
    "swallowed": """
    try:
        wait(60)
    except BaseException:
        wait(60)""",
    "covered": """
    try:
        try:
            wait(60)
        finally:
            None.clean_up()
    except AttributeError as error:
        raise ValueError("made of another") from error""",
    "covered and resumable": """
    try:
        with resumable("stopped; resume with: again"), end_on_signals():
            try:
                wait(60)
            finally:
                None.clean_up()
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(stopped.exit_code)""",
    "at work": """
    with stop_on_signals(lambda reason: None) as received:
        wait(0.5)
        print("saved", *received, file=sys.stderr)
    sys.exit(3)""",
}


def signalled(body: str, *numbers: signal.Signals, **environment: str) -> tuple[int, str, float]:
    """Exit code and stderr of a program that gets a signal, and 0.2 seconds later the next; and the seconds it took."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(body=BODIES[body])],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    start = time.monotonic()
    for number in numbers:
        process.send_signal(number)
        time.sleep(0.2)
    _, err = process.communicate(timeout=20)
    return process.returncode, err, time.monotonic() - start


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_where_there_is_nothing_to_save_the_first_signal_ends_it(number: signal.Signals) -> None:
    code, err, seconds = signalled("nothing to save", number)
    assert (code, err) == (128 + number, f"{number.name}: stopped at once; what was saved is complete\n")
    assert seconds < 5


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_model_that_is_loaded_in_the_midst_of_a_run_does_not_hold_it(number: signal.Signals) -> None:
    code, err, _ = signalled("resumable", number)
    assert (code, err) == (128 + number, f"stopped; resume with: again {128 + number}\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_error_of_a_clean_up_does_not_cover_the_signal(number: signal.Signals) -> None:
    code, err, _ = signalled("covered", number)
    assert (code, err) == (128 + number, f"{number.name}: stopped at once; what was saved is complete\n")
    code, err, _ = signalled("covered and resumable", number)
    assert (code, err) == (128 + number, "stopped; resume with: again\n")


def test_code_that_swallows_the_exception_is_ended_all_the_same() -> None:
    code, err, seconds = signalled("swallowed", signal.SIGTERM)
    assert (code, err) == (143, "SIGTERM: stopped at once; what was saved is complete\n")
    assert 1 <= seconds < 6


def test_a_run_at_work_saves_first() -> None:
    code, err, _ = signalled("at work", signal.SIGTERM)
    asked = "\nSIGTERM: finishing the current step and saving; send it again to stop at once\n"
    assert (code, err) == (3, f"{asked}saved 15\n")


def test_a_second_signal_insists() -> None:
    code, err, _ = signalled("at work", signal.SIGINT, signal.SIGTERM)
    assert code == 143
    assert err.endswith("again to stop at once\nSIGTERM: stopped at once; what was saved is complete\n")
    assert "saved 2" not in err


def test_the_signal_that_torchrun_passes_on_to_a_rank_that_has_it_already_does_not_insist() -> None:
    code, err, _ = signalled("at work", signal.SIGTERM, signal.SIGTERM, WORLD_SIZE="2", RANK="0")
    assert code == 3
    assert err.endswith("again after 5 seconds to stop at once\nsaved 15\n")
