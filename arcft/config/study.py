"""What `arcft study` compares. conf/study.yaml."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Literal


@dataclasses.dataclass(kw_only=True)
class StudyConfig:
    runs: list[str] | str | None = None
    """Folders of runs and sweeps, and patterns of them."""

    by: list[str] | str | None = None
    """Keys whose values make a setting; null for those that differ."""

    over: list[str] | str | None = None
    """Keys whose values are replicates; null for the seeds."""

    metric: str | None = None
    """A metric of single tasks, eval_loss or loss; null for the primary metric of the kind of problem."""

    baseline: str | int | float | bool | None = None
    """The setting that others are compared with: its value, or `key=value` for one of several keys; null for the
    first."""

    tasks: Literal["all", "shared"] = "all"
    """`all` refuses runs of different tasks, `shared` compares them on the tasks that all have answered."""

    out: str | None = None
    """The folder to write; null for the sweep's own, or outputs/study/... where runs names more than one sweep."""

    def names(self, key: str) -> list[str] | None:
        """The values of an option that takes one or several."""
        value = getattr(self, key)
        return [value] if isinstance(value, str) else value

    def problems(self) -> Iterator[str]:
        if not self.names("runs"):
            yield "runs is not set: name folders, e.g. arcft study multirun/train/STAMP"
        if any(not name for name in self.names("runs") or ()):
            yield "runs: one of the names is empty (an unset shell variable?); drop it, or give a path"
        both = set(self.names("by") or ()) & set(self.names("over") or ())
        if both:
            yield f"by= and over= both name {', '.join(sorted(both))}; a key makes a setting or a replicate"
