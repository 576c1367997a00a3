"""The contents of a ledger, as plain data."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
from collections.abc import Sequence
from typing import Any, Literal

from arcft.ttft.units import Key

State = Literal["queued", "adapting", "predicting", "done", "failed"]
UnitRow = tuple[int, str, Sequence[str], int]
"""Round, the unit's name, ids of its tasks, length in tokens."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """One unit in one round."""

    round: int
    name: str
    task_ids: tuple[str, ...]
    length: int
    state: State
    attempts: int
    """Failed attempts."""

    starts: int
    """How often it was started, including by processes that died."""

    deaths: int
    """Processes that died while working on it, since it last failed."""

    reason: str | None
    """Reason of the last failure, kept even if a retry succeeded."""

    notes: tuple[str, ...]
    """Remarks for the user."""

    planned_steps: int | None
    """Planned when it was last started, like the next two; None before that."""

    first_prediction: int
    num_predictions: int
    seed: int | None
    """Seed of its examples."""

    recipe: dict[str, Any]
    """The engine's settings when it was last started."""

    worker: str | None
    started_at: float | None
    """When it was last started, in seconds since the epoch, as is `finished_at`."""

    finished_at: float | None
    steps: int
    """Optimizer steps of the last attempt that finished training, as are tokens, losses and adapt_seconds."""

    tokens: int
    losses: tuple[float, ...]
    """Training loss of every step, in nats per supervised token."""

    adapt_seconds: float
    ended: str | None
    """Why training ended: steps, patience or deadline."""

    predict_seconds: float
    predict_tokens: int
    """Tokens read and produced."""

    adapter: str | None
    """Folder of the finished adapter, if it was saved."""

    @property
    def key(self) -> Key:
        return self.round, self.name


@dataclasses.dataclass(frozen=True, kw_only=True)
class Note:
    """A remark about the engine rather than a single unit."""

    at: float
    """Seconds since the epoch."""

    kind: str
    text: str
    data: dict[str, Any]


SCHEMA = (
    "CREATE TABLE IF NOT EXISTS config (id INTEGER PRIMARY KEY CHECK (id = 1), json TEXT NOT NULL, checksum TEXT)",
    "CREATE TABLE IF NOT EXISTS sessions (id INTEGER PRIMARY KEY, process TEXT NOT NULL UNIQUE, "
    "started_at REAL NOT NULL, seen_at REAL NOT NULL, stopping INTEGER NOT NULL, checksum TEXT)",
    "CREATE TABLE IF NOT EXISTS tasks (place INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, checksum TEXT)",
    "CREATE TABLE IF NOT EXISTS units (place INTEGER PRIMARY KEY, round INTEGER NOT NULL, name TEXT NOT NULL, "
    "task_ids TEXT NOT NULL, length INTEGER NOT NULL, state TEXT NOT NULL DEFAULT 'queued', "
    "attempts INTEGER NOT NULL DEFAULT 0, starts INTEGER NOT NULL DEFAULT 0, deaths INTEGER NOT NULL DEFAULT 0, "
    "reason TEXT, notes TEXT NOT NULL DEFAULT '[]', planned_steps INTEGER, "
    "first_prediction INTEGER NOT NULL DEFAULT 0, num_predictions INTEGER NOT NULL DEFAULT 0, seed INTEGER, "
    "recipe TEXT NOT NULL DEFAULT '{}', worker TEXT, session INTEGER, started_at REAL, finished_at REAL, "
    "steps INTEGER NOT NULL DEFAULT 0, tokens INTEGER NOT NULL DEFAULT 0, losses TEXT NOT NULL DEFAULT '[]', "
    "adapt_seconds REAL NOT NULL DEFAULT 0, ended TEXT, predict_seconds REAL NOT NULL DEFAULT 0, "
    "predict_tokens INTEGER NOT NULL DEFAULT 0, adapter TEXT, checksum TEXT, "
    "UNIQUE (round, name))",
    "CREATE TABLE IF NOT EXISTS predictions (round INTEGER NOT NULL, name TEXT NOT NULL, task_id TEXT NOT NULL, "
    "test_index INTEGER NOT NULL, number INTEGER NOT NULL, line TEXT NOT NULL, "
    "checksum TEXT, PRIMARY KEY (round, name, task_id, test_index, number))",
    "CREATE INDEX IF NOT EXISTS predictions_of_test ON predictions (task_id, test_index, round)",
    "CREATE TABLE IF NOT EXISTS notes (id INTEGER PRIMARY KEY, at REAL NOT NULL, kind TEXT NOT NULL, "
    "text TEXT NOT NULL, data TEXT NOT NULL, checksum TEXT)",
    "CREATE TABLE IF NOT EXISTS row_counts (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, "
    "number INTEGER NOT NULL, checksum TEXT)",
)
"""Columns of `units` are the fields of Record, plus place, session and checksum; lists and mappings are JSON."""

_JSON = ("task_ids", "notes", "losses", "recipe")


def read_record(row: sqlite3.Row) -> Record:
    """Read a row of `units`."""
    values = {field.name: row[field.name] for field in dataclasses.fields(Record)}
    for name in _JSON:
        content = json.loads(values[name])
        values[name] = content if isinstance(content, dict) else tuple(content)
    return Record(**values)
