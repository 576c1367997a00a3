"""Divide a run's time: how many steps and predictions each unit gets, so that all units fit.

Every unit gets the same number of steps and predictions, so its time is proportional to its tokens. The numbers are
planned again for each unit that starts, from the measured cost of earlier ones. When the run is late, units get fewer
steps, down to a floor, then fewer predictions, down to one, then still fewer steps. If even that does not fit, units
that already have predictions of the unadapted model wait, and the others get one prediction each.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence

from arcft.ttft.scheduling.cost_model import Costs, Line, count_tests
from arcft.ttft.units import Unit

SHARE_BEFORE = 0.1
"""Share of the time for predictions with the unadapted model."""

FLOOR_SHARE = 0.25
FLOOR_STEPS = 32
"""Predictions are cut before steps fall below FLOOR_SHARE of those requested, or below FLOOR_STEPS if that is less: a
request for a hundred thousand steps means as many as there is time for."""

LEAST_STEPS = 4
"""Adapting with fewer steps is not worthwhile."""

# Time for writing results and report, and for the last pass, which can't be interrupted.
_RESERVE = 0.02
_RESERVE_SECONDS = 20.0
_MOST_RESERVE = 0.05

# Costs vary from unit to unit, so some time is left for units that cost more than planned.
_PLANNED = 0.95

# Once costs are known, a unit may take this multiple of its share before its deadline.
_SLACK = 2.0


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a unit may do."""

    steps: int
    predictions: int
    deadline: float
    """Seconds since the epoch."""

    cost: float
    """Expected seconds of work."""


@dataclasses.dataclass(frozen=True, eq=False)
class PendingUnit:
    """A queued unit."""

    unit: Unit
    answered: bool
    """Whether it has predictions of the unadapted model."""


