"""The ledger: what it holds after a kill, what it refuses, and that two processes never take the same unit."""

from __future__ import annotations

import dataclasses
import math
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from arcft.scoring.predictions import Prediction
from arcft.ttft.ledger import ledger as ledger_module
from arcft.ttft.ledger.checksums import TABLES
from arcft.ttft.ledger.ledger import DEATHS, Ledger, LedgerError, Record
from arcft.ttft.units import ADAPT_ROUND, BASELINE_ROUND, Failed, Finished, Started, Stepped
from tests.support.arc import ARC, grid_of
from tests.support.paths import SUPPORT
from tests.support.small_units import Clock, adapted, make_prediction, predicted

CONFIG = {"ttft": {"max_steps": 64, "slots": None}, "lora": {"target_modules": ("q", "v")}, "tasks": ["a", "b"]}
A, B = (ADAPT_ROUND, "a"), (ADAPT_ROUND, "b")
UNITS = [(ADAPT_ROUND, "a", ["a"], 120), (ADAPT_ROUND, "b", ["b"], 80)]


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    ledger = Ledger.create(tmp_path / "ledger.sqlite", ARC, CONFIG)
    ledger.fill(UNITS)
    return ledger


def take(ledger: Ledger, key: tuple[int, str], worker: str = "local", steps: int = 2) -> bool:
    return ledger.claim(key, worker, steps=steps, first_prediction=0, predictions=2, seed=7)


