"""Estimate the cost of steps and predictions from finished ones."""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Callable

from arcft.ttft.units import BASELINE_ROUND, Event, Finished, Predicted, Started, Stepped, Unit

# Observations are forgotten over about this many, so that early costs, or those with other slots, fade.
_MEMORY_STEPS = 1000
_MEMORY_PREDICTIONS = 200

# With a smaller relative spread of lengths, the cost per token can't be estimated.
_LEAST_SPREAD = 0.05

_WINDOW_SECONDS = 60.0


@dataclasses.dataclass(frozen=True)
class Line:
    """Seconds as a linear function of a unit's length in tokens."""

    fixed: float
    per_token: float

    def __call__(self, length: int) -> float:
        return self.fixed + self.per_token * length


class _Fitted:
    """A least-squares line through the observations, weighted towards the latest `memory` or so.

    A short step takes a GPU as long as a longer one, but a CPU takes time in proportion to the tokens; assuming either
    would starve short or long units.
    """

    def __init__(self, memory: int) -> None:
        self._keep = 1 - 1 / memory
        self._sums = [0.0] * 5

    def observe(self, length: int, seconds: float, count: int = 1) -> None:
        """Record that `count` items of `length` tokens took `seconds` in total."""
        if count and length > 0:
            each = seconds / count
            terms = (1.0, length, each, length * length, length * each)
            kept = self._keep**count
            self._sums = [kept * total + count * term for total, term in zip(self._sums, terms, strict=True)]

    @property
    def line(self) -> Line | None:
        weight, length, seconds, square, product = self._sums
        if not weight:
            return None
        length, seconds = length / weight, seconds / weight
        variance = square / weight - length * length
        proportional = Line(0.0, seconds / length)
        if variance < (_LEAST_SPREAD * length) ** 2:
            return proportional
        slope = max(0.0, (product / weight - length * seconds) / variance)
        fixed = seconds - slope * length
        return Line(fixed, slope) if fixed >= 0 else proportional


class Costs:
    """Seconds of work of a unit, by its length.

    The seconds of a step or prediction are the unit's share of a pass, so they add up to wall time over the units that
    a worker runs side by side. Remaining wall time (loading an adapter, merging, saving) is divided among the units.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._step = _Fitted(_MEMORY_STEPS)
        # Small batches cost more per prompt, so predictions before adapting are tracked separately.
        self._predicted = _Fitted(_MEMORY_PREDICTIONS)
        self._predicted_before = _Fitted(_MEMORY_PREDICTIONS)
        self._warm: set[tuple[str, type[Event]]] = set()
        self._idle = 0.0
        self._last: dict[str, float] = {}
        self._ends = 0
        self.longest_step = 0
        """Length of the longest unit with a timed step."""
        self._recent: deque[tuple[float, int]] = deque()

    def observe(self, event: Event, unit: Unit, worker: str) -> None:
        """Update the estimates with an event of `unit` on `worker`."""
        now = self._clock()
        seconds = 0.0
        is_before = event.key[0] == BASELINE_ROUND
        if isinstance(event, Stepped | Predicted):
            seconds = event.seconds
            self._recent.append((now, event.tokens))
            # A worker's first pass of each type includes one-off costs.
            if (worker, type(event)) in self._warm:
                self._learn(event, unit, is_before)
            self._warm.add((worker, type(event)))
        if not is_before:
            # Units side by side report one pass together: the first seems to have idled, the others compensate.
            self._idle += now - self._last.get(worker, now - seconds) - seconds
            # Count starts and ends, so that time spent at starts is not attributed to the few units that have finished.
            self._ends += isinstance(event, Started | Finished)
        self._last[worker] = now

    def pause(self, worker: str) -> None:
        """Note that `worker` is idle or gone: the time until its next event belongs to no unit."""
        self._last.pop(worker, None)

    def _learn(self, event: Stepped | Predicted, unit: Unit, is_before: bool) -> None:
        if isinstance(event, Stepped):
            self._step.observe(unit.length, event.seconds)
            self.longest_step = max(self.longest_step, unit.length)
        else:
            kind = self._predicted_before if is_before else self._predicted
            kind.observe(unit.length, event.seconds, event.prompts)

    @property
    def step(self) -> Line | None:
        """Seconds of an optimizer step; None before the first."""
        return self._step.line

    @property
    def prediction(self) -> Line | None:
        """Seconds of a prediction; None before the first."""
        return self._predicted.line or self._predicted_before.line

    @property
    def prediction_before(self) -> Line | None:
        """Seconds of a prediction with the unadapted model."""
        return self._predicted_before.line

    @property
    def overhead(self) -> float:
        """Seconds of a unit beside its steps and predictions."""
        return 2 * max(0.0, self._idle) / self._ends if self._ends else 0.0

    def tokens_per_second(self) -> float:
        """Trained, read and produced, over the last minute."""
        now = self._clock()
        while self._recent and self._recent[0][0] < now - _WINDOW_SECONDS:
            self._recent.popleft()
        if not self._recent:
            return 0.0
        # The first entry only marks the start of the window; its own tokens took an unknown time.
        span = now - self._recent[0][0]
        return sum(tokens for _, tokens in list(self._recent)[1:]) / span if span > 0 else 0.0


def count_tests(unit: Unit) -> int:
    """Number of tests of all its problems."""
    return sum(len(problem.answers) for problem in unit.problems)
