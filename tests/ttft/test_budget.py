"""Budgets: what is learned, what is given, and that simulated engines of any speed end in time with all tests
answered."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcft.ttft.ledger.ledger import Ledger
from arcft.ttft.scheduling.budget import Budget, Fit, PendingUnit, Plan, _floor
from arcft.ttft.scheduling.cost_model import Costs, Line
from arcft.ttft.scheduling.queue import Queue
from arcft.ttft.units import ADAPT_ROUND, BASELINE_ROUND, Event, Finished, Predicted, Started, Stepped, Unit
from tests.support.arc import ARC
from tests.support.simulated_engine import Speed, simulate
from tests.support.small_units import Clock, make_prediction, make_unit

STEPS, PREDICTIONS, TOTAL = 64, 8, 3600.0


def stepped(unit: Unit, seconds: float, tokens: int = 100) -> Stepped:
    return Stepped(key=(ADAPT_ROUND, unit.name), step=1, steps=8, loss=1.0, tokens=tokens, seconds=seconds)


def made(unit: Unit, seconds: float, count: int = 1, round: int = ADAPT_ROUND) -> Predicted:
    predictions = tuple(make_prediction(unit.name) for _ in range(count))
    return Predicted(
        key=(round, unit.name), predictions=predictions, prompts=len(predictions), tokens=10, seconds=seconds
    )


def test_a_prediction_costs_what_its_prompt_does() -> None:
    unit = make_unit("any", 100)
    event = dataclasses.replace(made(unit, 6.0, 5), prompts=2)
    assert seconds_of(watched([(unit, event)] * 2).prediction, 100) == pytest.approx(3.0)


def watched(events: list[tuple[Unit, Event]], clock: Clock | None = None) -> Costs:
    costs = Costs(clock or Clock())
    for unit, event in events:
        costs.observe(event, unit, "local")
    return costs


def known(step: float = 0.0, prediction: float = 0.0) -> Costs:
    """Costs of a step and a prediction in proportion to length, and none beside them."""
    unit = make_unit("any", 100)
    return watched([(unit, event) for event in [stepped(unit, 100 * step), made(unit, 100 * prediction)] * 2])


def seconds_of(line: Line | None, length: int) -> float:
    assert line is not None
    return line(length)


def test_costs_are_a_line_through_what_was_seen() -> None:
    short, long = make_unit("short", 100), make_unit("long", 400)
    seen = [(short, 9.0), (short, 0.3), (long, 0.9), (short, 0.3), (long, 0.9)]
    costs = watched([(unit, stepped(unit, seconds)) for unit, seconds in seen])
    # The first, which paid for what was then in place, is left out.
    assert seconds_of(costs.step, 100) == pytest.approx(0.3)
    assert seconds_of(costs.step, 400) == pytest.approx(0.9)
    assert seconds_of(costs.step, 200) == pytest.approx(0.5)
    assert costs.longest_step == 400
    assert costs.prediction is None


def test_costs_of_one_length_are_taken_in_proportion() -> None:
    unit = make_unit("a", 100)
    costs = watched([(unit, stepped(unit, 0.5)) for _ in range(3)])
    assert seconds_of(costs.step, 300) == pytest.approx(1.5)


def test_costs_are_never_negative_and_never_fall_with_length() -> None:
    short, long = make_unit("short", 100), make_unit("long", 400)
    falling = watched([(unit, stepped(unit, s)) for unit, s in [(short, 1), (short, 0.8), (long, 0.2), (long, 0.2)]])
    assert seconds_of(falling.step, 100) == seconds_of(falling.step, 10_000) > 0
    steep = watched([(unit, stepped(unit, s)) for unit, s in [(short, 1), (short, 0.1), (long, 2.0), (long, 2.0)]])
    assert seconds_of(steep.step, 1) > 0


def test_predictions_of_both_kinds_are_told_apart() -> None:
    unit = make_unit("a", 100)
    costs = watched([(unit, made(unit, 3.0, 1, BASELINE_ROUND))] * 2)
    assert seconds_of(costs.prediction, 100) == seconds_of(costs.prediction_before, 100) == pytest.approx(3)
    costs.observe(made(unit, 8.0, 8), unit, "local")
    assert seconds_of(costs.prediction, 100) == pytest.approx(1)
    assert seconds_of(costs.prediction_before, 100) == pytest.approx(3)


def test_what_slows_down_is_noticed() -> None:
    unit = make_unit("a", 100)
    costs = watched([(unit, stepped(unit, 0.1))] * 500)
    for _ in range(3000):
        costs.observe(stepped(unit, 0.4), unit, "local")
    assert seconds_of(costs.step, 100) == pytest.approx(0.4, rel=0.1)


def test_overhead_is_the_time_that_no_pass_took() -> None:
    clock, costs = Clock(), None
    costs = Costs(clock)
    for number in range(4):
        unit = make_unit(f"unit-{number}")
        key = (ADAPT_ROUND, unit.name)
        costs.observe(Started(key=key, recipe={}), unit, "local")
        clock.now += 2  # the adapter is put in place
        for _ in range(3):
            clock.now += 1
            costs.observe(stepped(unit, 1.0), unit, "local")
        clock.now += 4
        costs.observe(made(unit, 4.0), unit, "local")
        costs.observe(Finished(key=key), unit, "local")
        costs.pause("local")
        clock.now += 1000  # nothing to do
    assert costs.overhead == pytest.approx(2)


def test_units_side_by_side_leave_no_overhead() -> None:
    clock = Clock()
    costs = Costs(clock)
    units = [make_unit("a"), make_unit("b")]
    for unit in units:
        costs.observe(Started(key=(ADAPT_ROUND, unit.name), recipe={}), unit, "local")
    for _ in range(5):
        clock.now += 2
        for unit in units:
            costs.observe(stepped(unit, 1.0), unit, "local")
    for unit in units:
        costs.observe(Finished(key=(ADAPT_ROUND, unit.name)), unit, "local")
    assert costs.overhead == pytest.approx(0)


FIT = Fit(Line(0.0, 0.01), Line(0.0, 0.02), 5.0)
GROUP = [PendingUnit(make_unit("a", 100), True), PendingUnit(make_unit("b", 300, tests=2), True)]
# Fixed 10 s; a step of each 4 s; a prediction of each 2 + 12 = 14 s.


@pytest.mark.parametrize(
    ("available", "expected"),
    [
        (10 + 64 * 4 + 8 * 14, (64, 8)),
        (10 + 63.5 * 4 + 8 * 14, (63, 8)),
        (10 + 16 * 4 + 8 * 14, (16, 8)),
        (10 + 15.9 * 4 + 8 * 14, (16, 7)),
        (10 + 16 * 4 + 14, (16, 1)),
        (10 + 15.5 * 4 + 14, (15, 1)),
        (10 + 4 * 4 + 14, (4, 1)),
        (10 + 3.9 * 4 + 14, None),
        (0, None),
    ],
)
def test_first_fewer_steps_then_fewer_predictions_then_fewer_steps(
    available: float, expected: tuple[int, int] | None
) -> None:
    assert FIT.most(GROUP, available, 64, 8) == expected


@given(
    lengths=st.lists(st.integers(1, 5000), min_size=1, max_size=20),
    available=st.floats(0, 1e6),
    steps=st.integers(1, 500),
    predictions=st.integers(1, 100),
)
def test_what_is_given_is_affordable_and_no_more_is(
    lengths: list[int], available: float, steps: int, predictions: int
) -> None:
    group = [PendingUnit(make_unit(f"unit-{number}", length), True) for number, length in enumerate(lengths)]
    found = FIT.most(group, available, steps, predictions)
    if found is None:
        assert FIT.seconds(group, max(1, min(4, steps // 4)), 1) > available
        return
    assert FIT.seconds(group, *found) <= available * (1 + 1e-9)
    assert 1 <= found[0] <= steps
    assert 1 <= found[1] <= predictions
    floor = _floor(steps)
    if found[0] < steps and found[0] != floor:
        assert FIT.seconds(group, found[0] + 1, found[1]) > available * (1 - 1e-9)
    if found[1] < predictions and found[0] == floor:
        # What is left pays for no further prediction; it may pay for a step, but steps stay at their floor.
        assert FIT.seconds(group, floor, found[1] + 1) > available * (1 - 1e-9)


def test_who_asks_for_endless_steps_gets_all_predictions_and_what_is_left() -> None:
    available = 10 + 200 * 4 + 8 * 14
    assert FIT.most(GROUP, available, 100_000, 8) == (200, 8)
    assert FIT.most(GROUP, 10 + 31 * 4 + 8 * 14, 100_000, 8) == (32, 7)


def test_time_that_suffices_gives_everything() -> None:
    clock = Clock()
    plan = Budget(100_000, clock=clock).plan(GROUP[0], GROUP[1:], known(0.01, 0.02), steps=64, predictions=8)
    assert plan is not None
    assert (plan.steps, plan.predictions) == (64, 8)
    assert plan.cost == pytest.approx(64 + 16)
    assert clock.now + 80 < plan.deadline < clock.now + 100_000


def test_before_anything_is_known_a_unit_gets_its_share_of_the_time() -> None:
    clock = Clock()
    budget = Budget(1000, clock=clock)
    plan = budget.plan(GROUP[0], GROUP[1:], Costs(clock), steps=64, predictions=8)
    assert plan is not None
    assert (plan.steps, plan.predictions) == (64, 8)
    assert plan.deadline == pytest.approx(clock.now + budget.left(1) / 2)


def test_a_unit_may_take_twice_its_share_before_its_deadline() -> None:
    clock = Clock()
    # The units need nearly all of the 960 s that there are.
    others = [PendingUnit(make_unit(f"unit-{number}", 100), True) for number in range(8)]
    plan = Budget(1000, clock=clock).plan(others[0], others[1:], known(0.01, 0.04), steps=80, predictions=10)
    assert plan is not None
    assert plan.cost == pytest.approx(0.95 * 960 / 8, rel=0.02)
    assert plan.deadline == pytest.approx(clock.now + 2 * 960 / 8 + (960 - 8 * plan.cost) / 2)


def further(budget: Budget, *, running: int = 0, beside: Sequence[float] = (), predictions: int = 10) -> Plan | None:
    """Another round for a unit whose step costs 1 s and whose prediction costs 4 s, of 60 steps."""
    costs, unit = known(0.01, 0.04), make_unit("c", 100)
    return budget.extra(
        unit,
        costs,
        steps=60,
        predictions=predictions,
        promised=sum(beside),
        num_running=running,
        beside=beside,
    )


def test_a_further_round_takes_half_of_the_time_while_others_run() -> None:
    clock = Clock()
    alone, beside = further(Budget(200, clock=clock)), further(Budget(200, clock=clock), running=1, beside=[20.0])
    # 186 s, of which 95% are planned; with 20 s promised, half of the other 166 s.
    assert alone is not None
    assert (alone.steps, alone.predictions) == (60, 10)
    assert beside is not None
    assert (beside.steps, beside.predictions) == (int(0.95 * 83 - 40), 10)
    late = further(Budget(200, clock=clock), running=1, beside=[130.0])
    assert late is None


def test_a_further_round_has_all_its_predictions_or_is_not_begun() -> None:
    clock = Clock()
    assert further(Budget(70, clock=clock)) is not None
    # Steps at their floor of 15 and fewer predictions would fit.
    assert further(Budget(56, clock=clock)) is None
    assert further(Budget(56, clock=clock), predictions=8) is not None


def test_where_time_lacks_units_without_an_answer_come_first() -> None:
    clock = Clock()
    budget = Budget(50, clock=clock)
    answered, unanswered = GROUP[0], PendingUnit(make_unit("c", 300), False)
    costs = known(1.0, 0.1)
    assert budget.plan(answered, [unanswered], costs, steps=64, predictions=8) is None
    plan = budget.plan(unanswered, [answered], costs, steps=64, predictions=8)
    assert plan is not None
    assert (plan.steps, plan.predictions) == (0, 1)


def test_time_is_kept_for_the_results() -> None:
    clock = Clock()
    assert Budget(11.5 * 3600, clock=clock).left(1) == pytest.approx(11.5 * 3600 * 0.98 - 20)
    assert Budget(100, used=30, clock=clock).left(1) == pytest.approx(100 - 2 - 5 - 30)
    budget = Budget(100, used=200, clock=clock)
    assert budget.left(1) == 0
    assert budget.plan(GROUP[0], [], known(0.1, 0.1), steps=8, predictions=1) is None
    assert budget.before(GROUP[0].unit, Costs(clock), predictions=1, spent=0, promised=0, capped=False) is None


def test_one_unit_is_worked_on_by_one_worker() -> None:
    budget = Budget(1000, clock=Clock(), workers=4)
    assert budget.left(1) == pytest.approx(960)
    assert budget.left(3) == pytest.approx(3 * 960)
    assert budget.left(9) == pytest.approx(4 * 960)


def test_a_tenth_of_the_time_goes_into_predictions_before_adapting() -> None:
    clock = Clock()
    budget, unit = Budget(1000, clock=clock), make_unit("a", 100)
    costs = watched([(unit, made(unit, 30.0, 1, BASELINE_ROUND))] * 2, clock)
    plans = [
        budget.before(unit, costs, predictions=1, spent=spent, promised=0, capped=True) for spent in (0, 69, 71, 200)
    ]
    assert [plan is not None for plan in plans] == [True, True, False, False]
    assert plans[0] is not None
    assert (plans[0].steps, plans[0].predictions, plans[0].cost) == (0, 1, pytest.approx(30))
    assert budget.before(unit, costs, predictions=1, spent=200, promised=0, capped=False) is not None
    four = Budget(1000, clock=clock, workers=4)
    plans = [four.before(unit, costs, predictions=1, spent=spent, promised=0, capped=True) for spent in (200, 369, 371)]
    assert [plan is not None for plan in plans] == [True, True, False]


@dataclasses.dataclass
class Outcome:
    seconds: float
    queue: Queue
    ledger: Ledger
    units: list[Unit]

    @property
    def answered(self) -> set[tuple[str, int]]:
        return {(prediction.task_id, prediction.test_index) for prediction in self.queue.predictions()}

    @property
    def tests(self) -> set[tuple[str, int]]:
        return {(unit.name, index) for unit in self.units for index in range(len(unit.problems[0].answers))}

    def steps(self) -> list[int]:
        return [record.steps for record in self.ledger.records(ADAPT_ROUND) if record.state == "done"]


def fifty_units() -> list[Unit]:
    """Lengths and tests as tasks have them: a factor of 40 between the longest and the shortest."""
    rng = np.random.default_rng(0)
    lengths = np.exp(rng.uniform(np.log(150), np.log(6000), 50)).astype(int)
    tests = rng.choice([1, 1, 1, 2, 3], size=50)
    return [
        make_unit(f"{number:03d}", int(length), int(count))
        for number, (length, count) in enumerate(zip(lengths, tests, strict=True))
    ]


def run(
    folder: Path,
    share: float,
    *,
    workers: int = 1,
    slots: int = 1,
    predict_before: int = 1,
    overhead: float = 0.05,
    even: float = 0.0,
) -> Outcome:
    """Work off fifty units in an hour, by engines that could do `share` of everything in it; `overhead` is that of a
    unit, compared with the training of an average one, and `even` how much of a step's time is the same for all."""
    units = fifty_units()
    lengths = sum(unit.length for unit in units)
    prompts = sum(unit.length * len(unit.problems[0].answers) for unit in units)
    train = share * (STEPS * lengths + 2 * PREDICTIONS * prompts) / (TOTAL * workers)
    mean = lengths / 50 / train
    speed = Speed(train / (1 - even), train / 2, overhead=overhead * STEPS * mean, loading=5, step=even * mean)
    clock = Clock()
    ledger = Ledger.create(folder / "ledger.sqlite", ARC, {}, clock=clock)
    ledger._connection.execute("PRAGMA synchronous = OFF")
    budget = Budget(TOTAL, clock=clock, workers=workers, slots=slots)
    queue = Queue(
        ledger,
        units,
        steps=STEPS,
        predictions=PREDICTIONS,
        predict_before=predict_before,
        seed=0,
        attempts=2,
        budget=budget,
        clock=clock,
    )
    seconds = simulate(queue, clock, speed, workers=workers, slots=slots)
    return Outcome(seconds, queue, ledger, units)


