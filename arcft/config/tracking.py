"""Where runs are recorded. Options: conf/tracking/*.yaml."""

from __future__ import annotations

import dataclasses
from typing import Literal


@dataclasses.dataclass(kw_only=True)
class TrackingConfig:
    """A choice: a tracker, or none."""

    name: str


@dataclasses.dataclass(kw_only=True)
class NoTrackingConfig(TrackingConfig):
    """Nothing but the files of the run's folder."""

    name: Literal["none"] = "none"


@dataclasses.dataclass(kw_only=True)
class WandbConfig(TrackingConfig):
    """Weights & Biases."""

    name: Literal["wandb"] = "wandb"

    mode: Literal["auto", "online", "offline"]
    """`auto` is online where there is an API key, else offline (send later with `wandb sync`)."""

    project: str | None = None
    entity: str | None = None
    group: str | None = None
    """As in wandb.init; null leaves them to wandb."""

    tags: list[str] = dataclasses.field(default_factory=list)
    """Labels of the run."""
