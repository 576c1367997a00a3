"""Where a job's numbers, tables and pictures are recorded: Weights & Biases, or nowhere.

wandb is imported only when a run is started, so `tracking=none` neither loads it nor leaves a file. Once a job works,
its tracker never fails it: what can't be recorded, or is not taken in time, is left out with a note.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import psutil

from arcft.config.tracking import TrackingConfig, WandbConfig
from arcft.console import note
from arcft.deadline import within
from arcft.errors import ArcftError

TRAINING_STEP = "step"
"""The horizontal axis of every chart. wandb's own counter goes up with each call, whatever is logged."""


START_SECONDS = 30.0
"""How long W&B's server may take to answer at the start; after that the run is recorded offline."""

FINISH_SECONDS = 40.0
"""How long sending may take at the end; the rest stays on disk, for `wandb sync`."""

CALL_SECONDS = 20.0
"""How long any other call may take, and what W&B's own deadlines above may be overrun by."""


class TrackingError(ArcftError):
    """W&B refuses the account or the settings that the user has given it."""


class Tracker(Protocol):
    """Records a job. Exactly one tracker is open at a time; `finish` is always called."""

    where: str
    """For people: the run's page, or how to send an offline run later; empty without tracking."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Record `values` at training step `step`. Steps may repeat and go back, as in a checkpoint sweep."""
        ...

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Record a table; cells are text, numbers, bools or None, and of one kind in a column."""
        ...

    def picture(self, name: str, path: Path) -> None:
        """Record an image file; it is copied."""
        ...

    def summary(self, values: Mapping[str, Any]) -> None:
        """Set the figures by which runs are compared, beside the last logged ones."""
        ...

    def finish(self, exit_code: int) -> None:
        """Close the run; any exit code but 0 marks it as failed."""
        ...


def start_tracker(
    config: TrackingConfig, *, run_config: Mapping[str, Any], folder: Path, job: str, name: str
) -> Tracker:
    """Open the tracker of one job, keeping its files in `folder`.

    `run_config` is the resolved config, `job` the kind of job (train, evaluate), `name` what the run is called.
    Raises TrackingError if W&B refuses the user's account or settings. Where it can't be reached, the job is recorded
    offline, and where it can't be started at all, nowhere.
    """
    if not isinstance(config, WandbConfig):
        return NoTracker()

    def start(config: WandbConfig) -> Tracker:
        seconds = START_SECONDS + CALL_SECONDS
        tracker = within(
            seconds, lambda: WandbTracker(config, run_config=run_config, folder=folder, job=job, name=name)
        )
        return SafeTracker(tracker)

    try:
        return start(config)
    except TrackingError:
        raise
    except Exception as error:
        reason = _one_line(error)
        if isinstance(error, TimeoutError):
            _kill_service()
    try:
        tracker = start(dataclasses.replace(config, mode="offline"))
    except Exception as error:
        note(f"W&B can't be started, so nothing is recorded there: {_one_line(error)}; to do without it: tracking=none")
        return NoTracker()
    note(f"W&B records on disk, because it could not be started online: {reason}; send it later: {tracker.where}")
    return tracker


class NoTracker:
    """Records nothing."""

    where = ""

    def log(self, values: Mapping[str, float], step: int) -> None:
        pass

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        pass

    def picture(self, name: str, path: Path) -> None:
        pass

    def summary(self, values: Mapping[str, Any]) -> None:
        pass

    def finish(self, exit_code: int) -> None:
        pass


class SafeTracker:
    """A tracker whose errors are notes, one for each kind of call, and which is given up if it does not answer."""

    def __init__(self, tracker: WandbTracker) -> None:
        self._tracker = tracker
        self._given_up = False
        self._noted: set[str] = set()
        self.where = tracker.where

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._call("numbers", lambda: self._tracker.log(values, step))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        self._call("tables", lambda: self._tracker.table(name, columns, rows))

    def picture(self, name: str, path: Path) -> None:
        self._call("pictures", lambda: self._tracker.picture(name, path))

    def summary(self, values: Mapping[str, Any]) -> None:
        self._call("the summary", lambda: self._tracker.summary(values))

    def finish(self, exit_code: int) -> None:
        self._call("the end", lambda: self._tracker.finish(exit_code), FINISH_SECONDS + CALL_SECONDS)

    def _call(self, what: str, function: Callable[[], None], seconds: float | None = None) -> None:
        if self._given_up:
            return
        try:
            within(CALL_SECONDS if seconds is None else seconds, function)
        except (TimeoutError, ConnectionError) as error:
            self._given_up = True
            _kill_service()
            note(f"W&B is given up: {_one_line(error)}; what it has recorded stays in {self._tracker.folder}")
        except Exception as error:
            if what not in self._noted:
                note(f"W&B did not record {what}: {_one_line(error)}")
            self._noted.add(what)


class WandbTracker:
    """One W&B run."""

    def __init__(
        self, config: WandbConfig, *, run_config: Mapping[str, Any], folder: Path, job: str, name: str
    ) -> None:
        import wandb

        _leave_unwritable_home(folder)
        # wandb records in the system's temporary folder when it finds no folder to write to.
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        try:
            self._run = wandb.init(
                mode=_mode(config),
                project=config.project,
                entity=config.entity,
                group=config.group,
                tags=config.tags,
                name=name,
                job_type=job,
                config=dict(run_config),
                dir=folder,
                # The default returns the run that is still open, which would merge the jobs of a multirun.
                reinit="finish_previous",
                settings=wandb.Settings(silent=True, init_timeout=START_SECONDS, finish_timeout=FINISH_SECONDS),
            )
        except (wandb.errors.AuthenticationError, wandb.errors.UsageError) as error:
            raise TrackingError(
                f"tracking.mode={config.mode}: W&B could not start a run: {_one_line(error)}. "
                "To record on disk and send later use tracking.mode=offline; to record nothing, tracking=none"
            ) from error
        self._run.define_metric(TRAINING_STEP, hidden=True)
        self._run.define_metric("*", step_metric=TRAINING_STEP)
        self.where = self._place()

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log({**values, TRAINING_STEP: step})

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        import wandb

        self._run.log({name: wandb.Table(columns=list(columns), data=[list(row) for row in rows])})

    def picture(self, name: str, path: Path) -> None:
        import wandb

        self._run.log({name: wandb.Image(str(path))})

    def summary(self, values: Mapping[str, Any]) -> None:
        self._run.summary.update(dict(values))

    def finish(self, exit_code: int) -> None:
        self._run.finish(exit_code=exit_code)

    def _place(self) -> str:
        if self._run.disabled:  # by WANDB_MODE in the environment
            return ""
        if self._run.offline:
            return f"wandb sync {shlex.quote(str(Path(self._run.dir).parent))}"
        return self._run.url or ""


def _mode(config: WandbConfig) -> Literal["online", "offline"] | None:
    """The mode for wandb.init; None leaves it to the environment variable WANDB_MODE."""
    import wandb

    if config.mode != "auto":
        return config.mode
    if os.environ.get("WANDB_MODE"):
        return None
    return "online" if wandb.login(prompt=False, verify=False) else "offline"


def _leave_unwritable_home(folder: Path) -> None:
    """Let wandb keep its own files in `folder` where it could not write to the home folder."""
    try:
        with tempfile.TemporaryFile(dir=Path.home()):
            return
    except (OSError, RuntimeError):
        for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
            os.environ.setdefault(name, str(folder / "wandb"))


def _kill_service() -> None:
    """End the process that wandb sends with, which is dead or does not answer: wandb would wait for it at our exit."""
    import wandb

    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if "wandb" in child.name():
                child.kill()
    # wandb exits with the exit code of that process.
    with contextlib.suppress(Exception, SystemExit):
        within(CALL_SECONDS, wandb.teardown)


def _one_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
