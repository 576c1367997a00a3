"""The folder of an evaluation that adapts, begun before any model library is loaded.

With run.yaml and ledger in it, an evaluation that is killed while torch is still being imported can be resumed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from arcft import __version__
from arcft.checkpoints import LOCK_FILE, RUN_FILE, CheckpointError, lock_run, read_run_yaml, write_run_yaml
from arcft.config import version_0_1
from arcft.config.inference import ONLY_SPEED
from arcft.config.schema import to_dict
from arcft.errors import ArcftError
from arcft.runs.setup.kinds import kind_of
from arcft.runs.setup.ttft_settings import TtftSettings, ttft_identity
from arcft.ttft.ledger.ledger import Ledger

LEDGER_FILE = "ledger.sqlite"

# Not part of what comes out: may change on resuming.
_FREE = ("resume", "dry_run", "tracking")


def open_ledger(settings: TtftSettings, folder: Path) -> Ledger:
    """The ledger in `folder`, a new one if there is none; LedgerError where it belongs to another evaluation."""
    values: dict[str, Any] = {**version_0_1.evaluation_written(settings.config), **ttft_identity(settings.config)}
    for name in _FREE:
        del values[name]
    for name in ONLY_SPEED:
        del values["inference"][name]
    return Ledger.create(
        folder / LEDGER_FILE, kind_of(settings.config.data), {**values, "checkpoint_sha256": settings.identity}
    )


@contextlib.contextmanager
def start_evaluation_folder(settings: TtftSettings, folder: Path) -> Iterator[None]:
    """Write run.yaml and ledger into `folder`, unless they are there; refuse those of another evaluation.

    They are taken away again where the evaluation is refused inside, before it had anything to do: nothing remains
    that could be resumed.
    """
    with _owned(folder):
        is_new = not (folder / RUN_FILE).exists()
        if not is_new and read_run_yaml(folder).get("job") != "evaluate":
            raise CheckpointError(f"{folder}: holds another run; choose another folder")
        if is_new:
            write_run_yaml(
                folder, {"arcft": __version__, "job": "evaluate", "config": to_dict(settings.config), "keys": {}}
            )
        try:
            open_ledger(settings, folder).close()
        except ArcftError:
            if is_new:
                (folder / RUN_FILE).unlink()
            raise
    try:
        yield
    except ArcftError:
        if is_new:
            _take_away(settings, folder)
        raise


@contextlib.contextmanager
def _owned(folder: Path) -> Iterator[None]:
    try:
        with lock_run(folder):
            yield
    except OSError as error:
        raise CheckpointError(f"{folder}: can't be written to ({error.strerror}); choose another folder") from error


def _take_away(settings: TtftSettings, folder: Path) -> None:
    # Only now, for it brings along what takes a second to import.
    from arcft.runs.evaluation.results import METRICS_FILE, SUBMISSION_FILE

    with lock_run(folder):
        with open_ledger(settings, folder) as ledger:
            if any(record.starts for record in ledger.records()) or (folder / METRICS_FILE).exists():
                return
        for name in (RUN_FILE, f"{LEDGER_FILE}*", SUBMISSION_FILE, LOCK_FILE):
            for path in folder.glob(name):
                path.unlink(missing_ok=True)
    # Of the command line, Hydra's own files remain.
    with contextlib.suppress(OSError):
        folder.rmdir()
