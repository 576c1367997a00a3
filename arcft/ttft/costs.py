"""What steps and predictions cost, learned from those that were done."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from arcft.ttft.units import BEFORE, Event, Finished, Predicted, Stepped, Unit

# What a step cost at the beginning, or with another number of slots, is forgotten over about so many.
_MEMORY_STEPS = 200
_MEMORY_PREDICTED = 30

_WINDOW_SECONDS = 60.0


class _Rate:
    """Seconds for each unit of work, over the last `memory` observations or so."""

    def __init__(self, memory: int) -> None:
        self._keep = 1 - 1 / memory
        self._seconds = 0.0
        self._work = 0.0

    def observe(self, seconds: float, work: float) -> None:
        self._seconds = self._seconds * self._keep + seconds
        self._work = self._work * self._keep + work

    @property
    def value(self) -> float | None:
        return self._seconds / self._work if self._work else None


class Costs:
    """Seconds of work, in proportion to a unit's length: the tokens of its examples and prompts are.

    A step's and a prediction's seconds are a unit's share of a pass, so those of the units that a worker has side by
    side add up to the time on the clock. What the clock shows beyond them (putting an adapter in place, merging,
    saving) is shared by the units.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._step = _Rate(_MEMORY_STEPS)
        # Few prompts in a pass cost more each than many, so those made before adapting are kept apart.
        self._predicted = _Rate(_MEMORY_PREDICTED)
        self._predicted_before = _Rate(_MEMORY_PREDICTED)
        self._idle = 0.0
        self._last: dict[str, float] = {}
        self._finished = 0
        self._recent: deque[tuple[float, int]] = deque()

    def observe(self, event: Event, unit: Unit, worker: str) -> None:
        """Learn from what `worker` has done for `unit`."""
        now = self._clock()
        seconds = 0.0
        if isinstance(event, Stepped | Predicted):
            seconds = event.seconds
            self._recent.append((now, event.tokens))
        is_before = event.key[0] == BEFORE
        if isinstance(event, Stepped):
            self._step.observe(seconds, unit.length)
        elif isinstance(event, Predicted):
            rate = self._predicted_before if is_before else self._predicted
            rate.observe(seconds, unit.length * len(event.predictions))
        if not is_before:
            # Units side by side report one pass together: the first of them seems to have idled, the others make it up.
            self._idle += now - self._last.get(worker, now - seconds) - seconds
            self._finished += isinstance(event, Finished)
        self._last[worker] = now

    def pause(self, worker: str) -> None:
        """Take note that `worker` has nothing to do, or is no more: the time until its next event is no unit's."""
        self._last.pop(worker, None)

    @property
    def step(self) -> float | None:
        """Seconds of an optimizer step for each token of the unit's length; None before the first."""
        return self._step.value

    @property
    def prediction(self) -> float | None:
        """Seconds of a prediction for each token of the unit's length; None before the first."""
        return self._predicted.value if self._predicted.value is not None else self._predicted_before.value

    @property
    def prediction_before(self) -> float | None:
        """The same for predictions with the model as it was."""
        return self._predicted_before.value

    @property
    def overhead(self) -> float:
        """Seconds of a unit beside its steps and predictions."""
        return max(0.0, self._idle) / self._finished if self._finished else 0.0

    def tokens_per_second(self) -> float:
        """Trained, read and produced, over the last minute."""
        now = self._clock()
        while self._recent and self._recent[0][0] < now - _WINDOW_SECONDS:
            self._recent.popleft()
        if not self._recent:
            return 0.0
        # The first of them says when counting began, and not how long its own tokens took.
        span = now - self._recent[0][0]
        return sum(tokens for _, tokens in list(self._recent)[1:]) / span if span > 0 else 0.0


def count_tests(unit: Unit) -> int:
    """Tests of all its tasks."""
    return sum(len(task.test) for task in unit.tasks)
