"""Workers: what each gets, what they say to each other, and what happens when one of them dies or is stopped."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from pathlib import Path

import pytest

from arcft.config.ttft import PerTaskConfig
from arcft.ttft.ledger.ledger import Ledger
from arcft.ttft.scheduling.budget import Budget
from arcft.ttft.scheduling.queue import Queue
from arcft.ttft.units import ADAPT_ROUND, Assignment, Event, Failed, Finished, Started, Unit
from arcft.ttft.workers import run as workers_module
from arcft.ttft.workers.engine_host import Ask, Broken, WorkerEngine
from arcft.ttft.workers.resources import Node, WorkerResources, share
from arcft.ttft.workers.run import WorkerError, drain, drain_in_processes
from tests.support.scripted_engine import Scripted, assert_all_gone, never, pids, scripted_queue, states


@pytest.mark.parametrize(
    ("nodes", "count", "expected"),
    [
        ([Node(16, 0)], None, WorkerResources(4, 4, 0.0)),
        ([Node(2, 0)], None, WorkerResources(1, 2, 0.0)),
        ([Node(2, 0)], 2, WorkerResources(2, 1, 0.0)),
        ([Node(2, 0)], 3, WorkerResources(3, 0, 0.0)),  # more than cores: none is reserved
        ([Node(16, 8)], None, WorkerResources(8, 2, 1.0)),
        ([Node(16, 8)], 2, WorkerResources(2, 8, 1.0)),
        ([Node(16, 1)], 3, WorkerResources(3, 5, 0.3333)),  # three share a GPU
        ([Node(16, 2)], 3, WorkerResources(3, 5, 0.5)),  # two on one of them
        ([Node(4, 0), Node(4, 0)], 3, WorkerResources(3, 2, 0.0)),
        ([Node(3, 0), Node(3, 0)], 3, WorkerResources(3, 1, 0.0)),  # two cores each would place two of them
        ([Node(64, 0), Node(8, 1), Node(8, 1)], 2, WorkerResources(2, 8, 1.0)),  # cores without a GPU do not count
        ([], 1, WorkerResources(1, 0, 0.0)),
    ],
)
def test_what_each_worker_gets(nodes: list[Node], count: int | None, expected: WorkerResources) -> None:
    assert share(nodes, count) == expected


def test_default_count_of_each_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers_module, "_devices", lambda: ["0", "1", "2"])
    counts = {
        (kind, number): workers_module.default_count(ttft_config(workers=kind, num_workers=number))
        for kind in ("local", "processes", "ray")
        for number in (None, 5)
        if (kind, number) != ("local", 5)
    }
    assert counts == {
        ("local", None): 1,
        ("processes", None): 3,
        ("processes", 5): 5,
        ("ray", None): None,
        ("ray", 5): 5,
    }


def ttft_config(**changes) -> PerTaskConfig:
    settings = {
        "max_steps": 4,
        "batch_size": 1,
        "scheduler": "linear",
        "warmup_ratio": 0.0,
        "max_grad_norm": 1.0,
        "start": "trained",
        "seed": 0,
        "predict_before": 0,
        "workers": "local",
        "keep_adapters": False,
    }
    return PerTaskConfig(**(settings | changes))


# What lives in a worker, in this process.


def begun(factory: Scripted) -> WorkerEngine:
    worker = WorkerEngine({})
    worker.begin(lambda: factory)
    return worker


def heard(worker: WorkerEngine, answers: list[Assignment | None], *, stop: bool = False) -> list:
    """The messages up to the next question."""
    messages = worker.exchange(answers, stop)
    while not messages or not isinstance(messages[-1], Ask | Broken):
        messages += worker.exchange([], stop)
    return messages


def assignment(name: str) -> Assignment:
    unit = Unit(name=name, problems=(), length=1)
    return Assignment(unit=unit, round=ADAPT_ROUND, steps=1, first_prediction=0, predictions=1, seed=0)


def test_a_body_asks_tells_and_waits_for_more_with_the_same_engine(tmp_path: Path) -> None:
    worker = begun(Scripted(tmp_path))
    assert heard(worker, []) == [Ask(None, idle=True)]
    assert worker.exchange([], False) == []
    messages = heard(worker, [assignment("a")])
    assert [type(message) for message in messages] == [Started, Finished, Ask]
    assert messages[-1] == Ask(None, idle=False)
    assert [message.key for message in heard(worker, [assignment("b")])[:-1]] == [(ADAPT_ROUND, "b")] * 2
    assert heard(worker, [None]) == [Ask(None, idle=True)]
    assert [message.key for message in heard(worker, [assignment("c")])[:-1]] == [(ADAPT_ROUND, "c")] * 2
    assert len(list(tmp_path.glob("pid-*"))) == 1


def test_a_body_stops_its_engine_within_a_moment(tmp_path: Path) -> None:
    worker = begun(Scripted(tmp_path, pause=60))
    heard(worker, [])
    messages = worker.exchange([assignment("a")], False)
    start = time.monotonic()
    assert [type(message) for message in messages + heard(worker, [], stop=True)] == [Started, Ask]
    assert time.monotonic() - start < 2


@pytest.mark.parametrize(
    ("start", "reason", "users"),
    [("refused", "model.path=/nowhere: there is no such model", True), ("bug", "KeyError: 'weights'", False)],
)
def test_a_body_tells_why_there_is_no_engine(tmp_path: Path, start: str, reason: str, users: bool) -> None:
    [broken] = heard(begun(Scripted(tmp_path, start=start)), [])
    assert (broken.reason, broken.users) == (reason, users)
    assert "scripted_engine.py" in broken.traceback


# One process.


def test_drain_records_every_event_before_the_next_question(tmp_path: Path) -> None:
    queue, ledger = scripted_queue(tmp_path, ["a", "b", "fail-1", "fail-9"], predict_before=1)
    seen: list[Event] = []
    drain(Scripted(tmp_path)(), queue, stopped=never, on_event=seen.append)
    assert states(ledger) == {"a": "done", "b": "done", "fail-1": "done", "fail-9": "failed"}
    assert queue.done
    assert Counter(type(event) for event in seen if event.key == (ADAPT_ROUND, "fail-9")) == {Started: 2, Failed: 2}


def test_drain_stops_in_the_midst_of_a_unit(tmp_path: Path) -> None:
    queue, ledger = scripted_queue(tmp_path, ["a", "b"])
    seen: list[Event] = []
    drain(Scripted(tmp_path, pause=60)(), queue, stopped=lambda: bool(seen), on_event=seen.append)
    assert [type(event) for event in seen] == [Started]
    assert_queued_again(queue, ledger)


def assert_queued_again(queue: Queue, ledger: Ledger) -> None:
    assert not queue.done
    assert {(record.state, record.deaths) for record in ledger.records()} == {("queued", 0)}


# Processes.


def test_processes_share_the_units_and_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(workers_module, "_devices", lambda: ["4", "6"])
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(7))
    names = [f"u{number}" for number in range(12)]
    queue, ledger = scripted_queue(tmp_path, names)
    seen: list[Event] = []
    drain_in_processes(Scripted(tmp_path, pause=0.2), 2, queue, stopped=never, on_event=seen.append)
    assert states(ledger) == dict.fromkeys(names, "done")
    assert Counter(event.key[1] for event in seen if isinstance(event, Finished)) == dict.fromkeys(names, 1)
    given = {tuple(record.recipe.values()) for record in ledger.records(ADAPT_ROUND)}
    assert {values[1:] for values in given} == {("3", "PASSIVE", "4"), ("3", "PASSIVE", "6")}
    assert {values[0] for values in given} == pids(tmp_path)
    assert len(pids(tmp_path)) == 2
    assert_all_gone(tmp_path)


def test_a_budget_counts_with_the_workers_that_there_are(tmp_path: Path) -> None:
    # How many a Ray cluster has room for is not known before it is joined.
    budget = Budget(600.0, workers=1)
    queue, ledger = scripted_queue(tmp_path, ["a", "b"], budget=budget)
    drain_in_processes(Scripted(tmp_path), 2, queue, stopped=never, on_event=lambda event: None)
    assert budget.workers == 2
    assert states(ledger) == {"a": "done", "b": "done"}


def test_the_users_number_of_threads_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    queue, ledger = scripted_queue(tmp_path, ["a"])
    drain_in_processes(Scripted(tmp_path), 1, queue, stopped=never, on_event=lambda event: None)
    assert [record.recipe["OMP_NUM_THREADS"] for record in ledger.records(ADAPT_ROUND)] == ["1"]


def test_a_killed_process_gives_its_unit_back_and_is_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    queue, ledger = scripted_queue(tmp_path, ["a", "kill-2", "b", "raise-1"])
    drain_in_processes(Scripted(tmp_path), 1, queue, stopped=never, on_event=lambda event: None)
    assert states(ledger) == dict.fromkeys(["a", "kill-2", "b", "raise-1"], "done")
    starts = {record.name: record.starts for record in ledger.records(ADAPT_ROUND)}
    assert starts == {"a": 1, "kill-2": 3, "b": 1, "raise-1": 2}
    deaths = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert sorted(deaths) == [
        "process-0 died, its units are queued again: SIGKILL; systems also end processes this way when memory runs out"
    ] * 2 + ["process-0 died, its units are queued again: ValueError: a bug in the engine"]
    assert sorted((note.kind, note.text) for note in ledger.notes()) == [("worker", text) for text in sorted(deaths)]
    assert len(pids(tmp_path)) == 4
    assert_all_gone(tmp_path)


def test_an_idle_process_takes_over_from_one_that_dies(tmp_path: Path) -> None:
    queue, ledger = scripted_queue(tmp_path, ["kill-1", "a"])
    drain_in_processes(Scripted(tmp_path, pause=1.0), 2, queue, stopped=never, on_event=lambda event: None)
    assert states(ledger) == {"kill-1": "done", "a": "done"}


def test_a_unit_that_always_kills_ends_as_failed(tmp_path: Path) -> None:
    queue, ledger = scripted_queue(tmp_path, ["kill-99", "a"], predict_before=1)
    drain_in_processes(Scripted(tmp_path), 2, queue, stopped=never, on_event=lambda event: None)
    assert states(ledger) == {"kill-99": "failed", "a": "done"}


@pytest.mark.parametrize(
    ("start", "names", "message"),
    [
        ("refused", ["a"], r"^model\.path=/nowhere: there is no such model$"),
        ("well", ["refuse-1"], r"^ttft\.slots=4: experts can't be stacked; use ttft\.slots=1$"),
        ("killed", ["a"], r"^no worker could be started: SIGKILL; .*use ttft\.workers=local$"),
        ("bug", ["a"], r"^no worker could be started: KeyError: 'weights'; .*use ttft\.workers=local$"),
    ],
)
def test_what_no_process_can_do_is_one_error(tmp_path: Path, start: str, names: list[str], message: str) -> None:
    queue, _ = scripted_queue(tmp_path, names)
    with pytest.raises(WorkerError, match=message):
        drain_in_processes(Scripted(tmp_path, start=start), 2, queue, stopped=never, on_event=lambda event: None)
    assert_all_gone(tmp_path)
    assert len(pids(tmp_path)) <= 4


def test_stopped_processes_end_in_good_order(tmp_path: Path) -> None:
    queue, ledger = scripted_queue(tmp_path, ["a", "b", "c"])
    seen: list[Event] = []
    start = time.monotonic()
    drain_in_processes(Scripted(tmp_path, pause=60), 2, queue, stopped=lambda: len(seen) == 2, on_event=seen.append)
    assert time.monotonic() - start < 40
    assert_queued_again(queue, ledger)
    assert_all_gone(tmp_path)


def test_nothing_is_started_for_an_empty_queue(tmp_path: Path) -> None:
    queue, _ = scripted_queue(tmp_path, [])
    drain_in_processes(Scripted(tmp_path), 2, queue, stopped=never, on_event=lambda event: None)
    assert pids(tmp_path) == set()
