"""Where runs are recorded. Options: conf/tracking/*.yaml."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Literal


@dataclasses.dataclass(kw_only=True)
class TrackingConfig:
    name: Literal["wandb", "none"]

    mode: Literal["auto", "online", "offline"] | None = None
    """`auto` is online where there is an API key, else offline (send later with `wandb sync`)."""

    project: str | None = None
    entity: str | None = None
    group: str | None = None
    """As in wandb.init; null leaves them to wandb."""

    tags: list[str] = dataclasses.field(default_factory=list)
    """Labels of the run."""

    def problems(self) -> Iterator[str]:
        if self.name == "wandb":
            if self.mode is None:
                yield "tracking.mode is null: auto, online or offline; to track nothing use tracking=none"
            return
        for name in ("mode", "project", "entity", "group", "tags"):
            value = getattr(self, name)
            if value:
                yield f"tracking.{name}={value} has no effect with tracking=none; use tracking=wandb"
