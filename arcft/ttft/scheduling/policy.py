"""Decide which unit is next, and its steps and predictions.

First all units are predicted with the unadapted model, short ones first, so that most tests soon have an answer. Then
they are adapted to, long ones first: if memory runs out, it does so early, and no worker is left with a long unit at
the end. Failed units come last. With a budget, the remaining time goes to extra rounds.

Without a budget, a unit's steps and predictions depend on the config only, not on time or on other units.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

from arcft.ttft.ledger.ledger import Ledger, Record, UnitRow
from arcft.ttft.scheduling.budget import Budget, PendingUnit, Plan, fitted
from arcft.ttft.scheduling.cost_model import Costs
from arcft.ttft.scheduling.vote_margin import closeness
from arcft.ttft.units import ADAPT_ROUND, BASELINE_ROUND, Assignment, Key, Unit

EXTRA_ROUNDS = 3
"""Limit on a unit's extra rounds, whose benefit diminishes."""

_LIKE = 2.0
"""Units whose lengths differ by at most this factor can share a pass without much padding."""

_KNOWN = 1.5
"""The cost of a unit is considered known once a unit that is at most this factor shorter was trained."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnitDefaults:
    """What a unit gets without a budget."""

    steps: int
    predictions: int
    predict_before: int
    seed: int
    attempts: int
    """Answers submitted for a test."""


@dataclasses.dataclass
class RunningUnit:
    """A unit that a worker is working on."""

    worker: str
    assignment: Assignment
    cost: float
    """Expected seconds of work."""

    spent: float = 0.0
    """Seconds of work so far."""

    @property
    def left(self) -> float:
        """Expected seconds of work left."""
        return max(0.0, self.cost - self.spent)


class RunState:
    """The units of a run and their states."""

    def __init__(self, ledger: Ledger, units: Sequence[Unit]) -> None:
        self.units = {unit.name: unit for unit in units}
        self.records = {record.key: record for record in ledger.records()}
        self.running: dict[Key, RunningUnit] = {}
        self._ledger = ledger

    def refresh(self, key: Key) -> Record:
        """Reload a unit's record."""
        self.records[key] = self._ledger.find(key)
        return self.records[key]

    def queued(self, round: int, *, failed: bool | None = None) -> list[Record]:
        """The queued units of a round: with `failed` those that failed before, else the others."""
        records = (self.records.get((round, name)) for name in self.units)
        waiting = [record for record in records if record is not None and record.state == "queued"]
        return [record for record in waiting if failed is None or (record.attempts > 0) == failed]

    def state(self, round: int, name: str) -> str | None:
        """A unit's record in a round; None if it is not part of it."""
        record = self.records.get((round, name))
        return record.state if record else None

    def is_answered(self, name: str) -> bool:
        """Whether all tests of a unit have predictions of the unadapted model."""
        return self.state(BASELINE_ROUND, name) == "done"

    def promised(self) -> float:
        """Expected seconds of work left in the running units."""
        return sum(running.left for running in self.running.values())

    def beside(self, worker: str) -> list[float]:
        """The same for each unit of `worker`."""
        return [running.left for running in self.running.values() if running.worker == worker]

    def spent_before(self) -> float:
        """Seconds of work spent on predictions of the unadapted model, in all processes."""
        running = [running.spent for key, running in self.running.items() if key[0] == BASELINE_ROUND]
        records = [
            each for each in self.records.values() if each.round == BASELINE_ROUND and each.key not in self.running
        ]
        return sum(running) + sum(record.predict_seconds for record in records)


