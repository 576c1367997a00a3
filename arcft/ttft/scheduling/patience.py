"""How long a worker is waited for: when its units should be finished, and how much later it counts as hung."""

from __future__ import annotations

from collections.abc import Sequence

from arcft.ttft.scheduling.budget import Budget
from arcft.ttft.scheduling.cost_model import Costs, count_tests
from arcft.ttft.scheduling.policy import RunningUnit
from arcft.ttft.units import BASELINE_ROUND, Assignment

TIMES_EXPECTED = 10.0
LEAST_SECONDS = 300.0
"""A worker hangs if it has sent nothing for TIMES_EXPECTED what its units should take in all, or LEAST_SECONDS if that
is less: the first pass of a process compiles and allocates."""

GRACE_SECONDS = 10.0
GRACE_PASSES = 3.0
"""After a unit's deadline, its worker may be silent for as long as GRACE_PASSES passes take, because a pass can't be
interrupted, or for GRACE_SECONDS if that is less."""

UNKNOWN_SECONDS = 1800.0
UNKNOWN_GRACE_SECONDS = 30.0
"""The same two limits while nothing is known about the cost of units."""

OVERRUN_SECONDS = 10.0
"""A worker that is still busy this long after the whole budget is ended in any case."""


def overdue(
    running: Sequence[RunningUnit], costs: Costs, budget: Budget | None, *, now: float, quiet: float
) -> str | None:
    """Why a worker with the units `running`, which has sent nothing for `quiet` seconds, counts as hung, or None.

    `now` is in seconds since the epoch.
    """
    if not running:
        return None
    if budget is not None and now > budget.over + OVERRUN_SECONDS:
        return f"it still worked {now - budget.over:.0f} s after the end of ttft.budget"
    works = [_expected(each.assignment, costs) for each in running]
    known = [work for work in works if work is not None]
    limit, grace = UNKNOWN_SECONDS, UNKNOWN_GRACE_SECONDS
    if len(known) == len(works):
        limit = max(LEAST_SECONDS, TIMES_EXPECTED * sum(whole for whole, _ in known))
        grace = max(GRACE_SECONDS, GRACE_PASSES * sum(one_pass for _, one_pass in known))
    deadlines = [each.assignment.deadline for each in running if each.assignment.deadline is not None]
    if deadlines and min(quiet, now - min(deadlines)) > grace:
        return f"it has sent nothing for {quiet:.0f} s, until {now - min(deadlines):.0f} s after its deadline"
    return f"it has sent nothing for {quiet:.0f} s, more than its work can take" if quiet > limit else None


def _expected(assignment: Assignment, costs: Costs) -> tuple[float, float] | None:
    """Seconds that a unit should take, and those of its longest pass; None while costs are unknown."""
    length = assignment.unit.length
    predicted = costs.prediction_before if assignment.round == BASELINE_ROUND else costs.prediction
    if predicted is None or (assignment.steps and costs.step is None):
        return None
    step = costs.step(length) if assignment.steps and costs.step is not None else 0.0
    test = assignment.predictions * predicted(length)
    whole = costs.overhead + assignment.steps * step + count_tests(assignment.unit) * test
    return whole, max(step, test)
