"""A run's time, shared out: how many steps and predictions a unit can have, so that all of them get theirs.

Every unit gets the same number of steps and predictions, so each gets time in proportion to its tokens. They are
planned anew for each unit that is handed out, from what the others have cost: late, units get fewer steps, down to a
floor, then fewer predictions, down to one, then fewer steps still. Where even that is too much, units that the model as
it was has answered wait, and the others get one prediction each.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence

from arcft.ttft.scheduling.cost_model import Costs, Line, count_tests
from arcft.ttft.units import Unit

SHARE_BEFORE = 0.1
"""Of the time, for predictions with the model as it was."""

FLOOR_SHARE = 0.25
FLOOR_STEPS = 32
"""Predictions are given up for this share of the steps, but for no more than so many: who asks for a hundred thousand
wants as many as there is time for."""

LEAST_STEPS = 4
"""Fewer than these are not worth adapting for."""

# For writing results and report, and because the last pass can't be stopped in the middle.
_RESERVE = 0.02
_RESERVE_SECONDS = 20.0
_MOST_RESERVE = 0.05

# Costs vary from unit to unit: some of the time is left for those that cost more than planned.
_PLANNED = 0.95

# A unit may take so many times its share before it has to hand in what it has, once it is known what things cost.
_SLACK = 2.0


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a unit is given."""

    steps: int
    predictions: int
    deadline: float
    """Seconds since the epoch."""

    cost: float
    """Seconds of work that it is expected to take."""


@dataclasses.dataclass(frozen=True, eq=False)
class PendingUnit:
    """A unit that waits."""

    unit: Unit
    answered: bool
    """Whether it has predictions of the model as it was."""


class Budget:
    """`total_seconds` for a run of which `used` are gone by now (`Ledger.elapsed`), whatever process took them.

    `workers` do its work, each with up to `slots` units side by side.
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
        """When the last prediction should be made, in seconds since the epoch."""

    def left(self, units: int) -> float:
        """Seconds of work till the end, if `units` are all there is to do: a unit occupies one worker only."""
        return max(0.0, self.end - self._clock()) * min(self.workers, max(units, 1))

    def plan(
        self,
        need: PendingUnit,
        others: Sequence[PendingUnit],
        costs: Costs,
        *,
        steps: int,
        predictions: int,
        promised: float = 0.0,
        in_hand: int = 0,
        beside: Sequence[float] = (),
        probing: bool = False,
    ) -> Plan | None:
        """What `need` gets of at most so many steps and predictions; None: nothing, for now.

        `others` wait too; what the `in_hand` units that are being worked on will still take is `promised`, in seconds
        of work; those among them that the same worker has take `beside`. Before costs are known, or with `probing`, it
        gets its share of the time, whatever it does with it.
        """
        group = [need, *others]
        available = self.left(len(group) + in_hand) - promised
        if available <= 0:
            return None
        fit = None if probing else fitted(costs)
        # The worker's slots fill up: what it does meanwhile takes time on the clock.
        side_by_side = min(self.slots, 1 + (len(others) + in_hand) // self.workers)
        if fit is None:
            share = available / len(group)
            if costs.prediction is not None:
                each = costs.prediction(need.unit.length) * count_tests(need.unit)
                predictions = max(1, _quotient(share / 2, each, predictions))
            return self._due(steps, predictions, share, share * side_by_side)
        chosen = fit.most(group, _PLANNED * available, steps, predictions)
        alone = self.left(1) - sum(beside)
        if chosen is not None and fit.seconds([need], *chosen) > alone:
            # There is time, but not with this worker.
            chosen = fit.most([need], alone, *chosen)
        if chosen is None and not need.answered:
            # One prediction; whoever waits unanswered is worth more than any adapting.
            chosen = (0, 1) if fit.seconds([need], 0, 1) <= available else None
        elif chosen is None and all(other.answered for other in others):
            # Too little for all: then some of them, properly.
            chosen = fit.most([need], min(available, alone), _floor(steps), 1)
        if chosen is None:
            return None
        cost, needed = fit.seconds([need], *chosen), fit.seconds(group, *chosen)
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
        in_hand: int,
        beside: Sequence[float],
    ) -> Plan | None:
        """What a unit that is done can have once more: as much again, or fewer steps; None if there is no time."""
        fit = fitted(costs)
        if fit is None:
            return None
        available = self.left(1 + in_hand) - promised
        if in_hand:
            # Those must not come late for it.
            available = min(available / 2, self.left(1) - sum(beside))
        need = PendingUnit(unit, True)
        chosen = fit.most([need], _PLANNED * available, steps, predictions)
        # Fewer predictions than the votes so far would hardly change them.
        if chosen is None or chosen[1] < predictions:
            return None
        return self._due(*chosen, fit.seconds([need], *chosen), max(0.0, self.end - self._clock()))

    def before(
        self, unit: Unit, costs: Costs, *, predictions: int, spent: float, promised: float, capped: bool
    ) -> Plan | None:
        """Predictions with the model as it is, which have taken `spent` seconds of work; None if there is no time.

        Not `capped` by SHARE_BEFORE is a unit that would have no prediction at all.
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
    """What units take, from what others took; see Costs."""

    step: Line
    prediction: Line
    overhead: float

    def seconds(self, group: Sequence[PendingUnit], steps: int, predictions: int) -> float:
        """What so many steps and predictions of each take."""
        return self._fixed(group) + steps * self._steps(group) + predictions * self._predictions(group)

    def most(
        self, group: Sequence[PendingUnit], available: float, steps: int, predictions: int
    ) -> tuple[int, int] | None:
        """Steps and predictions that all of `group` can have, at most so many; None if not even the least of them."""
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
        return sum(self.step(need.unit.length) for need in group)

    def _predictions(self, group: Sequence[PendingUnit]) -> float:
        return sum(self.prediction(need.unit.length) * count_tests(need.unit) for need in group)


def fitted(costs: Costs) -> Fit | None:
    """What is known by now; None before both a step and a prediction were made."""
    step, prediction = costs.step, costs.prediction
    return None if step is None or prediction is None else Fit(step, prediction, costs.overhead)


def _quotient(seconds: float, each: float, most: int) -> int:
    """How many that take `each` go into `seconds`, at most `most`."""
    if seconds >= each * most:
        return most
    return int(seconds // each) if seconds > 0 else 0


def _floor(steps: int) -> int:
    return max(1, min(FLOOR_STEPS, int(FLOOR_SHARE * steps)))
