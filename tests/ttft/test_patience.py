"""When a worker counts as hung: tables of silence, cost and deadline, without a worker."""

from __future__ import annotations

import pytest

from arcft.ttft.scheduling.budget import Budget
from arcft.ttft.scheduling.cost_model import Costs
from arcft.ttft.scheduling.patience import overdue
from arcft.ttft.scheduling.policy import RunningUnit
from arcft.ttft.units import ADAPT_ROUND, BASELINE_ROUND, Assignment, Predicted, Stepped
from tests.support.small_units import make_unit

NOW = 1000.0


def running(*, round: int = ADAPT_ROUND, steps: int = 100, predictions: int = 10, deadline: float | None = None):
    """A unit of one test that a worker works on."""
    unit = make_unit("a")
    assignment = Assignment(
        unit=unit, round=round, steps=steps, first_prediction=0, predictions=predictions, seed=0, deadline=deadline
    )
    return RunningUnit("worker", assignment, 0.0)


def measured(step: float, prediction: float) -> Costs:
    """Costs after two steps and two predictions of these many seconds; the first of each warms up."""
    costs, unit = Costs(lambda: NOW), running().assignment.unit
    for key in ((ADAPT_ROUND, unit.name), (BASELINE_ROUND, unit.name)):
        for _ in range(2):
            costs.observe(Stepped(key=key, step=1, steps=2, loss=0.0, tokens=1, seconds=step), unit, "worker")
            costs.observe(Predicted(key=key, predictions=(), prompts=1, tokens=1, seconds=prediction), unit, "worker")
    return costs


@pytest.mark.parametrize(
    ("step", "prediction", "limit"),
    [
        (0.1, 1.0, 300.0),  # 20 s of work: the floor
        (1.0, 1.0, 1100.0),  # 110 s of work
        (0.0, 20.0, 2000.0),
    ],
)
def test_silence_is_allowed_for_a_multiple_of_the_work(step: float, prediction: float, limit: float) -> None:
    costs = measured(step, prediction)
    assert overdue([running()], costs, None, now=NOW, quiet=limit - 1) is None
    reason = overdue([running()], costs, None, now=NOW, quiet=limit + 1)
    assert reason == f"it has sent nothing for {limit + 1:.0f} s, more than its work can take"
    # Units side by side take the time of both.
    if limit > 300:
        assert overdue([running(), running()], costs, None, now=NOW, quiet=2 * limit - 1) is None


def test_silence_before_anything_is_known() -> None:
    assert overdue([running()], Costs(lambda: NOW), None, now=NOW, quiet=1799) is None
    assert overdue([running()], Costs(lambda: NOW), None, now=NOW, quiet=1801) is not None
    assert overdue([], Costs(lambda: NOW), Budget(1.0, clock=lambda: 0.0), now=NOW, quiet=1e9) is None


@pytest.mark.parametrize(
    ("step", "prediction", "grace"),
    [(0.1, 0.1, 10.0), (20.0, 1.0, 60.0), (1.0, 3.0, 90.0), (None, None, 30.0)],
    ids=["floor", "a long step", "a long test", "unknown"],
)
def test_after_a_deadline_silence_is_allowed_for_one_pass(
    step: float | None, prediction: float | None, grace: float
) -> None:
    costs = measured(step, prediction) if step is not None and prediction is not None else Costs(lambda: NOW)
    budget = Budget(10_000.0, clock=lambda: NOW)
    unit = running(deadline=NOW)
    assert overdue([unit], costs, budget, now=NOW + grace - 1, quiet=grace + 100) is None
    assert overdue([unit], costs, budget, now=NOW + 1000, quiet=grace - 1) is None
    reason = overdue([unit], costs, budget, now=NOW + grace + 1, quiet=grace + 5)
    assert reason == f"it has sent nothing for {grace + 5:.0f} s, until {grace + 1:.0f} s after its deadline"


def test_nobody_works_longer_than_the_budget() -> None:
    """Also a worker that sends a step every second is ended: 10 s after the whole budget, not of its last deadline."""
    budget = Budget(100.0, 40.0, clock=lambda: NOW)
    assert budget.over == NOW + 60
    unit = running(deadline=budget.end)
    assert overdue([unit], measured(0.1, 0.1), budget, now=NOW + 69, quiet=0.0) is None
    reason = overdue([unit], measured(0.1, 0.1), budget, now=NOW + 71, quiet=0.0)
    assert reason == "it still worked 11 s after the end of ttft.budget"