class Chooser:
    """Chooses the next unit; its only state is a cache of vote margins."""

    def __init__(
        self, ledger: Ledger, run: RunState, defaults: UnitDefaults, budget: Budget | None, costs: Costs
    ) -> None:
        self._ledger, self._run, self._defaults, self._budget, self._costs = ledger, run, defaults, budget, costs
        self._closeness: dict[str, tuple[float, float] | None] = {}

    def choose(self, near: int | None, worker: str = "") -> tuple[Assignment, float] | None:
        """The next assignment, of a length (tokens) close to `near` if possible, and its expected seconds; or None.

        `worker` is the worker that it is for.
        """
        run = self._run
        before = sorted(run.queued(BASELINE_ROUND, failed=False), key=lambda record: record.length)
        main = sorted(run.queued(ADAPT_ROUND, failed=False), key=lambda record: -record.length)
        if near is not None:
            main.sort(key=lambda record: abs(math.log(max(record.length, 1) / max(near, 1))))
        retries = [*run.queued(BASELINE_ROUND, failed=True), *run.queued(ADAPT_ROUND, failed=True)]
        if self._budget is None:
            waiting = [*before, *main, *retries]
            return self._assignment(*waiting[0].key, None) if waiting else None
        probe = self._probe(main)
        if probe is not None:
            # The cost of the first steps decides the others' plans, so they wait for it.
            lengths = [running.assignment.unit.length for key, running in run.running.items() if key[0] == ADAPT_ROUND]
            main = [] if any(length > self._costs.longest_step for length in lengths) else [probe]
        candidates = [*before[:1], *main[:1]]
        # If the first does not fit, a unit without any answer may still get one, or the shortest may fit.
        candidates += [record for record in main if not run.is_answered(record.name)][:1]
        candidates += sorted(main, key=lambda record: record.length)[:1]
        candidates += retries
        candidates += [record for record in before if run.state(ADAPT_ROUND, record.name) == "failed"]
        for record in candidates:
            plan = self._plan(self._budget, record, worker, probing=record is probe)
            if plan is not None:
                return self._assignment(*record.key, plan)
        return None if run.queued(ADAPT_ROUND) else self._further(self._budget, near, worker)

    def votes_changed(self, name: str) -> None:
        """Forget the cached vote margin of a unit, whose predictions changed."""
        self._closeness.pop(name, None)

    def seconds_left(self, workers: int) -> float | None:
        """Seconds until all units are adapted to, or until the budget ends; None while costs are unknown."""
        fit, left = fitted(self._costs), None
        if fit is not None:
            needs = [self._pending(record.name) for record in self._run.queued(ADAPT_ROUND)]
            left = (
                fit.seconds(needs, self._defaults.steps, self._defaults.predictions) + self._run.promised()
            ) / workers
        if self._budget is None:
            return left
        return min(self._budget.left(1), left if left is not None else math.inf)

    def _probe(self, main: Sequence[Record]) -> Record | None:
        """A unit whose cost is measured to predict the others': first a short one, then one of medium length."""
        ordered = sorted(main, key=lambda record: record.length)
        if not ordered or not self._costs.longest_step:
            return ordered[0] if ordered else None
        middle = ordered[len(ordered) // 2]
        return middle if middle.length > _KNOWN * self._costs.longest_step else None

    def _plan(self, budget: Budget, record: Record, worker: str, *, probing: bool) -> Plan | None:
        run, defaults = self._run, self._defaults
        if record.round == BASELINE_ROUND:
            return budget.before(
                run.units[record.name],
                self._costs,
                predictions=defaults.predict_before,
                spent=run.spent_before(),
                promised=run.promised(),
                capped=run.state(ADAPT_ROUND, record.name) != "failed",
            )
        return budget.plan(
            self._pending(record.name),
            [self._pending(other.name) for other in run.queued(ADAPT_ROUND) if other.name != record.name],
            self._costs,
            steps=defaults.steps,
            predictions=defaults.predictions,
            promised=run.promised(),
            num_running=len(run.running),
            beside=run.beside(worker),
            probing=probing,
        )

    def _further(self, budget: Budget, near: int | None, worker: str) -> tuple[Assignment, float] | None:
        """An extra round for the unit with the closest votes; every unit gets its second round before any gets a third.

        Units of a length similar to the running ones come first, because padding would waste the remaining time.
        """
        found = []
        for place, name in enumerate(self._run.units):
            round = self._next_round(name)
            close = None if round is None else self._close(name)
            if round is not None and close is not None:
                length = self._run.units[name].length
                is_unlike = near is not None and max(length, near) > _LIKE * min(length, near)
                found.append((round, is_unlike, close, place, name))
        for round, _, _, _, name in sorted(found):
            unit = self._run.units[name]
            plan = budget.extra(
                unit,
                self._costs,
                steps=self._defaults.steps,
                predictions=self._defaults.predictions,
                promised=self._run.promised(),
                num_running=len(self._run.running),
                beside=self._run.beside(worker),
            )
            if plan is not None:
                return self._assignment(round, name, plan)
        return None

    def _next_round(self, name: str) -> int | None:
        """The next extra round of a unit."""
        if self._run.state(ADAPT_ROUND, name) != "done":
            return None
        for round in range(ADAPT_ROUND + 1, ADAPT_ROUND + 1 + EXTRA_ROUNDS):
            state = self._run.state(round, name)
            if state != "done":
                return round if state in (None, "queued") else None
        return None

    def _close(self, name: str) -> tuple[float, float] | None:
        if name not in self._closeness:
            tasks = [task.id for task in self._run.units[name].problems]
            predictions = [each for id in tasks for each in self._ledger.current_predictions(id)]
            self._closeness[name] = closeness(predictions, self._defaults.attempts)
        return self._closeness[name]

    def _assignment(self, round: int, name: str, plan: Plan | None) -> tuple[Assignment, float]:
        run, defaults = self._run, self._defaults
        record = run.records.get((round, name))
        steps, predictions = defaults.steps, defaults.predictions
        if round == BASELINE_ROUND:
            steps, predictions = 0, defaults.predict_before
        if plan is not None:
            steps, predictions = plan.steps, plan.predictions
        earlier = [run.records.get((each, name)) for each in range(ADAPT_ROUND, round)]
        first = max((each.first_prediction + each.num_predictions for each in earlier if each), default=0)
        adapter = record.adapter if record and record.adapter and Path(record.adapter).is_dir() else None
        # Without its adapter a unit is adapted again, and its predictions are made again with the new adapter.
        keeps = adapter is not None or (steps == 0 and record is not None and record.planned_steps == 0)
        assignment = Assignment(
            unit=run.units[name],
            round=round,
            steps=steps,
            first_prediction=first,
            predictions=predictions,
            # Each extra round has other examples.
            seed=defaults.seed + max(0, round - ADAPT_ROUND),
            attempt=record.attempts if record else 0,
            deadline=plan.deadline if plan else None,
            done=self._ledger.predicted((round, name)) if keeps else frozenset(),
            adapter=adapter,
        )
        return assignment, plan.cost if plan else 0.0

    def _pending(self, name: str) -> PendingUnit:
        return PendingUnit(self._run.units[name], self._run.is_answered(name))


def row_of(round: int, unit: Unit) -> UnitRow:
    """A unit as a row for the ledger."""
    return round, unit.name, [task.id for task in unit.problems], unit.length
