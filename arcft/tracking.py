"""Where a job's numbers, tables and pictures are recorded: Weights & Biases, or nowhere.

wandb is imported only when a run is started, so `tracking=none` neither loads it nor leaves a file.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from arcft.config.tracking import TrackingConfig, WandbConfig
from arcft.errors import ArcftError

TRAINING_STEP = "step"
"""The horizontal axis of every chart. wandb's own counter goes up with each call, whatever is logged."""


class TrackingError(ArcftError):
    """The tracker could not be started."""


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
    Raises TrackingError if W&B refuses to start.
    """
    if isinstance(config, WandbConfig):
        return WandbTracker(config, run_config=run_config, folder=folder, job=job, name=name)
    return NoTracker()


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


class WandbTracker:
    """One W&B run."""

    def __init__(
        self, config: WandbConfig, *, run_config: Mapping[str, Any], folder: Path, job: str, name: str
    ) -> None:
        import wandb

        # wandb records in the system's temporary folder when it finds no folder to write to.
        folder.mkdir(parents=True, exist_ok=True)
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
                settings=wandb.Settings(silent=True),
            )
        except wandb.Error as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise TrackingError(
                f"tracking.mode={config.mode}: W&B could not start a run: {reason}. "
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
