"""A tracker that is always finished, with the exit code of the job."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from arcft.config.tracking import TrackingConfig
from arcft.runs.common.signals import Interrupted, Stopped
from arcft.tracking import Tracker, start_tracker


@contextlib.contextmanager
def tracked(config: TrackingConfig, run_config: Mapping[str, Any], folder: Path, *, job: str) -> Iterator[Tracker]:
    """Start the tracker of a job; finish it with the exit code of the program: 0, a signal's, or 1 for an error."""
    tracker = start_tracker(config, run_config=run_config, folder=folder, job=job, name=f"{job} {folder.name}")
    exit_code = 1
    try:
        yield tracker
        exit_code = 0
    except Stopped as stopped:
        exit_code = stopped.exit_code
        raise
    except Interrupted as interrupted:
        exit_code = 128 + interrupted.number
        raise
    finally:
        tracker.finish(exit_code)