class Budget:
    """`total_seconds` for a run, of which `used` have passed (`Ledger.elapsed`), in this or earlier processes.

    The work is done by `workers`, each with up to `slots` units side by side.
    """

    def __init__(
        self,
        total_seconds: float,
        used: float = 0.0,
        clock: Callable[[], float] = time.time,
        *,
        workers: int = 1,
        slots: int = 1,
    ) -> None:
        self.total = total_seconds
        self.workers = workers
        self.slots = slots
        self._clock = clock
        reserve = _RESERVE * total_seconds + min(_RESERVE_SECONDS, _MOST_RESERVE * total_seconds)
        self.end = clock() + total_seconds - used - reserve
        """Deadline of the last prediction, in seconds since the epoch."""
        self.over = self.end + reserve
        """When the whole time is used, in seconds since the epoch."""

    def left(self, units: int) -> float:
        """Seconds of work left if only `units` units remain; a unit occupies a single worker."""
        return max(0.0, self.end - self._clock()) * min(self.workers, max(units, 1))

    def plan(
        self,
        pending: PendingUnit,
        others: Sequence[PendingUnit],
        costs: Costs,
        *,
        steps: int,
        predictions: int,
        promised: float = 0.0,
        num_running: int = 0,
        beside: Sequence[float] = (),
        probing: bool = False,
    ) -> Plan | None:
        """The plan for `pending`, with at most `steps` and `predictions`; None if it should not start now.

        `others` are queued too. The `num_running` running units will take `promised` more seconds of work; those on the
        same worker take `beside`, in seconds each. Before costs are known, or with `probing`, the unit just gets its
        share of the time.
        """
        group = [pending, *others]
        available = self.left(len(group) + num_running) - promised
        if available <= 0:
            return None
        fit = None if probing else fitted(costs)
        # Other units in the worker's slots take wall time meanwhile.
        side_by_side = min(self.slots, 1 + (len(others) + num_running) // self.workers)
        if fit is None:
            share = available / len(group)
            if costs.prediction is not None:
                each = costs.prediction(pending.unit.length) * count_tests(pending.unit)
                predictions = max(1, _quotient(share / 2, each, predictions))
            return self._due(steps, predictions, share, share * side_by_side)
        chosen = fit.most(group, _PLANNED * available, steps, predictions)
        alone = self.left(1) - sum(beside)
        if chosen is not None and fit.seconds([pending], *chosen) > alone:
            # There is enough time in total, but not on this worker.
            chosen = fit.most([pending], alone, *chosen)
        if chosen is None and not pending.answered:
            # One prediction: a unit without any is worth more than adapting another.
            chosen = (0, 1) if fit.seconds([pending], 0, 1) <= available else None
        elif chosen is None and all(other.answered for other in others):
            # Not enough time for all, so adapt some of them properly.
            chosen = fit.most([pending], min(available, alone), _floor(steps), 1)
        if chosen is None:
            return None
        cost, needed = fit.seconds([pending], *chosen), fit.seconds(group, *chosen)
        share, mean = available * cost / max(needed, cost, 1e-9), available / len(group)
        to_come = max(0, side_by_side - 1 - len(beside))
        company = sum(beside) + to_come * max(cost, mean)
        seconds = _SLACK * (max(cost, share) + company) + max(0.0, available - needed) / 2
        return self._due(*chosen, cost, seconds)

    def extra(
        self,
        unit: Unit,
        costs: Costs,
        *,
        steps: int,
        predictions: int,
        promised: float,
        num_running: int,
        beside: Sequence[float],
    ) -> Plan | None:
        """Another round for a finished unit: as much again, or fewer steps; None if there is no time."""
        fit = fitted(costs)
        if fit is None:
            return None
        available = self.left(1 + num_running) - promised
        if num_running:
            # Running units must not be delayed by it.
            available = min(available / 2, self.left(1) - sum(beside))
        pending = PendingUnit(unit, True)
        chosen = fit.most([pending], _PLANNED * available, steps, predictions)
        # Fewer predictions than before would hardly change the vote.
        if chosen is None or chosen[1] < predictions:
            return None
        return self._due(*chosen, fit.seconds([pending], *chosen), max(0.0, self.end - self._clock()))

    def before(
        self, unit: Unit, costs: Costs, *, predictions: int, spent: float, promised: float, capped: bool
    ) -> Plan | None:
        """Predictions with the unadapted model, on which `spent` seconds of work were used; None if there is no time.

        `capped` applies SHARE_BEFORE; it is False for a unit that would otherwise have no prediction at all.
        """
        allowance = self.total * SHARE_BEFORE * self.workers - spent if capped else self.left(1)
        available = min(allowance, self.left(self.workers)) - promised
        line = costs.prediction_before
        cost = 0.0 if line is None else line(unit.length) * count_tests(unit) * predictions
        if available <= 0 or cost > available:
            return None
        return self._due(0, predictions, cost, available)

    def _due(self, steps: int, predictions: int, cost: float, seconds: float) -> Plan:
        return Plan(steps, predictions, min(self.end, self._clock() + seconds), cost)


@dataclasses.dataclass(frozen=True)
class Fit:
    """Predicted cost of units, fitted to measured ones; see Costs."""

    step: Line
    prediction: Line
    overhead: float

    def seconds(self, group: Sequence[PendingUnit], steps: int, predictions: int) -> float:
        """Seconds for `steps` and `predictions` of each unit in `group`."""
        return self._fixed(group) + steps * self._steps(group) + predictions * self._predictions(group)

    def most(
        self, group: Sequence[PendingUnit], available: float, steps: int, predictions: int
    ) -> tuple[int, int] | None:
        """The most steps and predictions that all of `group` can have within `available` seconds; None if not even the
        minimum fits."""
        floor = _floor(steps)
        rest = available - self._fixed(group)
        affordable = _quotient(rest - predictions * self._predictions(group), self._steps(group), steps)
        if affordable >= floor:
            return affordable, predictions
        affordable = _quotient(rest - floor * self._steps(group), self._predictions(group), predictions)
        if affordable >= 1:
            return floor, affordable
        affordable = _quotient(rest - self._predictions(group), self._steps(group), floor)
        return (affordable, 1) if affordable >= min(LEAST_STEPS, floor) else None

    def _fixed(self, group: Sequence[PendingUnit]) -> float:
        return self.overhead * len(group)

    def _steps(self, group: Sequence[PendingUnit]) -> float:
        return sum(self.step(pending.unit.length) for pending in group)

    def _predictions(self, group: Sequence[PendingUnit]) -> float:
        return sum(self.prediction(pending.unit.length) * count_tests(pending.unit) for pending in group)


def fitted(costs: Costs) -> Fit | None:
    """The fit to the costs so far; None until both a step and a prediction were measured."""
    step, prediction = costs.step, costs.prediction
    return None if step is None or prediction is None else Fit(step, prediction, costs.overhead)


def _quotient(seconds: float, each: float, most: int) -> int:
    """How many items of `each` seconds fit into `seconds`, at most `most`."""
    if seconds >= each * most:
        return most
    return int(seconds // each) if seconds > 0 else 0


def _floor(steps: int) -> int:
    return max(1, min(FLOOR_STEPS, int(FLOOR_SHARE * steps)))
