"""The folder of an evaluation with test-time fine-tuning, started before any model library is loaded.

It then holds run.yaml and ledger, so that an evaluation killed while torch is being imported can be resumed.
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

# Keys that don't affect the results and may change on resuming.
_FREE = ("resume", "dry_run", "tracking")


def open_ledger(settings: TtftSettings, folder: Path) -> Ledger:
    """The ledger in `folder`, created if missing; raises LedgerError if it belongs to another evaluation."""
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
    """Lock `folder` until leaving, and create run.yaml and ledger in it unless they exist.

    Raises CheckpointError or LedgerError if the folder is in use, can't be written to, or belongs to another
    evaluation. An ArcftError inside, before any unit was started, removes the new files again, so that a refused
    evaluation leaves nothing to resume.
    """
    with _locked(folder):
        is_new = not (folder / RUN_FILE).exists()
        if not is_new and read_run_yaml(folder).get("job") != "evaluate":
            raise CheckpointError(f"{folder}: holds another run; choose another folder")
        if is_new:
            config = to_dict(settings.config)
            write_run_yaml(folder, {"arcft": __version__, "job": "evaluate", "config": config, "keys": {}})
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
                _remove_unused(settings, folder)
            raise


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock_run(folder))
        except OSError as error:
            raise CheckpointError(f"{folder}: can't be written to ({error.strerror}); choose another folder") from error
        yield


def _remove_unused(settings: TtftSettings, folder: Path) -> None:
    # Imported only here, because it loads torch.
    from arcft.runs.evaluation.results import METRICS_FILE, SUBMISSION_FILE

    with open_ledger(settings, folder) as ledger:
        if any(record.starts for record in ledger.records()) or (folder / METRICS_FILE).exists():
            return
    for name in (RUN_FILE, f"{LEDGER_FILE}*", SUBMISSION_FILE, LOCK_FILE):
        for path in folder.glob(name):
            path.unlink(missing_ok=True)
    # Keep Hydra's own files and folders.
    with contextlib.suppress(OSError):
        folder.rmdir()
