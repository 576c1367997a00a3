"""A checksum in every row of a ledger and a count of each table's rows, so that damage is told when it is opened.

Triggers of this connection write both; they are not part of the file, so any SQLite program can read it. A row that
another program changed is taken for damaged.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3

from arcft.ttft.ledger.records import SCHEMA

TABLES = ("config", "sessions", "tasks", "units", "predictions", "notes")
"""Those of the content, whose rows are counted."""

COUNTS = "row_counts"
COLUMN = "checksum"

# Columns that older ledgers hold as JSON, by table: all that can be checked of rows without a checksum.
_JSON = {
    "config": ("json",),
    "units": ("task_ids", "notes", "losses", "recipe"),
    "predictions": ("line",),
    "notes": ("data",),
}
_FIRST = 3
"""Damaged rows that a message names."""


def write_checksums(connection: sqlite3.Connection) -> None:
    """From now on, give every row that `connection` adds or changes its checksum, and count the rows."""
    connection.create_function("row_sha256", -1, _row_sha256, deterministic=True)
    for table in (*TABLES, COUNTS):
        for event in ("INSERT", "UPDATE"):
            connection.execute(
                f"CREATE TEMP TRIGGER IF NOT EXISTS checksum_{table}_{event} AFTER {event} ON main.{table} BEGIN "
                f"UPDATE {table} SET {COLUMN} = {_checksum(connection, table)} WHERE rowid = NEW.rowid; END"
            )
    for table in TABLES:
        for event, change in (("INSERT", "+ 1"), ("DELETE", "- 1")):
            connection.execute(
                f"CREATE TEMP TRIGGER IF NOT EXISTS count_{table}_{event} AFTER {event} ON main.{table} BEGIN "
                f"UPDATE {COUNTS} SET number = number {change} WHERE name = '{table}'; END"
            )


def count_rows(connection: sqlite3.Connection) -> None:
    """Begin to count the rows, after `write_checksums`; counts that are there stay."""
    for table in TABLES:
        connection.execute(
            f"INSERT OR IGNORE INTO {COUNTS} (name, number) VALUES ('{table}', (SELECT count(*) FROM {table}))"
        )


def add_checksums(connection: sqlite3.Connection) -> None:
    """Give the rows of an older ledger, which has none, their checksums, and count them. Call it in a transaction."""
    connection.create_function("row_sha256", -1, _row_sha256, deterministic=True)
    for table in TABLES:
        connection.execute(f"ALTER TABLE {table} ADD COLUMN {COLUMN} TEXT")
        connection.execute(f"UPDATE {table} SET {COLUMN} = {_checksum(connection, table)}")
    for statement in SCHEMA:
        connection.execute(statement)
    write_checksums(connection)
    count_rows(connection)


def damaged_rows(connection: sqlite3.Connection) -> list[str]:
    """Names of the rows whose content is not what was written, such as `units row 7`; some of them if they are many."""
    connection.create_function("row_sha256", -1, _row_sha256, deterministic=True)
    wrong = {table: f"{COLUMN} IS NOT {_checksum(connection, table)}" for table in (*TABLES, COUNTS)}
    return _rows_where(connection, wrong)


def miscounted_tables(connection: sqlite3.Connection) -> list[str]:
    """The tables that have lost or gained rows, such as `units (7 rows, not 8)`."""
    written = dict(connection.execute(f"SELECT name, number FROM {COUNTS}").fetchall())
    there = {table: connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in TABLES}
    return [
        f"{table} ({number} rows, not {written.get(table, 'counted')})"
        for table, number in there.items()
        if number != written.get(table)
    ]


def unreadable_rows(connection: sqlite3.Connection) -> list[str]:
    """The same for an older ledger: the rows whose JSON can't be read."""
    connection.create_function("is_json", 1, _is_json, deterministic=True)
    wrong = {
        table: " OR ".join(f"NOT is_json(CAST({name} AS BLOB))" for name in names) for table, names in _JSON.items()
    }
    return _rows_where(connection, wrong)


def damaged_tables(connection: sqlite3.Connection, *, counted: bool) -> list[str]:
    """The tables that lack a column, or have it with another type; those without checksums are whole without them, and
    those that are not `counted` without the table of their counts."""
    with contextlib.closing(sqlite3.connect(":memory:")) as whole:
        for statement in SCHEMA:
            whole.execute(statement)
        names = (*TABLES, COUNTS) if counted else TABLES
        return [f"table {name}" for name in names if _columns(whole, name) != _columns(connection, name)]


def _columns(connection: sqlite3.Connection, table: str) -> dict[str, str]:
    """Types by name of all columns that a checksum covers."""
    return {row[1]: row[2] for row in connection.execute(f"PRAGMA table_info({table})") if row[1] != COLUMN}


def _rows_where(connection: sqlite3.Connection, conditions: dict[str, str]) -> list[str]:
    found: list[str] = []
    for table, condition in conditions.items():
        rows = connection.execute(f"SELECT rowid FROM {table} WHERE {condition} LIMIT {_FIRST - len(found)}")
        found += [f"{table} row {row[0]}" for row in rows]
    return found


def _checksum(connection: sqlite3.Connection, table: str) -> str:
    """The SQL expression of a row's checksum."""
    # As bytes, because damaged text may not be UTF-8, and SQLite would refuse to pass it on.
    values = [f"CAST({name} AS BLOB)" if kind == "TEXT" else name for name, kind in _columns(connection, table).items()]
    return f"row_sha256(rowid, {', '.join(values)})"


def _row_sha256(*values: int | float | bytes | None) -> str:
    return hashlib.sha256(repr(values).encode()).hexdigest()


def _is_json(content: bytes) -> bool:
    # SQLite's own json_valid refuses NaN, which a loss may be.
    try:
        json.loads(content)
    except (ValueError, RecursionError):
        return False
    return True
