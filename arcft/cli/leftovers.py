"""Removes the output folders of jobs that wrote nothing: dry runs, refusals, and runs stopped before they began.

Hydra creates a job's folder, with its config and an empty log, before the job can say whether it needs one.
"""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from arcft import ranks
from arcft.checkpoints import LOCK_FILE, RUN_FILE
from arcft.cli import rank_words

_FOLDER = ".hydra"
_SWEEP_FILE = "multirun.yaml"

_new: list[Path] = []
"""The missing folders that this process's run or multirun needs, the innermost first."""

_before: dict[Path, set[str]] = {}
"""What was in the run's or multirun's folder before."""


class NewFolders(Callback):
    """Notes what is there before Hydra creates anything. conf/ names it under hydra.callbacks."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Hydra calls this before a single run."""
        if ranks.rank() == 0:
            _note(Path(config.hydra.run.dir))
            rank_words.tell_folder(Path(config.hydra.run.dir))

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Hydra calls this before the jobs of a multirun."""
        _note(Path(config.hydra.sweep.dir))


def _note(folder: Path) -> None:
    folder = folder.absolute()
    _new[:] = [path for path in (folder, *folder.parents) if not path.exists()]
    _before.clear()
    _before[folder] = {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def keep_files_of_job() -> None:
    """The current job has done its work: `remove_leftovers` does not touch its folder."""
    _before.pop(Path(HydraConfig.get().runtime.output_dir), None)


def remove_files_of_job() -> None:
    """Remove what Hydra created for the current job, unless the job has begun a run in its folder."""
    if ranks.rank() > 0:
        return
    config = HydraConfig.get()
    folder = Path(config.runtime.output_dir)
    _remove_hydras_files(folder, config.job.name, _before.get(folder, set()))
    if folder not in _before or folder in _new:
        _remove(folder)


def remove_leftovers(job_name: str) -> None:
    """At the end of a run or multirun, remove its new folders if they are empty but for Hydra's files."""
    for folder, before in _before.items():
        _remove_hydras_files(folder, job_name, before)
    for folder in _new:
        if [path.name for path in folder.glob("*")] == [_SWEEP_FILE]:
            _remove(folder / _SWEEP_FILE)
        _remove(folder)
    _new.clear()
    _before.clear()


def _remove_hydras_files(folder: Path, job_name: str, before: set[str]) -> None:
    if RUN_FILE in before or not (folder / RUN_FILE).exists():
        for name in {_FOLDER, f"{job_name}.log", LOCK_FILE} - before:
            _remove(folder / name)


def _remove(path: Path) -> None:
    """Remove a file, Hydra's folder of configs, or another folder if it is empty."""
    with contextlib.suppress(OSError):
        if path.name == _FOLDER:
            shutil.rmtree(path)
        elif path.is_dir():
            path.rmdir()
        else:
            path.unlink()
