"""Which settings of a speed study complete a number of samples within a time budget. Arithmetic only."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from arcft.reporting.speed.rows import Row


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
    """A time limit, and what has to be completed within it."""

    seconds: float
    samples: int
    predictions: int = 1
    """Completions of each sample."""

    @property
    def completions(self) -> int:
        return self.samples * self.predictions

    @property
    def seconds_per_sample(self) -> float:
        """What a sample may take, all its predictions together; loading is not taken off."""
        return self.seconds / self.samples

    def batches(self, batch: int) -> int:
        """How many batches complete everything; the last one may be smaller, and is counted as a whole one."""
        return math.ceil(self.completions / batch)


def seconds_needed(budget: Budget, *, batch: int, batch_seconds: float, load_seconds: float) -> float:
    """The time for all completions, with the model loaded once."""
    return load_seconds + budget.batches(batch) * batch_seconds


def share_of_budget(budget: Budget, row: Row) -> float:
    """The part of the budget that a measured setting takes; it fits up to 1."""
    assert row.loaded is not None
    needed = seconds_needed(budget, batch=row.setting.batch, batch_seconds=row.seconds, load_seconds=row.loaded.seconds)
    return needed / budget.seconds


@dataclasses.dataclass(frozen=True, kw_only=True)
class LongestOutput:
    """The most tokens that can be written in time."""

    tokens: int
    """0 where not even the first token fits."""

    is_longest_measured: bool
    """More may fit: longer outputs were not measured."""


def longest_output(budget: Budget, rows: Sequence[Row]) -> LongestOutput:
    """The longest output that fits, by interpolation between the measured lengths.

    `rows` are measured ones that differ in their output length only. The time to the first token is the time of an
    output of one token; beyond the longest measured output nothing is assumed.
    """
    first = rows[0]
    assert first.loaded is not None
    allowed = (budget.seconds - first.loaded.seconds) / budget.batches(first.setting.batch)
    points = dict(sorted((row.setting.output, row.seconds) for row in rows))
    points = {1: min(row.first_token_seconds for row in rows)} | points
    tokens, is_longest = interpolate_length(points, allowed)
    return LongestOutput(tokens=tokens, is_longest_measured=is_longest)


def interpolate_length(seconds_by_length: dict[int, float], allowed: float) -> tuple[int, bool]:
    """The largest whole length whose time, on straight lines between measured lengths (ascending), is `allowed` or
    less, and whether that is the last one measured; 0 if the first one takes longer."""
    lengths = list(seconds_by_length)
    # Noise may make a longer output seem faster; it needs at least the time of a shorter one.
    times = [max(list(seconds_by_length.values())[: index + 1]) for index in range(len(lengths))]
    if times[0] > allowed:
        return 0, False
    for index in range(1, len(lengths)):
        if times[index] > allowed:
            part = (allowed - times[index - 1]) / (times[index] - times[index - 1])
            return lengths[index - 1] + math.floor(part * (lengths[index] - lengths[index - 1]) + 1e-9), False
    return lengths[-1], True


def same_but_for_output(rows: Sequence[Row]) -> dict[tuple[str, int, int], list[Row]]:
    """The measured rows by name, batch and input."""
    found: dict[tuple[str, int, int], list[Row]] = {}
    for row in rows:
        if row.is_measured:
            found.setdefault((row.name, row.setting.batch, row.setting.input), []).append(row)
    return found
