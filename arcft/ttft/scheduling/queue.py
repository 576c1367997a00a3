"""Assigns units and records their events, each in the ledger before anything else happens."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Sequence

from arcft.scoring.predictions import Prediction
from arcft.ttft.ledger.ledger import MAX_ATTEMPTS, Ledger
from arcft.ttft.scheduling.budget import Budget
from arcft.ttft.scheduling.cost_model import Costs
from arcft.ttft.scheduling.patience import overdue
from arcft.ttft.scheduling.policy import Chooser, RunningUnit, RunState, UnitDefaults, row_of
from arcft.ttft.units import (
    ADAPT_ROUND,
    BASELINE_ROUND,
    Adapted,
    Assignment,
    Event,
    Failed,
    Finished,
    Lowered,
    Predicted,
    Stepped,
    Unit,
)

_HEARTBEAT_SECONDS = 5.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progress:
    """Counts for the progress line; units of the adapting round unless stated otherwise."""

    done: int
    failed: int
    total: int
    predicted_before: int
    """Units that have predictions of the unadapted model."""

    extra: int
    """Finished units of extra rounds."""

    tokens_per_second: float
    """Tokens read, trained on and generated, averaged over the last minute."""

    seconds_left: float | None
    """Until the end of the adapting round, or of the budget if that is sooner; None while costs are unknown."""


class Queue:
    """Assigns units and records events; thread-safe. There is one per run, in the process that holds the run's lock."""

    changed: bool
    """Whether there are predictions that are not in the submission yet; whoever writes one sets it to False."""

    def __init__(
        self,
        ledger: Ledger,
        units: Sequence[Unit],
        *,
        steps: int,
        predictions: int,
        predict_before: int,
        seed: int,
        attempts: int,
        budget: Budget | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`steps`: ttft.max_steps; `predictions`: inference.predictions_per_test; `seed`: ttft.seed;
        `attempts`: answers submitted for a test.

        Adds the units to the ledger, unless they are there, and requeues the running units of a dead process. Raises
        LedgerError, see Ledger.fill.
        """
        self._ledger, self._budget, self._clock = ledger, budget, clock
        rounds = [BASELINE_ROUND, ADAPT_ROUND] if predict_before else [ADAPT_ROUND]
        ledger.fill([row_of(round, unit) for round in rounds for unit in units])
        ledger.recover()
        self._run = RunState(ledger, units)
        self._costs = Costs(clock)
        defaults = UnitDefaults(
            steps=steps, predictions=predictions, predict_before=predict_before, seed=seed, attempts=attempts
        )
        self._chooser = Chooser(ledger, self._run, defaults, budget, self._costs)
        self._stopped = False
        self._last_write = clock()
        self._lock = threading.RLock()
        self.changed = any(record.starts for record in self._run.records.values())

    def pull(self, worker: str, near: int | None = None) -> Assignment | None:
        """The next unit for `worker`, preferably of a length (tokens) close to `near`; None if there is none for now.

        There may be one after the next event, because a unit failed or took less time than planned.
        """
        with self._lock:
            while not self._stopped:
                chosen = self._chooser.choose(near, worker)
                if chosen is None:
                    break
                assignment, cost = chosen
                if assignment.round > ADAPT_ROUND:
                    self._ledger.add(row_of(assignment.round, assignment.unit))
                claimed = self._ledger.claim(
                    assignment.key,
                    worker,
                    steps=assignment.steps,
                    first_prediction=assignment.first_prediction,
                    predictions=assignment.predictions,
                    seed=assignment.seed,
                )
                self._run.refresh(assignment.key)
                if claimed:
                    self._run.running[assignment.key] = RunningUnit(worker, assignment, cost)
                    return assignment
            if not any(running.worker == worker for running in self._run.running.values()):
                self._costs.pause(worker)
            return None

    def record(self, event: Event, worker: str) -> None:
        """Record an event of `worker`; ignored if the unit is not, or no longer, assigned to it."""
        with self._lock:
            if isinstance(event, Lowered):
                self._ledger.note("recipe", event.reason, {"recipe": event.recipe})
                return
            running = self._run.running.get(event.key)
            if running is None or running.worker != worker:
                return
            self._costs.observe(event, running.assignment.unit, worker)
            if isinstance(event, Stepped | Predicted):
                running.spent += event.seconds
            if isinstance(event, Stepped):
                # Steps are not written to disk; a sign of life is, from time to time.
                if self._clock() - self._last_write >= _HEARTBEAT_SECONDS:
                    self._ledger.heartbeat()
                    self._last_write = self._clock()
                return
            again = isinstance(event, Failed) and event.retry and self._has_another_try(running.assignment)
            kept = self._ledger.record(event, worker, again=again)
            self._last_write = self._clock()
            self._run.refresh(event.key)
            self.changed |= isinstance(event, Adapted | Predicted | Failed)
            if isinstance(event, Finished | Failed) or not kept:
                del self._run.running[event.key]
                self._chooser.votes_changed(event.key[1])

    def requeue(self, worker: str) -> None:
        """Requeue the running units of `worker`, which has ended. After `stop` that does not count as a death."""
        with self._lock:
            self._ledger.requeue(worker, died=not self._stopped)
            self._costs.pause(worker)
            for key in [key for key, running in self._run.running.items() if running.worker == worker]:
                del self._run.running[key]
                self._run.refresh(key)

    def overdue(self, worker: str, quiet: float) -> str | None:
        """Why `worker`, which has sent nothing for `quiet` seconds, should be ended; None if it may go on."""
        with self._lock:
            running = [each for each in self._run.running.values() if each.worker == worker]
            return overdue(running, self._costs, self._budget, now=self._clock(), quiet=quiet)

    def note(self, kind: str, text: str) -> None:
        """Record a remark about the engine or its workers in the ledger."""
        self._ledger.note(kind, text)

    def expect_workers(self, count: int) -> None:
        """Tell the budget how many workers run in parallel."""
        with self._lock:
            if self._budget is not None:
                self._budget.workers = count

    def stop(self) -> None:
        """Assign no more units in this process."""
        with self._lock:
            if not self._stopped:
                self._stopped = True
                self._ledger.stopping()

    @property
    def done(self) -> bool:
        """Whether nothing is running, and no queued unit fits the budget. False after a `stop` that left units."""
        with self._lock:
            return not self._run.running and self._chooser.choose(None) is None

    def progress(self) -> Progress:
        """The progress of the run."""
        with self._lock:
            records = list(self._run.records.values())
            main = [record.state for record in records if record.round == ADAPT_ROUND]
            return Progress(
                done=main.count("done"),
                failed=main.count("failed"),
                total=len(main),
                predicted_before=sum(record.state == "done" for record in records if record.round == BASELINE_ROUND),
                extra=sum(record.state == "done" for record in records if record.round > ADAPT_ROUND),
                tokens_per_second=self._costs.tokens_per_second(),
                seconds_left=self._chooser.seconds_left(self._count_workers()),
            )

    def predictions(self) -> list[Prediction]:
        """The current predictions: for each test those after adapting, or else those before; in the order of tasks."""
        return self._ledger.current_predictions()

    def before(self) -> list[Prediction]:
        """The predictions of the unadapted model."""
        return self._ledger.predictions(BASELINE_ROUND)

    @staticmethod
    def _has_another_try(assignment: Assignment) -> bool:
        # An extra round only adds to existing predictions.
        return assignment.round <= ADAPT_ROUND and assignment.attempt + 1 < MAX_ATTEMPTS

    def _count_workers(self) -> int:
        if self._budget is not None:
            return self._budget.workers
        return max(1, len({running.worker for running in self._run.running.values()}))