@pytest.mark.parametrize(("workers", "slots"), [(1, 1), (1, 8), (4, 4)])
@pytest.mark.parametrize("share", [0.1, 0.2, 0.4, 0.8, 1.5, 5, 100])
def test_every_test_is_answered_in_time_at_any_speed(tmp_path: Path, share: float, workers: int, slots: int) -> None:
    outcome = run(tmp_path, share, workers=workers, slots=slots)
    assert outcome.seconds <= TOTAL
    assert outcome.answered == outcome.tests
    assert outcome.queue.done
    progress = outcome.queue.progress()
    assert progress.failed == 0
    if share >= 0.4:
        assert progress.done == 50
    if share <= 0.8:
        assert outcome.seconds > 0.9 * TOTAL
    if share >= 5:
        # As if there were no budget, and then some.
        assert min(outcome.steps()) >= 0.9 * STEPS
        assert progress.extra > 40
    if share == 100:
        assert outcome.seconds < 0.1 * TOTAL


@pytest.mark.parametrize("even", [0.0, 0.5, 0.95])
@pytest.mark.parametrize("share", [0.2, 0.4, 0.8])
def test_late_units_get_about_as_many_steps_as_early_ones(tmp_path: Path, share: float, even: float) -> None:
    """Whether a step's time is in proportion to its tokens, as on a CPU, or nearly the same for all, as on a GPU."""
    outcome = run(tmp_path, share, overhead=0.02, even=even)
    assert outcome.seconds <= TOTAL
    # The two from whose steps the costs were learned had their share of the time without knowing them.
    order = [record for record in outcome.ledger.records(ADAPT_ROUND) if record.state == "done"]
    order.sort(key=lambda record: record.started_at or 0.0)
    steps = np.array([record.steps for record in order[2:]])
    assert len(steps) == 48
    assert steps.min() >= 0.4 * np.median(steps)
    assert steps.max() <= 2.5 * np.median(steps)


