"""The kinds of problems, one row each: the only place that knows arcft.problems."""

from __future__ import annotations

from collections.abc import Callable

from arcft.config.data import DataConfig
from arcft.problems.arc.kind import ArcKind
from arcft.protocols import Kind

KINDS: dict[str, Callable[[], Kind]] = {
    "arc": ArcKind,
}
"""By the name that `data.kind` gives it, what makes a kind."""


def kind_of(data: DataConfig) -> Kind:
    """The kind of the problems that `data` names."""
    return KINDS["arc"]()
