"""The metric that a program returns to Hydra's sweepers, named by `optimized_metric`."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

from arcft.config.schema import ConfigError
from arcft.errors import ArcftError


def check_name(name: str | None, known: Sequence[str]) -> None:
    """Raise ConfigError unless `name` is None or one of the `known` metrics, such as `eval/accuracy`."""
    if name is None or name in known:
        return
    nearest = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {nearest[0]}? " if nearest else ""
    raise ConfigError([f"optimized_metric={name}: no such metric; {hint}there are {', '.join(known)}"])


def value_of(name: str | None, metrics: Mapping[str, float], way: str) -> float | None:
    """The value to return to the sweeper, None without a `name`.

    Raises ArcftError if the run ended without it; `way` says how to get it.
    """
    if name is None:
        return None
    if name not in metrics:
        raise ArcftError(f"optimized_metric={name}: the run ended before it was known; {way}")
    return metrics[name]
