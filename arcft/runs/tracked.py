"""A tracker that is always finished, with the exit code that the job had."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from arcft.config.tracking import TrackingConfig
from arcft.tracking import Tracker, start_tracker


@contextlib.contextmanager
def tracked(config: TrackingConfig, run_config: Mapping[str, Any], folder: Path, *, job: str) -> Iterator[Tracker]:
    """Start the tracker of a job; finish it with 0, or with 1 where the job raises."""
    tracker = start_tracker(config, run_config=run_config, folder=folder, job=job, name=f"{job} {folder.name}")
    exit_code = 1
    try:
        yield tracker
        exit_code = 0
    finally:
        tracker.finish(exit_code)
