"""The state of every unit of a run, written to disk before anything else happens.

SQLite with a write-ahead log: transactions are atomic, whenever the process is killed.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from arcft.protocols import AnswerCodec, TestKey
from arcft.scoring.predictions import Prediction, prediction_from_json
from arcft.ttft.ledger.file import LedgerError, connect, explained
from arcft.ttft.ledger.records import Note, Record, UnitRow, read_record
from arcft.ttft.units import ADAPT_ROUND, BASELINE_ROUND, Adapted, Event, Failed, Finished, Key, Predicted, Started

__all__ = ["Ledger", "LedgerError", "Note", "Record", "UnitRow"]

MAX_ATTEMPTS = 2
"""Attempts per unit: a failed unit is retried once, with reduced settings."""

DEATHS = 5
"""Deaths of processes working on a unit that count as a failure of the unit: a unit that needs more memory than there
is kills every process that tries it. On preemptible machines, fewer deaths can be a coincidence."""

# Identifies the writing process, also if it closes and reopens its ledger.
_PROCESS = uuid.uuid4().hex


class Ledger:
    """The ledger file of a run. The process that holds the run's lock has one Ledger, which threads may share."""

    def __init__(
        self,
        path: Path | str,
        answers: AnswerCodec,
        config: Mapping[str, Any] | None,
        clock: Callable[[], float],
        new: bool,
    ) -> None:
        """Use `create` or `open`."""
        self.path = Path(path)
        self._answers = answers
        self._clock = clock
        self._opened_at = clock()
        self._lock = threading.RLock()
        self._connection, self.config = connect(self.path, config, new=new)
        self._session: int | None = None

    @classmethod
    def create(
        cls,
        path: Path | str,
        answers: AnswerCodec,
        config: Mapping[str, Any],
        *,
        clock: Callable[[], float] = time.time,
    ) -> Ledger:
        """Create a ledger, or open the existing one.

        `config`: nested plain data, everything that determines the results; `answers` reads and writes answers. Raises
        LedgerError if the existing ledger belongs to another config (the message names the differing keys), if the file
        is not a ledger, or if it can't be written.
        """
        ledger = cls(path, answers, config, clock, True)
        # Elapsed time counts from here.
        ledger.heartbeat()
        return ledger

    @classmethod
    def open(
        cls,
        path: Path | str,
        answers: AnswerCodec,
        config: Mapping[str, Any] | None = None,
        *,
        clock: Callable[[], float] = time.time,
    ) -> Ledger:
        """Open a ledger; raises LedgerError like `create`, and if it is missing. Config None accepts any ledger."""
        return cls(path, answers, config, clock, False)

    def close(self) -> None:
        """Close the file. Running units stay marked as running, and the next process requeues them."""
        with self._lock:
            self._connection.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fill(self, units: Sequence[UnitRow]) -> None:
        """Add all units of the baseline and adapting rounds; existing ones stay unchanged.

        Raises LedgerError if the ledger holds a unit that is not among `units`, or one with other tasks.
        """
        with self._writing():
            self._add(units)
            given = {(round, name) for round, name, _, _ in units}
            for row in self._rows("SELECT round, name FROM units WHERE round <= ?", ADAPT_ROUND):
                if (row["round"], row["name"]) not in given:
                    raise LedgerError(
                        f"{self.path}: holds {row['name']} in round {row['round']}, which is no part of this run; "
                        "use the tasks it was started with, or start a new run in another folder"
                    )

    def add(self, unit: UnitRow) -> None:
        """Add a unit of an extra round."""
        with self._writing():
            self._add([unit])

    def recover(self) -> None:
        """Requeue the running units of earlier processes. Call it only while holding the run's lock.

        A process that was not asked to stop (`stopping`) died, which counts towards DEATHS.
        """
        with self._writing():
            taken = self._rows(
                "SELECT units.*, sessions.process, sessions.stopping FROM units JOIN sessions ON session = sessions.id "
                "WHERE state IN ('adapting', 'predicting')"
            )
            for row in taken:
                self._queue_again(row, died=row["process"] != _PROCESS and not row["stopping"])

    def claim(self, key: Key, worker: str, *, steps: int, first_prediction: int, predictions: int, seed: int) -> bool:
        """Assign a queued unit to `worker`, atomically; False if it is not, or no longer, queued."""
        with self._writing():
            changed = self._connection.execute(
                "UPDATE units SET state = CASE WHEN ? AND adapter IS NULL THEN 'adapting' ELSE 'predicting' END, "
                "starts = starts + 1, worker = ?, session = ?, planned_steps = ?, first_prediction = ?, "
                "num_predictions = ?, seed = ?, started_at = ?, finished_at = NULL "
                "WHERE round = ? AND name = ? AND state = 'queued'",
                (steps, worker, self._session, steps, first_prediction, predictions, seed, self._clock(), *key),
            )
            return changed.rowcount == 1

    def record(self, event: Event, worker: str, *, again: bool = False) -> bool:
        """Record an event of a unit that `worker` is working on; with `again` a failed unit is requeued.

        Returns False, and writes nothing, if the unit is not assigned to `worker`, or no longer: it was assumed dead.
        """
        with self._writing():
            rows = self._rows(
                "SELECT * FROM units WHERE round = ? AND name = ? AND worker = ? AND session = ? "
                "AND state IN ('adapting', 'predicting')",
                *event.key,
                worker,
                self._session,
            )
            if not rows:
                return False
            match event:
                case Started():
                    # Notes of earlier starts still hold, by a process that died or in the first attempt.
                    notes = dict.fromkeys([*json.loads(rows[0]["notes"]), *event.notes])
                    self._set(event.key, recipe=json.dumps(event.recipe), notes=json.dumps(list(notes)))
                case Adapted():
                    self._adapted(event)
                case Predicted():
                    self._predicted(event, rows[0])
                case Finished():
                    self._set(event.key, state="done", finished_at=self._clock(), deaths=0)
                case Failed():
                    self._failed(rows[0], event.reason, again)
            return True

    def requeue(self, worker: str, *, died: bool) -> None:
        """Requeue the running units of `worker`; if it died, that counts towards DEATHS."""
        with self._writing():
            taken = self._rows(
                "SELECT * FROM units WHERE worker = ? AND session = ? AND state IN ('adapting', 'predicting')",
                worker,
                self._session,
            )
            for row in taken:
                self._queue_again(row, died=died)

    def stopping(self) -> None:
        """Record that this process was asked to stop, so that its running units are not blamed for its end."""
        with self._writing():
            self._connection.execute("UPDATE sessions SET stopping = 1 WHERE id = ?", (self._session,))

    def note(self, kind: str, text: str, data: Mapping[str, Any] | None = None) -> None:
        """Store a remark about the engine, such as reduced settings."""
        with self._writing():
            self._connection.execute(
                "INSERT INTO notes (at, kind, text, data) VALUES (?, ?, ?, ?)",
                (self._clock(), kind, text, json.dumps(dict(data or {}))),
            )

    def notes(self) -> list[Note]:
        """All notes, oldest first."""
        rows = self._rows("SELECT * FROM notes ORDER BY id")
        return [Note(at=row["at"], kind=row["kind"], text=row["text"], data=json.loads(row["data"])) for row in rows]

    def records(self, round: int | None = None) -> list[Record]:
        """The records, of one round or of all, in the order in which they were added."""
        rows = self._rows("SELECT * FROM units WHERE ?1 IS NULL OR round = ?1 ORDER BY place", round)
        return [read_record(row) for row in rows]

    def find(self, key: Key) -> Record:
        """The record of one unit; KeyError if there is none."""
        rows = self._rows("SELECT * FROM units WHERE round = ? AND name = ?", *key)
        if not rows:
            raise KeyError(key)
        return read_record(rows[0])

    def predictions(self, round: int | None = None, task_id: str | None = None) -> list[Prediction]:
        """Predictions, of a round and task if given, in the order of tasks, tests, rounds and prompts."""
        rows = self._rows(
            "SELECT line FROM predictions JOIN tasks ON task_id = id WHERE (?1 IS NULL OR round = ?1) "
            "AND (?2 IS NULL OR task_id = ?2) ORDER BY place, test_index, round, number",
            round,
            task_id,
        )
        return [prediction_from_json(json.loads(row["line"]), str(self.path), self._answers) for row in rows]

    def current_predictions(self, task_id: str | None = None) -> list[Prediction]:
        """For each test, the predictions after adapting, or else those before; in the same order."""
        rows = self._rows(
            "SELECT line FROM predictions AS mine JOIN tasks ON task_id = id WHERE (?1 IS NULL OR task_id = ?1) "
            "AND (round > ?2 OR NOT EXISTS (SELECT 1 FROM predictions AS other WHERE other.task_id = mine.task_id "
            "AND other.test_index = mine.test_index AND other.round > ?2)) ORDER BY place, test_index, round, number",
            task_id,
            BASELINE_ROUND,
        )
        return [prediction_from_json(json.loads(row["line"]), str(self.path), self._answers) for row in rows]

    def predicted(self, key: Key) -> frozenset[TestKey]:
        """The tests that have predictions of this unit."""
        rows = self._rows("SELECT DISTINCT task_id, test_index FROM predictions WHERE round = ? AND name = ?", *key)
        return frozenset((row["task_id"], row["test_index"]) for row in rows)

    def elapsed(self) -> float:
        """Seconds that this run took in all its processes, each up to its last write, this one up to now."""
        rows = self._rows("SELECT * FROM sessions")
        mine = [row["started_at"] for row in rows if row["process"] == _PROCESS]
        others = sum(row["seen_at"] - row["started_at"] for row in rows if row["process"] != _PROCESS)
        return others + max(0.0, self._clock() - min([self._opened_at, *mine]))

    def elapsed_at(self, at: float) -> float:
        """Seconds that this run had taken, in all its processes, at time `at` (seconds since the epoch)."""
        rows = self._rows("SELECT * FROM sessions")
        return sum(max(0.0, min(row["seen_at"], at) - row["started_at"]) for row in rows)

    def heartbeat(self) -> None:
        """Record a sign of life, as every write does; `elapsed` relies on it after a crash."""
        with self._writing():
            pass

    def _add(self, units: Sequence[UnitRow]) -> None:
        for round, name, task_ids, length in units:
            for task_id in task_ids:
                self._connection.execute("INSERT OR IGNORE INTO tasks (id) VALUES (?)", (task_id,))
            ids = json.dumps(list(task_ids))
            self._connection.execute(
                "INSERT OR IGNORE INTO units (round, name, task_ids, length) VALUES (?, ?, ?, ?)",
                (round, name, ids, length),
            )
            [row] = self._rows("SELECT task_ids FROM units WHERE round = ? AND name = ?", round, name)
            if row["task_ids"] != ids:
                raise LedgerError(
                    f"{self.path}: {name} holds the tasks {', '.join(json.loads(row['task_ids']))} there, and "
                    f"{', '.join(task_ids)} here; use the tasks it was started with, or start a new run in another "
                    "folder"
                )

    def _adapted(self, event: Adapted) -> None:
        # Predictions of an earlier attempt came from another adapter.
        self._connection.execute("DELETE FROM predictions WHERE round = ? AND name = ?", event.key)
        self._set(
            event.key,
            state="predicting",
            steps=event.steps,
            tokens=event.tokens,
            losses=json.dumps(event.losses),
            adapt_seconds=event.seconds,
            ended=event.ended,
            adapter=event.adapter,
            predict_seconds=0.0,
            predict_tokens=0,
        )

    def _predicted(self, event: Predicted, row: sqlite3.Row) -> None:
        for number, prediction in enumerate(event.predictions, row["first_prediction"]):
            test = (*event.key, prediction.task_id, prediction.test_index)
            if number == row["first_prediction"]:
                self._connection.execute(
                    "DELETE FROM predictions WHERE round = ? AND name = ? AND task_id = ? AND test_index = ?", test
                )
            line = json.dumps(prediction.to_json(self._answers.answer_field), allow_nan=False)
            self._connection.execute(
                "INSERT INTO predictions (round, name, task_id, test_index, number, line) VALUES (?, ?, ?, ?, ?, ?)",
                (*test, number, line),
            )
        self._set(
            event.key,
            predict_seconds=row["predict_seconds"] + event.seconds,
            predict_tokens=row["predict_tokens"] + event.tokens,
        )

    def _failed(self, row: sqlite3.Row, reason: str, again: bool) -> None:
        changes: dict[str, Any] = {"attempts": row["attempts"] + 1, "reason": reason, "deaths": 0}
        if again:
            # The next attempt trains from scratch instead of reusing the adapter that failed.
            changes |= {"state": "queued", "worker": None, "adapter": None}
        else:
            changes |= {"state": "failed", "finished_at": self._clock()}
        self._set((row["round"], row["name"]), **changes)

    def _queue_again(self, row: sqlite3.Row, *, died: bool) -> None:
        deaths = row["deaths"] + died
        if deaths >= DEATHS:
            reason = f"the process died {deaths} times while it worked on this (killed for its memory?)"
            self._failed(row, reason, again=row["attempts"] + 1 < MAX_ATTEMPTS)
        else:
            self._set((row["round"], row["name"]), state="queued", worker=None, deaths=deaths)

    def _set(self, key: Key, **values: Any) -> None:
        names = ", ".join(f"{name} = ?" for name in values)
        self._connection.execute(f"UPDATE units SET {names} WHERE round = ? AND name = ?", (*values.values(), *key))

    def _rows(self, query: str, *values: Any) -> list[sqlite3.Row]:
        with self._lock, explained(self.path):
            return self._connection.execute(query, values).fetchall()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """A transaction: everything inside is committed, or nothing."""
        with self._lock, explained(self.path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                self._beat()
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                # After some errors, such as a full disk, SQLite has already rolled back.
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def _beat(self) -> None:
        rows = self._rows("SELECT id FROM sessions WHERE process = ?", _PROCESS)
        if rows:
            self._session = rows[0]["id"]
        else:
            self._session = self._connection.execute(
                "INSERT INTO sessions (process, started_at, seen_at, stopping) VALUES (?, ?, ?, 0)",
                (_PROCESS, self._opened_at, self._opened_at),
            ).lastrowid
        self._connection.execute(
            "UPDATE sessions SET seen_at = MAX(seen_at, ?) WHERE id = ?", (self._clock(), self._session)
        )
