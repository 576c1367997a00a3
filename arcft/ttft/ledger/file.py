"""Create or open the file of a ledger, check it, and explain its errors."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from arcft.errors import ArcftError
from arcft.ttft.ledger.checksums import (
    add_checksums,
    count_rows,
    damaged_rows,
    damaged_tables,
    miscounted_tables,
    unreadable_rows,
    write_checksums,
)
from arcft.ttft.ledger.records import SCHEMA

# "arcf": distinguishes a ledger from other SQLite files.
_APPLICATION = 0x61726366
_VERSION = 2
_WITHOUT_CHECKSUMS = 1

# Another process may be in the middle of a write to a slow disk.
_PATIENCE_SECONDS = 30.0
_MOST_DIFFERENCES = 8
_LONGEST_VALUE = 60
_AFTER_DAMAGE = "put back a copy of the folder, or start a new run in another one"


class LedgerError(ArcftError):
    """A ledger of another run, a file that is not a ledger, or a disk that can't be written."""


def connect(path: Path, config: Mapping[str, Any] | None, *, new: bool) -> tuple[sqlite3.Connection, dict[str, Any]]:
    """Open the ledger at `path`, or with `new` create it if missing; return the connection and the stored config.

    The whole ledger is checked for damage; one of version 0.1.0 gets its checksums. Raises LedgerError if the file is
    missing, is not a ledger, is damaged, can't be written, or belongs to another config.
    """
    if not new and not path.exists():
        raise LedgerError(f"{path}: no ledger; is this the folder of an evaluation with ttft?")
    with explained(path):
        connection = sqlite3.connect(path, timeout=_PATIENCE_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        with explained(path):
            stored = _prepared(connection, path, config)
        if config is not None:
            _refuse_another(path, stored, _plain(config))
    except BaseException:
        connection.close()
        raise
    return connection, stored


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into LedgerErrors that say what to do."""
    try:
        yield
    # SQLite quotes what it can't read, and that need not be UTF-8.
    except (sqlite3.Error, UnicodeDecodeError) as error:
        name = getattr(error, "sqlite_errorname", "")
        if name == "SQLITE_FULL":
            advice = "free some space, and resume the run; what was written before is kept"
        elif name.startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_PERM")):
            advice = "the folder must exist and be writable, also for the files that SQLite puts beside the ledger"
        elif name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            advice = "another process writes to it; wait for it to end"
        elif name.startswith(("SQLITE_NOTADB", "SQLITE_CORRUPT")) or isinstance(error, UnicodeDecodeError):
            advice = f"this is not a ledger, or it is damaged; {_AFTER_DAMAGE}"
        else:
            advice = "the ledger can't be read or written; check the disk, and resume the run"
        raise LedgerError(f"{path}: {error}: {advice}") from error


def _prepared(connection: sqlite3.Connection, path: Path, config: Mapping[str, Any] | None) -> dict[str, Any]:
    connection.row_factory = sqlite3.Row
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    # A process killed while creating the ledger leaves an empty file.
    is_empty = not tables and not application and not version
    if is_empty and config is None:
        raise LedgerError(
            f"{path}: is empty, because its run was stopped before it started; resume it with evaluate resume="
        )
    if not is_empty and application != _APPLICATION:
        raise LedgerError(f"{path}: belongs to another program and is not a ledger; choose another folder")
    if not is_empty and version not in (_WITHOUT_CHECKSUMS, _VERSION):
        raise LedgerError(
            f"{path}: is a ledger of format {version}, and this version of arcft reads format {_VERSION}; use "
            "the version that created it"
        )
    if not is_empty:
        _refuse_damaged(connection, path, version)
    connection.execute("PRAGMA journal_mode = WAL")
    # Without this the last transactions survive a kill, but not a power failure.
    connection.execute("PRAGMA synchronous = FULL")
    if is_empty:
        _begin(connection, config or {})
    elif version == _WITHOUT_CHECKSUMS:
        _upgrade(connection)
    write_checksums(connection)
    return json.loads(connection.execute("SELECT json FROM config").fetchone()[0])


def _refuse_damaged(connection: sqlite3.Connection, path: Path, version: int) -> None:
    [first, *_] = (row[0] for row in connection.execute("PRAGMA integrity_check(1)"))
    what = [] if first == "ok" else [first]
    has_checksums = version == _VERSION
    what = what or damaged_tables(connection, counted=has_checksums)
    what = what or (damaged_rows(connection) if has_checksums else unreadable_rows(connection))
    if not what:
        what = miscounted_tables(connection) if has_checksums else []
        what = what or ([] if connection.execute("SELECT 1 FROM config").fetchone() else ["config (no row)"])
    if what:
        raise LedgerError(f"{path}: is damaged, or was changed by another program: {', '.join(what)}; {_AFTER_DAMAGE}")


def _begin(connection: sqlite3.Connection, config: Mapping[str, Any]) -> None:
    with _transaction(connection):
        for statement in SCHEMA:
            connection.execute(statement)
        write_checksums(connection)
        count_rows(connection)
        # Another process may have created it meanwhile; its config stays and is compared with ours.
        connection.execute("INSERT OR IGNORE INTO config (id, json) VALUES (1, ?)", (json.dumps(_plain(config)),))
        connection.execute(f"PRAGMA application_id = {_APPLICATION}")
        connection.execute(f"PRAGMA user_version = {_VERSION}")


def _upgrade(connection: sqlite3.Connection) -> None:
    with _transaction(connection):
        # Another process may have done it meanwhile.
        if connection.execute("PRAGMA user_version").fetchone()[0] == _WITHOUT_CHECKSUMS:
            add_checksums(connection)
            connection.execute(f"PRAGMA user_version = {_VERSION}")


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """`config` after a JSON round trip: tuples become lists, keys become text."""
    return json.loads(json.dumps(dict(config)))


def _refuse_another(path: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    # Treat null like a missing key: options of other versions have other keys.
    one, other = ({key: value for key, value in _leaves(config) if value != "null"} for config in (there, here))
    differing = [key for key in one | other if one.get(key, "nothing") != other.get(key, "nothing")]
    if not differing:
        return
    said = [f"{key} is {_short(one, key)} there and {_short(other, key)} here" for key in differing[:_MOST_DIFFERENCES]]
    if len(differing) > len(said):
        said.append(f"{len(differing) - len(said)} more keys")
    raise LedgerError(
        f"{path}: belongs to a run of another configuration: {'; '.join(said)}. "
        "Use the values it was started with, or start a new run in another folder"
    )


def _leaves(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys with their values as JSON."""
    for key, value in config.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.dumps(value, sort_keys=True)


def _short(leaves: Mapping[str, str], key: str) -> str:
    text = leaves.get(key, "nothing")
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 3]}..."
