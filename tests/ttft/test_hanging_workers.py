"""Workers that hang: real processes that are stopped or whose engine never returns, each waited for with a deadline."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import pytest

from arcft.ttft.scheduling import patience
from arcft.ttft.scheduling.budget import Budget
from arcft.ttft.units import ADAPT_ROUND, Event
from arcft.ttft.workers import pool
from arcft.ttft.workers.run import WorkerError, drain_in_processes
from tests.support.scripted_engine import Scripted, assert_all_gone, never, pids, scripted_queue, states


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Minutes become seconds; a process starts within six, on a busy machine too."""
    monkeypatch.setattr(pool, "SILENT_SECONDS", {"starting": 6.0, "idle": 3.0, "busy": 3.0})
    monkeypatch.setattr(pool, "STOP_SECONDS", 1.0)
    for name, seconds in (("LEAST", 4.0), ("UNKNOWN", 4.0), ("GRACE", 0.5), ("UNKNOWN_GRACE", 0.5), ("OVERRUN", 1.0)):
        monkeypatch.setattr(patience, f"{name}_SECONDS", seconds)


def drain(script: Scripted, count: int, names: list[str], *, stopped=never, budget: Budget | None = None):
    """Process units of these names; their ledger, and the seconds that it took."""
    queue, ledger = scripted_queue(script.folder, names, budget=budget)
    start = time.monotonic()
    drain_in_processes(script, count, queue, stopped=stopped, on_event=lambda event: None)
    assert_all_gone(script.folder)
    return ledger, time.monotonic() - start


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("stop-1", "process-0 died, its units are queued again: its process has not answered for 3 s"),
        (
            "hang-1",
            "process-0 died, its units are queued again: it has sent nothing for 4 s, more than its work can take",
        ),
    ],
)
def test_without_a_budget_a_worker_that_hangs_is_replaced(tmp_path: Path, name: str, reason: str) -> None:
    ledger, seconds = drain(Scripted(tmp_path), 1, [name, "a"])
    assert states(ledger) == {name: "done", "a": "done"}
    assert [note.text for note in ledger.notes()] == [reason]
    assert {record.name: record.starts for record in ledger.records(ADAPT_ROUND)} == {name: 2, "a": 1}
    assert len(pids(tmp_path)) == 2
    assert seconds < 20


def test_a_worker_that_is_stopped_while_it_starts_is_replaced(tmp_path: Path) -> None:
    ledger, _ = drain(Scripted(tmp_path, start="stopped"), 1, ["a"])
    assert states(ledger) == {"a": "done"}
    assert [note.text for note in ledger.notes()] == ["process-0 did not start: its process has not answered for 6 s"]


def test_a_model_that_is_never_loaded_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "START_SECONDS", 3.0)
    queue, ledger = scripted_queue(tmp_path, ["a"])
    with pytest.raises(WorkerError, match=r"^no worker could be started: it has not loaded its model in 3 s; "):
        drain_in_processes(Scripted(tmp_path, start="slow"), 1, queue, stopped=never, on_event=lambda event: None)
    assert_all_gone(tmp_path)
    assert states(ledger) == {"a": "queued"}


@pytest.mark.parametrize("names", [["stop-99", "stop-999"], ["hang-99", "hang-999"]], ids=["stopped", "hanging"])
def test_a_budget_ends_a_run_whose_workers_all_hang(tmp_path: Path, names: list[str]) -> None:
    ledger, seconds = drain(Scripted(tmp_path), 2, names, budget=Budget(8.0))
    assert seconds < 8 + 4
    assert set(states(ledger).values()) == {"queued"}


def test_a_unit_past_its_deadline_is_given_to_another_worker(tmp_path: Path) -> None:
    ledger, seconds = drain(Scripted(tmp_path), 1, ["hang-1"], budget=Budget(30.0))
    assert states(ledger) == {"hang-1": "done"}
    assert seconds < 30


@pytest.mark.parametrize("name", ["stop-1", "hang-1"])
def test_a_stop_does_not_wait_for_a_worker_that_hangs(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "SILENT_SECONDS", dict.fromkeys(pool.SILENT_SECONDS, 60.0))
    monkeypatch.setattr(patience, "UNKNOWN_SECONDS", 60.0)
    queue, ledger = scripted_queue(tmp_path, [name])
    asked: list[float] = []

    def stopped() -> bool:
        if not asked and (tmp_path / f"{name}.1").exists():
            asked.append(time.monotonic())
        return bool(asked)

    drain_in_processes(Scripted(tmp_path), 1, queue, stopped=stopped, on_event=lambda event: None)
    assert time.monotonic() - asked[0] < 15
    assert {(record.state, record.deaths) for record in ledger.records()} == {("queued", 0)}
    assert_all_gone(tmp_path)


def test_workers_are_not_blamed_for_a_driver_that_sleeps(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "_TICK_SECONDS", 0.6)
    queue, ledger = scripted_queue(tmp_path, ["a", "b"])
    asleep: list[Event] = []

    def on_event(event: Event) -> None:
        if not asleep:
            asleep.append(event)
            time.sleep(5)

    drain_in_processes(Scripted(tmp_path, pause=0.5), 2, queue, stopped=never, on_event=on_event)
    assert set(states(ledger).values()) == {"done"}
    assert [record for record in caplog.records if record.levelno == logging.WARNING] == []


def test_scattered_deaths_do_not_end_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "DEATHS_IN_A_ROW", 2)
    names = ["kill-1", "raise-1", "kill-01", "raise-01"]
    ledger, _ = drain(Scripted(tmp_path), 1, names)
    assert states(ledger) == dict.fromkeys(names, "done")
    assert len(ledger.notes()) == 4


def test_scattered_failures_to_start_cost_no_worker(tmp_path: Path) -> None:
    ledger, _ = drain(Scripted(tmp_path, start="flaky"), 1, ["kill-1", "a"])
    assert states(ledger) == {"kill-1": "done", "a": "done"}
    assert [note.text.partition(":")[0] for note in ledger.notes()] == [
        "process-0 did not start", "process-0 died, its units are queued again", "process-0 did not start",
    ]  # fmt: skip


def test_deaths_in_a_row_end_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "DEATHS_IN_A_ROW", 3)
    queue, ledger = scripted_queue(tmp_path, ["kill-99"])
    with pytest.raises(WorkerError, match=r"^3 workers died before one of them finished a unit; the last one: SIGKILL"):
        drain_in_processes(Scripted(tmp_path), 1, queue, stopped=never, on_event=lambda event: None)
    assert len(pids(tmp_path)) == 3
    assert states(ledger) == {"kill-99": "queued"}