def another_process(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    """The ledger as a process finds it that begins after this one was killed."""
    monkeypatch.setattr(ledger_module, "_PROCESS", f"{ledger_module._PROCESS}-next")
    again = Ledger.open(ledger.path, ARC, CONFIG, clock=ledger._clock)
    again.recover()
    return again


def states(ledger: Ledger) -> dict[str, str]:
    return {record.name: record.state for record in ledger.records(ADAPT_ROUND)}


def test_a_unit_from_queued_to_done(tmp_path: Path) -> None:
    clock = Clock()
    ledger = Ledger.create(tmp_path / "ledger.sqlite", ARC, CONFIG, clock=clock)
    ledger.fill(UNITS)
    assert take(ledger, A)
    assert states(ledger) == {"a": "adapting", "b": "queued"}
    assert ledger.record(Started(key=A, recipe={"slots": 4}, notes=("one demonstration",)), "local")
    # Told again, e.g. by a later process that loads its adapter: what was said about it remains.
    assert ledger.record(Started(key=A, recipe={"slots": 2}, notes=("too long", "one demonstration")), "local")
    assert ledger.record(adapted(A, adapter="adapters/a"), "local")
    assert states(ledger) == {"a": "predicting", "b": "queued"}
    clock.now += 10
    assert ledger.record(predicted(A, "a", 0, (1, 2)), "local")
    assert ledger.record(Finished(key=A), "local")
    assert ledger.find(A) == Record(
        round=ADAPT_ROUND,
        name="a",
        task_ids=("a",),
        length=120,
        state="done",
        attempts=0,
        starts=1,
        deaths=0,
        reason=None,
        notes=("one demonstration", "too long"),
        planned_steps=2,
        first_prediction=0,
        num_predictions=2,
        seed=7,
        recipe={"slots": 2},
        worker="local",
        started_at=1000.0,
        finished_at=1010.0,
        steps=2,
        tokens=100,
        losses=(1.0, 0.25),
        adapt_seconds=0.5,
        ended="steps",
        predict_seconds=0.25,
        predict_tokens=30,
        adapter="adapters/a",
    )
    assert ledger.predictions() == [make_prediction("a", 0, 1), make_prediction("a", 0, 2)]


def test_every_field_of_a_prediction_comes_back(ledger: Ledger) -> None:
    take(ledger, A)
    full = Prediction(
        task_id="a",
        test_index=0,
        answer=None,
        text="0 1\n",
        logprob=-1.25,
        num_tokens=4,
        seconds=0.1,
        transform={"flip": True, "colors": [1, 0]},
        seed=3,
        error="cut off",
    )
    event = dataclasses.replace(predicted(A, "a"), predictions=(full,))
    assert ledger.record(event, "local")
    assert ledger.predictions() == [full]


def test_losses_that_are_no_numbers_are_kept(ledger: Ledger) -> None:
    take(ledger, A)
    ledger.record(dataclasses.replace(adapted(A), losses=(1.0, math.nan, math.inf)), "local")
    losses = ledger.find(A).losses
    assert losses[0] == 1.0
    assert math.isnan(losses[1])
    assert losses[2] == math.inf


def test_predictions_are_in_the_order_of_tasks_tests_rounds_and_prompts(tmp_path: Path) -> None:
    ledger = Ledger.create(tmp_path / "ledger.sqlite", ARC, CONFIG)
    ledger.fill(
        [
            (BASELINE_ROUND, "z", ["z"], 1),
            (BASELINE_ROUND, "a", ["a"], 1),
            (ADAPT_ROUND, "z", ["z"], 1),
            (ADAPT_ROUND, "a", ["a"], 1),
        ]
    )
    ledger.add((2, "z", ["z"], 1))
    for key in [(2, "z"), (ADAPT_ROUND, "a"), (BASELINE_ROUND, "z"), (ADAPT_ROUND, "z")]:
        ledger.claim(key, "local", steps=1, first_prediction=0, predictions=2, seed=0)
        for test_index in (1, 0):
            value = key[0] + 3 * test_index
            ledger.record(predicted(key, key[1], test_index, (value, value)), "local")
    order = [(each.task_id, each.test_index, int(grid_of(each)[0, 0])) for each in ledger.predictions()]
    z = [("z", 0, 0)] * 2 + [("z", 0, 1)] * 2 + [("z", 0, 2)] * 2 + [("z", 1, 3)] * 2 + [("z", 1, 4)] * 2
    assert order == [*z, ("z", 1, 5), ("z", 1, 5), ("a", 0, 1), ("a", 0, 1), ("a", 1, 4), ("a", 1, 4)]
    assert [int(grid_of(each)[0, 0]) for each in ledger.predictions(BASELINE_ROUND)] == [0, 0, 3, 3]
    assert {each.task_id for each in ledger.predictions(ADAPT_ROUND, "a")} == {"a"}
    current_predictions = [(each.task_id, int(grid_of(each)[0, 0])) for each in ledger.current_predictions()]
    assert ("z", 0) not in current_predictions
    assert current_predictions.count(("z", 2)) == 2


def test_predictions_before_adapting_count_for_tests_without_others(ledger: Ledger) -> None:
    ledger.add((BASELINE_ROUND, "a", ["a"], 120))
    for key, test_index in [((BASELINE_ROUND, "a"), 0), ((BASELINE_ROUND, "a"), 1), (A, 1)]:
        take(ledger, key)
        ledger.record(predicted(key, "a", test_index, (key[0] + 5,)), "local")
    assert [(each.test_index, int(grid_of(each)[0, 0])) for each in ledger.current_predictions()] == [(0, 5), (1, 6)]


def test_filling_twice_changes_nothing(ledger: Ledger) -> None:
    take(ledger, A)
    ledger.fill(UNITS)
    assert states(ledger) == {"a": "adapting", "b": "queued"}


def test_other_units_are_refused(ledger: Ledger) -> None:
    with pytest.raises(LedgerError, match=r"a holds the tasks a there, and a, c here; use the tasks"):
        ledger.fill([(ADAPT_ROUND, "a", ["a", "c"], 120), (ADAPT_ROUND, "b", ["b"], 80)])
    with pytest.raises(LedgerError, match=r"holds b in round 1, which is no part of this run"):
        ledger.fill([(ADAPT_ROUND, "a", ["a"], 120)])
    ledger.fill(UNITS)
    assert states(ledger) == {"a": "queued", "b": "queued"}


def test_another_config_is_refused_with_what_differs(ledger: Ledger) -> None:
    other = {"ttft": {"max_steps": 32, "slots": None}, "lora": {"target_modules": ["q"]}, "tasks": ["a", "b"], "x": 1}
    with pytest.raises(LedgerError) as caught:
        Ledger.create(ledger.path, ARC, other)
    assert str(caught.value) == (
        f"{ledger.path}: belongs to a run of another configuration: ttft.max_steps is 64 there and 32 here; "
        'lora.target_modules is ["q", "v"] there and ["q"] here; x is nothing there and 1 here. '
        "Use the values it was started with, or start a new run in another folder"
    )
    with pytest.raises(LedgerError, match=r"ttft\.max_steps is 64 there and 32 here"):
        Ledger.open(ledger.path, ARC, other)
    assert Ledger.open(ledger.path, ARC).config == Ledger.create(ledger.path, ARC, CONFIG).config
    assert Ledger.open(ledger.path, ARC).config["lora"] == {"target_modules": ["q", "v"]}


def test_long_differences_are_cut(ledger: Ledger) -> None:
    other = CONFIG | {"tasks": [f"task{number}" for number in range(100)], **{f"key{n}": n for n in range(20)}}
    with pytest.raises(LedgerError, match=r'tasks is \["a", "b"\] there and \["task0".*\.\.\. here.*; 13 more keys\.'):
        Ledger.open(ledger.path, ARC, other)


def test_what_is_no_ledger_is_refused(tmp_path: Path) -> None:
    missing = tmp_path / "missing.sqlite"
    with pytest.raises(LedgerError, match=r"missing\.sqlite: no ledger; is this the folder"):
        Ledger.open(missing, ARC, CONFIG)
    assert not missing.exists()
    text = tmp_path / "text.sqlite"
    text.write_text("predictions, in the order of tasks\n" * 100)
    with pytest.raises(LedgerError, match=r"file is not a database: this is not a ledger, or it is damaged"):
        Ledger.create(text, ARC, CONFIG)
    foreign = tmp_path / "foreign.sqlite"
    with sqlite3.connect(foreign) as connection:
        connection.execute("CREATE TABLE cookies (name TEXT)")
    content = foreign.read_bytes()
    with pytest.raises(LedgerError, match=r"belongs to another program and is not a ledger; choose another folder"):
        Ledger.create(foreign, ARC, CONFIG)
    assert foreign.read_bytes() == content
    later = tmp_path / "later.sqlite"
    Ledger.create(later, ARC, CONFIG).close()
    with sqlite3.connect(later) as connection:
        connection.execute("PRAGMA user_version = 9")
    with pytest.raises(LedgerError, match=r"is a ledger of format 9, and this version of arcft reads format 2"):
        Ledger.open(later, ARC, CONFIG)


def test_a_damaged_ledger_is_refused(ledger: Ledger) -> None:
    ledger.close()
    content = bytearray(ledger.path.read_bytes())
    content[100:] = b"\x07" * (len(content) - 100)
    ledger.path.write_bytes(content)
    with pytest.raises(LedgerError, match=r"this is not a ledger, or it is damaged; put back a copy of the folder"):
        Ledger.open(ledger.path, ARC, CONFIG)


OLD = SUPPORT / "version_0_1" / "ttft" / "ledger.sqlite"


def everything(path: Path) -> str:
    with Ledger.open(path, ARC) as ledger:
        return repr((ledger.config, ledger.records(), ledger.predictions(), ledger.notes(), ledger.elapsed_at(1e12)))


def test_a_ledger_of_version_0_1_gets_checksums_and_keeps_its_content(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(OLD.read_bytes())
    before = everything(path)
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (2,)
        for table in TABLES:
            assert connection.execute(f"SELECT count(*) FROM {table} WHERE checksum IS NULL").fetchone() == (0,)
    assert everything(path) == before


@pytest.mark.parametrize(
    ("change", "row"),
    [
        ("UPDATE config SET json = replace(json, '64', '65')", "config row 1"),
        ("UPDATE units SET losses = '[1.0,' WHERE name = 'a'", "units row 1"),
        ("UPDATE units SET attempts = 1 WHERE name = 'b'", "units row 2"),
        ("UPDATE predictions SET line = replace(line, '1', '2')", "predictions row 1"),
        ("UPDATE units SET length = 1", "units row 1, units row 2"),
        ("UPDATE tasks SET id = 'c' WHERE id = 'b'", "tasks row 2"),
        ("UPDATE sessions SET seen_at = seen_at + 1", "sessions row 1"),
        ("INSERT INTO notes (at, kind, text, data) VALUES (0, '', '', '{}')", "notes row 1"),
    ],
)
def test_a_row_that_was_not_written_by_us_is_named(ledger: Ledger, change: str, row: str) -> None:
    take(ledger, A)
    ledger.record(adapted(A), "local")
    ledger.record(predicted(A, "a", 0, (1, 2)), "local")
    ledger.close()
    with sqlite3.connect(ledger.path) as connection:
        connection.execute(change)
    with pytest.raises(LedgerError, match=rf"is damaged, or was changed by another program: {row}; put back a copy"):
        Ledger.open(ledger.path, ARC, CONFIG)


@pytest.mark.parametrize(
    ("change", "table"),
    [
        ("DELETE FROM config", "config (0 rows, not 1)"),
        ("DELETE FROM tasks WHERE id = 'b'", "tasks (1 rows, not 2)"),
        ("DELETE FROM units WHERE name = 'b'", "units (1 rows, not 2)"),
        ("DELETE FROM predictions WHERE number = 1", "predictions (1 rows, not 2)"),
        ("DELETE FROM sessions", "sessions (0 rows, not 1)"),
        ("DELETE FROM row_counts WHERE name = 'units'", "units (2 rows, not counted)"),
    ],
)
def test_a_row_that_was_removed_is_missed(ledger: Ledger, change: str, table: str) -> None:
    take(ledger, A)
    ledger.record(adapted(A), "local")
    ledger.record(predicted(A, "a", 0, (1, 2)), "local")
    # Made anew: what was removed in between is counted too.
    ledger.record(predicted(A, "a", 0, (2, 1)), "local")
    ledger.close()
    Ledger.open(ledger.path, ARC, CONFIG).close()
    with sqlite3.connect(ledger.path) as connection:
        connection.execute(change)
    told = re.escape(f"is damaged, or was changed by another program: {table}; put back a copy")
    with pytest.raises(LedgerError, match=told):
        Ledger.open(ledger.path, ARC, CONFIG)


def test_an_old_ledger_without_its_config_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(OLD.read_bytes())
    with sqlite3.connect(path) as connection:
        connection.execute("DELETE FROM config")
    with pytest.raises(LedgerError, match=r"changed by another program: config \(no row\); put back a copy"):
        Ledger.open(path, ARC)


def test_a_row_without_checksum_is_named_where_its_json_is_broken(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(OLD.read_bytes())
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE units SET recipe = '{' WHERE place = 3")
    with pytest.raises(LedgerError, match="changed by another program: units row 3; put back a copy"):
        Ledger.open(path, ARC)


def test_damage_anywhere_is_told_or_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(OLD.read_bytes())
    whole = everything(path)
    original = path.read_bytes()
    rng = random.Random(0)
    told = 0
    for _ in range(400):
        damaged = bytearray(original)
        place = rng.randrange(len(damaged))
        if rng.random() < 0.2:
            del damaged[max(place, 1) :]
        else:
            damaged[place] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            assert everything(path) == whole
        except LedgerError:
            told += 1
        for name in ("ledger.sqlite-wal", "ledger.sqlite-shm"):
            (tmp_path / name).unlink(missing_ok=True)
    assert told > 50


def test_an_empty_file_is_begun(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    path.touch()
    with pytest.raises(LedgerError, match=r"is empty, because its run was stopped before it started"):
        Ledger.open(path, ARC)
    with Ledger.open(path, ARC, CONFIG) as ledger:
        ledger.fill(UNITS)
    with Ledger.create(path, ARC, CONFIG) as ledger:
        assert states(ledger) == {"a": "queued", "b": "queued"}


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match=r"unable to open database file: the folder must exist and be writable"):
        Ledger.create(tmp_path / "none" / "ledger.sqlite", ARC, CONFIG)


def test_a_read_only_folder(tmp_path: Path) -> None:
    # Tests may run as root, whom permissions don't stop; /proc takes files from nobody.
    with pytest.raises(LedgerError, match=r"the folder must exist and be writable"):
        Ledger.create("/proc/ledger.sqlite", ARC, CONFIG)
    ledger = Ledger.create(tmp_path / "ledger.sqlite", ARC, CONFIG)
    ledger.fill(UNITS)
    # The same error as where the disk was mounted anew as read-only.
    ledger._connection.execute("PRAGMA query_only = 1")
    with pytest.raises(LedgerError, match=r"attempt to write a readonly database: the folder must exist and be"):
        ledger.note("lowered", "fewer slots")


def test_a_full_disk_loses_nothing_that_was_written(ledger: Ledger) -> None:
    take(ledger, A)
    pages = ledger._connection.execute("PRAGMA page_count").fetchone()[0]
    ledger._connection.execute(f"PRAGMA max_page_count = {pages}")
    long = dataclasses.replace(predicted(A, "a"), predictions=(make_prediction("a", text="0 " * 50_000),))
    with pytest.raises(LedgerError) as caught:
        ledger.record(long, "local")
    assert str(caught.value) == (
        f"{ledger.path}: database or disk is full: free some space, and resume the run; what was written before is kept"
    )
    assert states(ledger) == {"a": "adapting", "b": "queued"}
    assert ledger.predictions() == []
    ledger._connection.execute("PRAGMA max_page_count = 1000000")
    assert ledger.record(long, "local")
    assert len(ledger.predictions()) == 1


def test_only_who_has_a_unit_in_hand_can_report_about_it(ledger: Ledger) -> None:
    assert not ledger.record(adapted(A), "local")
    take(ledger, A, "worker-0")
    assert not take(ledger, A, "worker-1")
    assert not ledger.record(adapted(A), "worker-1")
    assert ledger.find(A).state == "adapting"
    ledger.requeue("worker-0", died=True)
    assert not ledger.record(Finished(key=A), "worker-0")
    assert ledger.find(A).state == "queued"


def test_a_failed_unit_is_queued_again_without_its_adapter_or_has_failed(ledger: Ledger) -> None:
    take(ledger, A)
    ledger.record(adapted(A, adapter="adapters/a"), "local")
    ledger.record(Failed(key=A, reason="no numbers", retry=True), "local", again=True)
    record = ledger.find(A)
    assert (record.state, record.attempts, record.reason, record.adapter) == ("queued", 1, "no numbers", None)
    take(ledger, A)
    ledger.record(Failed(key=A, reason="no numbers again", retry=True), "local")
    record = ledger.find(A)
    assert (record.state, record.attempts, record.reason, record.starts) == ("failed", 2, "no numbers again", 2)
    assert not take(ledger, A)


def test_what_a_dead_process_had_in_hand_is_queued_again(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    take(ledger, A)
    take(ledger, B)
    ledger.record(adapted(B, adapter="adapters/b"), "local")
    ledger.record(predicted(B, "b"), "local")
    again = another_process(ledger, monkeypatch)
    a, b = again.find(A), again.find(B)
    assert (a.state, a.deaths, a.worker, a.starts) == ("queued", 1, None, 1)
    assert (b.state, b.deaths, b.adapter) == ("queued", 1, "adapters/b")
    assert again.predicted(B) == {("b", 0)}
    assert not ledger.record(Finished(key=B), "local")
    assert take(again, B)
    assert again.find(B).state == "predicting"


def test_adapting_anew_forgets_what_the_earlier_adapter_predicted(ledger: Ledger) -> None:
    take(ledger, A)
    ledger.record(adapted(A), "local")
    ledger.record(predicted(A, "a"), "local")
    ledger.requeue("local", died=False)
    assert ledger.predicted(A) == {("a", 0)}
    take(ledger, A)
    ledger.record(adapted(A), "local")
    assert ledger.predicted(A) == frozenset()
    assert ledger.find(A).predict_seconds == 0


def test_predicting_a_test_anew_replaces_its_predictions(ledger: Ledger) -> None:
    take(ledger, A, steps=0)
    for values in [(1, 2), (3,)]:
        ledger.record(predicted(A, "a", 0, values), "local")
    assert ledger.predictions() == [make_prediction("a", 0, 3)]


def test_a_unit_that_kills_its_processes_fails(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    for death in range(1, 2 * DEATHS + 1):
        assert take(ledger, A)
        ledger = another_process(ledger, monkeypatch)
        record = ledger.find(A)
        assert record.attempts == death // DEATHS
    assert record.state == "failed"
    assert record.reason == "the process died 5 times while it worked on this (killed for its memory?)"
    assert states(ledger) == {"a": "failed", "b": "queued"}


def test_a_stop_is_no_death(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(DEATHS + 1):
        take(ledger, A)
        ledger.stopping()
        ledger = another_process(ledger, monkeypatch)
    assert (ledger.find(A).state, ledger.find(A).deaths, ledger.find(A).attempts) == ("queued", 0, 0)


def test_finishing_forgets_deaths(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    take(ledger, A)
    ledger = another_process(ledger, monkeypatch)
    take(ledger, A)
    ledger.record(Finished(key=A), "local")
    assert (ledger.find(A).state, ledger.find(A).deaths) == ("done", 0)


def test_elapsed_adds_up_the_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    ledger = Ledger.create(tmp_path / "ledger.sqlite", ARC, CONFIG, clock=clock)
    assert ledger.elapsed() == 0
    clock.now += 10
    ledger.close()
    ledger = Ledger.create(tmp_path / "ledger.sqlite", ARC, CONFIG, clock=clock)
    assert ledger.elapsed() == 10
    clock.now += 20
    ledger.heartbeat()
    clock.now += 5
    assert ledger.elapsed() == 35
    # Killed; what was after the last write is not known. The next one begins an hour later.
    clock.now += 3600
    ledger = another_process(ledger, monkeypatch)
    assert ledger.elapsed() == 30
    clock.now += 7
    assert ledger.elapsed() == 37
    ledger.heartbeat()
    # What lies between two processes is no work.
    moments = {1000: 0, 1012: 12, 1030: 30, 2000: 30, 4635: 30, 4640: 35, 4642: 37, 9999: 37}
    assert {moment: ledger.elapsed_at(moment) for moment in moments} == moments
    # Who only reads is no part of the run.
    monkeypatch.setattr(ledger_module, "_PROCESS", "reader")
    assert Ledger.open(ledger.path, ARC, clock=clock).elapsed() == 37
    clock.now -= 10_000
    assert ledger.elapsed() >= 0


def test_notes_keep_their_order(ledger: Ledger) -> None:
    ledger.note("recipe", "slots=auto chose 4", {"recipe": {"slots": 4}})
    ledger.note("recipe", "out of memory: slots 4 -> 2")
    notes = ledger.notes()
    assert [(note.kind, note.text) for note in notes] == [
        ("recipe", "slots=auto chose 4"),
        ("recipe", "out of memory: slots 4 -> 2"),
    ]
    assert notes[0].data == {"recipe": {"slots": 4}}
    assert notes[1].data == {}


def test_threads_share_a_ledger(ledger: Ledger) -> None:
    taken: list[str] = []

    def work(worker: str) -> None:
        taken.extend(worker for key in (A, B) if take(ledger, key, worker))

    threads = [threading.Thread(target=work, args=(f"thread-{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 2


def test_events_that_are_not_kept_change_nothing(ledger: Ledger) -> None:
    take(ledger, A)
    before = ledger.find(A)
    ledger.record(Stepped(key=A, step=1, steps=2, loss=1.0, tokens=10, seconds=0.1), "local")
    assert ledger.find(A) == before


CLAIMER = """
import sys
from arcft.problems.arc.kind import ArcKind
from arcft.ttft.ledger.ledger import Ledger
with Ledger.open(sys.argv[1], ArcKind()) as ledger:
    print("ready", flush=True)
    sys.stdin.readline()
    for number in range(40):
        key = (1, f"unit-{number}")
        if ledger.claim(key, sys.argv[2], steps=1, first_prediction=0, predictions=1, seed=0):
            print(key[1], flush=True)
"""


def test_two_processes_never_take_the_same_unit(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with Ledger.create(path, ARC, CONFIG) as ledger:
        ledger.fill([(ADAPT_ROUND, f"unit-{number}", [f"unit-{number}"], 10) for number in range(40)])
        workers = [
            subprocess.Popen(
                [sys.executable, "-c", CLAIMER, str(path), f"worker-{number}"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for number in range(3)
        ]
        for worker in workers:
            assert worker.stdout.readline() == "ready\n"
        for worker in workers:
            worker.stdin.write("go\n")
            worker.stdin.flush()
        outputs = []
        for worker in workers:
            outputs.append(worker.communicate(timeout=60)[0].split())
        assert sorted(name for names in outputs for name in names) == sorted(f"unit-{number}" for number in range(40))
        owners = {record.name: record.worker for record in ledger.records()}
    for number, names in enumerate(outputs):
        assert all(owners[name] == f"worker-{number}" for name in names)


WRITER = """
import sys
from arcft.problems.arc.kind import ArcKind
from arcft.ttft.ledger.ledger import Ledger
from arcft.ttft.units import Finished, ADAPT_ROUND
from tests.support.small_units import adapted, predicted
with Ledger.create(sys.argv[1], ArcKind(), {"x": 1}) as ledger:
    ledger.fill([(ADAPT_ROUND, f"unit-{n}", [f"unit-{n}"], 10) for n in range(2000)])
    ledger.recover()
    for record in ledger.records():
        if record.state != "queued":
            continue
        ledger.claim(record.key, "local", steps=2, first_prediction=0, predictions=8, seed=0)
        ledger.record(adapted(record.key), "local")
        ledger.record(predicted(record.key, record.name, 0, range(8)), "local")
        ledger.record(Finished(key=record.key), "local")
        print(record.name, flush=True)
"""


def test_a_kill_at_any_moment_loses_nothing_that_was_reported(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    reported: list[str] = []
    for lines in (0, 1, 3, 7):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(lines):
            reported.append(writer.stdout.readline().strip())
        os.kill(writer.pid, signal.SIGKILL)
        reported += writer.communicate()[0].split()
    with Ledger.open(path, ARC, {"x": 1}) as ledger:
        ledger.recover()
        records = ledger.records()
        done = [record for record in records if record.state == "done"]
        assert len(reported) == len(set(reported)) >= 11
        # The last ones may have been written and not yet reported.
        assert set(reported) <= {record.name for record in done}
        assert len(done) - len(reported) <= 3
        assert all(len(ledger.predictions(task_id=record.name)) == 8 for record in done)
        # A kill loses no more than the unit in hand.
        assert sum(record.starts for record in records) - len(done) <= 4
        assert {record.state for record in records} == {"done", "queued"}
        assert ledger._connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
