"""What is printed: whole lines, no markup in what users named, and a copy for the log."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.table import Table

from arcft import console

LONG = Path("/runs") / ("a_very_long_folder_name_" * 6) / "lora[r=16] 3 :smile:"


@pytest.fixture
def job_log() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    console.log_to([logging.StreamHandler(stream)])
    yield stream
    console.log_to([])


def test_lines_are_printed_as_they_are(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    console.say(f"checkpoints in {LONG}")
    console.note(f"{LONG} has no checkpoint")
    console.say_path("report", LONG)
    assert capsys.readouterr() == (
        f"checkpoints in {LONG}\nnote: {LONG} has no checkpoint\nreport: {LONG}\n",
        "",
    )


def test_the_log_receives_what_the_terminal_shows(
    capsys: pytest.CaptureFixture[str], job_log: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    table = Table("metric", "value")
    table.add_row("vote_2", "12.5%")
    console.say("4 tasks to train on", "bold")
    console.note("no hub")
    console.say_path("report", LONG)
    console.show(table)
    lines = job_log.getvalue().splitlines()
    assert lines[:3] == ["4 tasks to train on", "note: no hub", f"report: {LONG}"]
    assert [word for word in ("metric", "vote_2", "12.5%") if word in job_log.getvalue()] == [
        "metric",
        "vote_2",
        "12.5%",
    ]
    assert "\x1b" not in job_log.getvalue()
    assert "vote_2" in capsys.readouterr().out


def test_without_a_log_nothing_is_drawn_twice(capsys: pytest.CaptureFixture[str]) -> None:
    calls = []
    console.log_to([])
    console.log.setLevel(logging.WARNING)
    console.print_with(lambda target: calls.append(target))
    assert calls == [console.console]


def test_the_log_does_not_print_again(capsys: pytest.CaptureFixture[str], job_log: io.StringIO) -> None:
    """The root logger of Hydra's jobs writes to the terminal too."""
    root = logging.getLogger()
    of_hydra = logging.StreamHandler(sys.stdout)
    root.addHandler(of_hydra)
    try:
        console.say("once")
    finally:
        root.removeHandler(of_hydra)
    assert capsys.readouterr().out == "once\n"
    assert job_log.getvalue() == "once\n"


# A half of a surrogate pair is in a test of its own: pytest-xdist can not send a log that holds one.
HOSTILE = "a\x1b[31mred\x07\x9b\u202e[/b]:smile:"
SHOWN = "a\\x1b[31mred\\x07\\x9b\\u202e[/b]:smile:"


def test_control_characters_never_reach_terminal_or_log(
    capsys: pytest.CaptureFixture[str], job_log: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    table = Table(HOSTILE, title=HOSTILE)
    table.add_row(HOSTILE)
    console.say(HOSTILE)
    console.note(HOSTILE)
    console.say_path("report", Path(HOSTILE))
    console.show(table)
    console.complain(HOSTILE)
    out, err = capsys.readouterr()
    assert out.count(SHOWN) == 6
    assert err == SHOWN + "\n"
    for text in (out, err, job_log.getvalue()):
        assert all(character.isprintable() or character == "\n" for character in text)


def test_the_log_escapes_what_others_write(job_log: io.StringIO) -> None:
    console.log.error("error: %s", HOSTILE)
    assert job_log.getvalue() == "error: " + SHOWN + "\n"