def test_what_can_not_be_done_in_time_is_not_begun(tmp_path: Path) -> None:
    """Even one prediction of each test would take more than three times the time."""
    outcome = run(tmp_path, 0.02)
    assert outcome.seconds <= TOTAL
    assert 0 < len(outcome.answered) < len(outcome.tests)
    assert outcome.queue.done
    assert {record.state for record in outcome.ledger.records()} == {"queued", "done"}


def test_without_predictions_before_every_test_still_gets_one(tmp_path: Path) -> None:
    outcome = run(tmp_path, 0.1, predict_before=0)
    assert outcome.seconds <= TOTAL
    assert outcome.answered == outcome.tests


def test_predictions_before_adapting_take_a_tenth_at_most(tmp_path: Path) -> None:
    outcome = run(tmp_path, 0.1)
    before = outcome.ledger.records(BASELINE_ROUND)
    assert 0 < sum(record.predict_seconds for record in before) <= 0.1 * TOTAL
    done = [record.length for record in before if record.state == "done"]
    assert max(done) <= min(record.length for record in before if record.state != "done")


def test_two_simulations_are_the_same(tmp_path: Path) -> None:
    found = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        outcome = run(tmp_path / name, 0.5, slots=4)
        records = [(record.key, record.steps, record.num_predictions) for record in outcome.ledger.records()]
        found.append((outcome.seconds, records))
    assert found[0] == found[1]
