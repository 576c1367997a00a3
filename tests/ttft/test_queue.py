"""The queue: its order, what it gives to whom, second tries, and what a later process finds."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arcft.ttft.ledger import ledger as ledger_module
from arcft.ttft.ledger.ledger import Ledger, LedgerError
from arcft.ttft.scheduling.budget import Budget
from arcft.ttft.scheduling.queue import Progress, Queue
from arcft.ttft.scheduling.vote_margin import closeness
from arcft.ttft.units import (
    ADAPT_ROUND,
    BASELINE_ROUND,
    Assignment,
    Failed,
    Finished,
    Lowered,
    Predicted,
    Started,
    Stepped,
    Unit,
)
from tests.support.arc import ARC
from tests.support.small_units import Clock, adapted, make_prediction, make_unit, predicted, whole

UNITS = [make_unit("middle", 200), make_unit("long", 400), make_unit("short", 100)]


def make_queue(path: Path, units: Sequence[Unit] = UNITS, **changes: object) -> Queue:
    values = {"steps": 8, "predictions": 4, "predict_before": 1, "seed": 3, "attempts": 2} | changes
    return Queue(Ledger.create(path / "ledger.sqlite", ARC, {}), units, **values)


def next_process(path: Path, monkeypatch: pytest.MonkeyPatch, **changes: object) -> Queue:
    """The queue of a process that begins after this one was killed."""
    monkeypatch.setattr(ledger_module, "_PROCESS", f"{ledger_module._PROCESS}-next")
    return make_queue(path, **changes)


def finish(queue: Queue, assignment: Assignment, worker: str = "local", values: Sequence[int] = (1,)) -> None:
    for event in whole(assignment.key, values):
        queue.record(event, worker)


def fail(queue: Queue, assignment: Assignment, retry: bool = True) -> None:
    queue.record(Failed(key=assignment.key, reason="no numbers", retry=retry), "local")


def pull_all(queue: Queue) -> list[Assignment]:
    """Everything that is handed out, each finished before the next."""
    found = []
    while (assignment := queue.pull("local")) is not None:
        found.append(assignment)
        finish(queue, assignment)
    return found


def test_short_units_are_predicted_first_and_long_ones_adapted_to_first(tmp_path: Path) -> None:
    queue = make_queue(tmp_path)
    order = [assignment.key for assignment in pull_all(queue)]
    assert order == [(BASELINE_ROUND, name) for name in ("short", "middle", "long")] + [
        (ADAPT_ROUND, name) for name in ("long", "middle", "short")
    ]
    assert queue.done


def test_what_a_unit_is_given(tmp_path: Path) -> None:
    assignments = {assignment.key: assignment for assignment in pull_all(make_queue(tmp_path))}
    before, main = assignments[BASELINE_ROUND, "long"], assignments[ADAPT_ROUND, "long"]
    assert (before.steps, before.first_prediction, before.predictions, before.seed) == (0, 0, 1, 3)
    assert (main.steps, main.first_prediction, main.predictions, main.seed) == (8, 0, 4, 3)
    for assignment in (before, main):
        assert assignment.unit is UNITS[1]
        assert (assignment.attempt, assignment.deadline) == (0, None)
        assert (assignment.done, assignment.adapter) == (frozenset(), None)


def test_no_round_before(tmp_path: Path) -> None:
    order = [assignment.key for assignment in pull_all(make_queue(tmp_path, predict_before=0))]
    assert order == [(ADAPT_ROUND, name) for name in ("long", "middle", "short")]


def test_near_asks_for_a_similar_length(tmp_path: Path) -> None:
    queue = make_queue(tmp_path, predict_before=0)
    assert [queue.pull("local", near).unit.name for near in (120, 230, 100)] == ["short", "middle", "long"]
    assert queue.pull("local", 100) is None


def test_equal_lengths_stay_in_the_order_of_tasks(tmp_path: Path) -> None:
    units = [make_unit(name, 100) for name in "cabd"]
    order = [assignment.unit.name for assignment in pull_all(make_queue(tmp_path, units))]
    assert order == [*"cabd", *"cabd"]


def test_a_failed_unit_is_tried_once_more_after_all_others(tmp_path: Path) -> None:
    queue = make_queue(tmp_path, predict_before=0)
    first = queue.pull("local")
    assert first.unit.name == "long"
    fail(queue, first)
    assert not queue.done
    order = [queue.pull("local") for _ in range(3)]
    assert [(each.unit.name, each.attempt) for each in order] == [("middle", 0), ("short", 0), ("long", 1)]
    assert queue.pull("local") is None
    assert (order[2].steps, order[2].seed) == (first.steps, first.seed)
    fail(queue, order[2])
    assert queue.progress().failed == 1
    for assignment in order[:2]:
        finish(queue, assignment)
    assert queue.done


def test_what_needs_no_second_try_has_none(tmp_path: Path) -> None:
    queue = make_queue(tmp_path, UNITS[:1], predict_before=0)
    fail(queue, queue.pull("local"), retry=False)
    assert queue.pull("local") is None
    assert queue.done
    assert queue.progress() == Progress(
        done=0, failed=1, total=1, predicted_before=0, extra=0, tokens_per_second=0, seconds_left=None
    )


def test_predictions_before_adapting_stand_until_there_are_others(tmp_path: Path) -> None:
    queue = make_queue(tmp_path, UNITS[:2])
    for value in (1, 2):
        finish(queue, queue.pull("local"), values=[value])
    middle, long = make_prediction("middle", value=1), make_prediction("long", value=2)
    assert queue.changed
    queue.changed = False
    assert queue.predictions() == queue.before() == [middle, long]
    assert not queue.changed
    finish(queue, queue.pull("local"), values=[3, 3])
    assert queue.changed
    failing = queue.pull("local")
    fail(queue, failing)
    fail(queue, queue.pull("local"))
    assert queue.done
    assert queue.predictions() == [middle, make_prediction("long", value=3), make_prediction("long", value=3)]
    assert queue.before() == [middle, long]


def test_a_worker_that_dies_gives_back_what_it_had_and_is_heard_no_more(tmp_path: Path) -> None:
    queue = make_queue(tmp_path, predict_before=0)
    one, two = queue.pull("worker-0"), queue.pull("worker-1")
    queue.requeue("worker-0")
    finish(queue, one, "worker-0")
    assert queue.progress().done == 0
    again = queue.pull("worker-1")
    assert again.key == one.key
    assert again.attempt == 0
    finish(queue, again, "worker-1")
    finish(queue, two, "worker-1")
    assert queue.progress().done == 2


def test_nothing_is_handed_out_after_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = make_queue(tmp_path, predict_before=0)
    one = queue.pull("local")
    queue.stop()
    assert queue.pull("local") is None
    assert not queue.done
    finish(queue, one)
    assert not queue.done
    later = next_process(tmp_path, monkeypatch, predict_before=0)
    assert [assignment.unit.name for assignment in pull_all(later)] == ["middle", "short"]


def test_a_stop_is_no_death_for_what_is_given_back(tmp_path: Path) -> None:
    queue = make_queue(tmp_path)
    key = queue.pull("local").key
    queue.stop()
    queue.requeue("local")
    [record] = [record for record in queue._ledger.records() if record.key == key]
    assert (record.state, record.deaths) == ("queued", 0)


def test_a_later_process_goes_on_as_if_nothing_had_been(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    undisturbed = [decided(each) for each in pull_all(make_queue(tmp_path / "one"))]
    queue = make_queue(tmp_path / "two")
    found = []
    for _ in range(len(undisturbed)):
        # Taken by a process that dies in the middle of it, and by the next one again.
        lost = queue.pull("local")
        queue.record(Started(key=lost.key, recipe={}), "local")
        queue = next_process(tmp_path / "two", monkeypatch)
        assignment = queue.pull("local")
        found.append(decided(assignment))
        finish(queue, assignment)
    assert found == undisturbed
    assert queue.done


def decided(assignment: Assignment) -> dict[str, object]:
    """All of an assignment that decides its outcome."""
    values = {field.name: getattr(assignment, field.name) for field in dataclasses.fields(assignment)}
    return values | {"unit": assignment.unit.name}


def test_a_saved_adapter_is_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    units = [make_unit("whole_set", tasks=("a", "b"), tests=2)]
    folder = tmp_path / "adapter"
    folder.mkdir()
    queue = make_queue(tmp_path, units, predict_before=0)
    key = queue.pull("local").key
    queue.record(adapted(key, adapter=str(folder)), "local")
    queue.record(predicted(key, "a", 0), "local")
    queue = next_process(tmp_path, monkeypatch, units=units, predict_before=0)
    again = queue.pull("local")
    assert (again.adapter, again.done, again.steps) == (str(folder), {("a", 0)}, 8)
    queue.record(predicted(key, "a", 1), "local")
    folder.rmdir()
    # The adapter was removed by hand: what it predicted is made anew, too.
    queue = next_process(tmp_path, monkeypatch, units=units, predict_before=0)
    anew = queue.pull("local")
    assert (anew.adapter, anew.done) == (None, frozenset())


def test_tests_predicted_without_adapting_are_not_predicted_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    units = [make_unit("whole_set", tasks=("a", "b"))]
    queue = make_queue(tmp_path, units)
    before = queue.pull("local")
    queue.record(predicted(before.key, "b"), "local")
    queue = next_process(tmp_path, monkeypatch, units=units)
    again = queue.pull("local")
    assert (again.key, again.done) == (before.key, {("b", 0)})


def test_without_a_saved_adapter_everything_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = make_queue(tmp_path, [make_unit("a", tests=2)], predict_before=0)
    key = queue.pull("local").key
    queue.record(adapted(key), "local")
    queue.record(predicted(key, "a", 0), "local")
    queue = next_process(tmp_path, monkeypatch, units=[make_unit("a", tests=2)], predict_before=0)
    again = queue.pull("local")
    assert (again.adapter, again.done) == (None, frozenset())


def test_other_tasks_are_refused(tmp_path: Path) -> None:
    make_queue(tmp_path)
    with pytest.raises(LedgerError, match=r"holds short in round 0, which is no part of this run"):
        make_queue(tmp_path, UNITS[:2])


def test_what_the_engine_says_of_itself_is_noted(tmp_path: Path) -> None:
    queue = make_queue(tmp_path)
    assignment = queue.pull("local")
    queue.record(Lowered(key=assignment.key, recipe={"slots": 2}, reason="out of memory: slots 4 -> 2"), "local")
    [note] = queue._ledger.notes()
    assert (note.kind, note.text, note.data) == ("recipe", "out of memory: slots 4 -> 2", {"recipe": {"slots": 2}})


def test_progress_counts_tokens_and_the_time_left(tmp_path: Path) -> None:
    clock = Clock()
    units = [make_unit("middle", 200), make_unit("long", 400, tests=2), make_unit("short", 100)]
    queue = make_queue(tmp_path, units, steps=3, predictions=1, predict_before=0, clock=clock)
    assert queue.progress().seconds_left is None
    key = queue.pull("local").key
    queue.record(Started(key=key, recipe={}), "local")
    # The first of each kind is no measure.
    for step, seconds in [(1, 9), (2, 4), (3, 4)]:
        clock.now += seconds
        queue.record(Stepped(key=key, step=step, steps=3, loss=1.0, tokens=300, seconds=seconds), "local")
    queue.record(adapted(key), "local")
    for test_index, seconds in [(0, 5), (1, 2)]:
        clock.now += seconds
        event = dataclasses.replace(predicted(key, "long", test_index), tokens=600, seconds=seconds)
        queue.record(event, "local")
    queue.record(Finished(key=key), "local")
    # 10 ms a step and 5 ms a prediction for each token of the length; units of length 200 and 100 are left.
    progress = queue.progress()
    assert (progress.done, progress.failed, progress.total) == (1, 0, 3)
    assert progress.seconds_left == pytest.approx(300 * (3 * 0.01 + 0.005))
    # Counted from the first step's end, 15 seconds ago.
    assert progress.tokens_per_second == pytest.approx(1800 / 15)
    clock.now += 100
    assert queue.progress().tokens_per_second == 0


def test_the_time_is_noted_while_a_long_unit_is_trained(tmp_path: Path) -> None:
    clock = Clock()
    ledger = Ledger.create(tmp_path / "ledger.sqlite", ARC, {}, clock=clock)
    queue = Queue(ledger, UNITS, steps=8, predictions=4, predict_before=0, seed=0, attempts=2, clock=clock)
    key = queue.pull("local").key
    seen = []
    for step in range(1, 9):
        clock.now += 2
        queue.record(Stepped(key=key, step=step, steps=8, loss=1.0, tokens=10, seconds=2), "local")
        seen.append(ledger._connection.execute("SELECT seen_at FROM sessions").fetchone()[0] - 1000)
    assert seen == [0, 0, 6, 6, 6, 12, 12, 12]


@given(
    lengths=st.lists(st.integers(1, 1000), min_size=1, max_size=12),
    nears=st.lists(st.none() | st.integers(1, 1000), min_size=1, max_size=8),
    fates=st.lists(st.sampled_from(["finish", "fail", "die", "hopeless"]), min_size=1, max_size=30),
)
@settings(max_examples=15, deadline=None)
def test_whatever_happens_every_unit_is_done_or_has_failed(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], nears: list[int | None], fates: list[str]
) -> None:
    units = [make_unit(f"unit-{number}", length) for number, length in enumerate(lengths)]
    queue = make_queue(tmp_path_factory.mktemp("queue"), units)
    seen: dict[tuple[int, str], list[str]] = {}
    number = 0
    while (assignment := queue.pull("local", nears[number % len(nears)])) is not None:
        fate = fates[number] if number < len(fates) else "finish"
        number += 1
        history = seen.setdefault(assignment.key, [])
        assert not {"finish", "hopeless"} & set(history)
        assert assignment.attempt == history.count("fail") + history.count("die") // 5 <= 1
        history.append(fate)
        if fate == "finish":
            finish(queue, assignment)
        elif fate == "die":
            queue.requeue("local")
        else:
            fail(queue, assignment, retry=fate == "fail")
    assert queue.done
    assert set(seen) == {(round, unit.name) for round in (BASELINE_ROUND, ADAPT_ROUND) for unit in units}
    progress = queue.progress()
    assert progress.done + progress.failed == progress.total == len(units)
    assert progress.done == sum("finish" in seen[ADAPT_ROUND, unit.name] for unit in units)


def votes(*values: int | None, test_index: int = 0) -> list:
    made = [make_prediction("a", test_index, value or 0) for value in values]
    return [
        dataclasses.replace(each, answer=None) if value is None else each
        for each, value in zip(made, values, strict=True)
    ]


def test_votes_are_closest_where_the_third_could_be_second() -> None:
    ordered = [
        votes(1, 1, 2, 2, 3, 3),
        votes(1, 1, 1, 2, 3, 4),
        votes(1, 1, 1, 1, 2, 3),
        votes(1, 1, 1, 1, 1, 2),
        votes(1, 1, 1, 2, 2, 2),
    ]
    found = [closeness(each, 2) for each in ordered]
    assert found[0] == (0 / 8, 2 / 8)
    assert found[1] == (0 / 8, 3 / 8)
    assert found[3] == (1 / 8, 5 / 8)
    assert found[4] == (3 / 8, 3 / 8)
    assert found == sorted(found)


def test_with_a_single_attempt_votes_are_closest_where_the_second_could_be_first() -> None:
    assert closeness(votes(1, 1, 1, 2, 2, 3), 1) == (1 / 8, 3 / 8)
    assert closeness(votes(1, 1, 2, 2), 1) == (0 / 6, 2 / 6)
    assert closeness(votes(1, 1, 1, 1), 1) is None


def test_what_all_agree_on_is_settled_unless_they_are_few() -> None:
    assert closeness(votes(1, 1, 1, 1), 2) is None
    assert closeness(votes(1, 1), 2) == (2 / 4, 2 / 4)
    assert closeness(votes(1), 2) == (1 / 3, 1 / 3)
    assert closeness(votes(1, 1, 1, None), 2) == (0 / 6, 3 / 6)
    assert closeness(votes(None, None, None, None), 2) == (0, 0)
    assert closeness([], 2) is None


def test_a_unit_is_as_close_as_its_closest_test() -> None:
    assert closeness([*votes(1, 1, 1, 1), *votes(1, 2, 3, test_index=1)], 2) == closeness(votes(1, 2, 3), 2)


def test_time_left_goes_to_the_closest_votes(tmp_path: Path) -> None:
    clock = Clock()
    values = {"middle": (1, 1, 1, 1), "long": (1, 1, 1, 2), "short": (1, 2, 3, 3)}
    budget = Budget(10_000, clock=clock)
    queue = make_queue(tmp_path, predict_before=0, budget=budget, clock=clock)
    order = []
    while (assignment := queue.pull("local")) is not None:
        order.append(assignment)
        for step in (1, 2):
            clock.now += 1
            queue.record(Stepped(key=assignment.key, step=step, steps=8, loss=1, tokens=9, seconds=0.1), "local")
        queue.record(adapted(assignment.key), "local")
        name = assignment.unit.name
        grids = values[name] if assignment.round == ADAPT_ROUND else (1, 1, 1, 1)
        queue.record(predicted(assignment.key, name, 0, grids), "local")
        queue.record(Finished(key=assignment.key), "local")
    assert [each.key for each in order] == [
        # What steps cost is learned from a short unit, and then a longer one.
        *[(ADAPT_ROUND, name) for name in ("short", "long", "middle")],
        *[(2, "short"), (2, "long")],
        *[(3, "short"), (3, "long")],
        *[(4, "short"), (4, "long")],
    ]
    again = [
        (each.first_prediction, each.predictions, each.steps, each.seed) for each in order if each.key[1] == "long"
    ]
    assert again == [(0, 4, 8, 3), (4, 4, 8, 4), (8, 4, 8, 5), (12, 4, 8, 6)]
    assert queue.done
    assert queue.progress().extra == 6
    counts = {name: sum(each.task_id == name for each in queue.predictions()) for name in values}
    assert counts == {"middle": 4, "long": 16, "short": 16}


@pytest.mark.parametrize(("near", "first"), [(None, "far"), (110, "near"), (900, "far")])
def test_further_rounds_beside_others_prefer_units_of_like_length(tmp_path: Path, near: int | None, first: str) -> None:
    clock = Clock()
    units = [make_unit("near", 100), make_unit("far", 1000)]
    queue = make_queue(tmp_path, units, predict_before=0, budget=Budget(10_000, clock=clock), clock=clock)
    for _ in units:
        assignment = queue.pull("local")
        for step in (1, 2):
            clock.now += 1
            queue.record(Stepped(key=assignment.key, step=step, steps=8, loss=1, tokens=9, seconds=0.1), "local")
        # The votes of `far` are closer.
        finish(queue, assignment, values=(1, 2, 3, 3) if assignment.unit.name == "far" else (1, 1, 1, 2))
    assert queue.pull("local", near).key == (2, first)


def test_a_further_round_that_fails_costs_the_unit_nothing(tmp_path: Path) -> None:
    clock = Clock()
    queue = make_queue(tmp_path, UNITS[:1], budget=Budget(1000, clock=clock), clock=clock)
    finish(queue, queue.pull("local"))
    main = queue.pull("local")
    for step in (1, 2):
        queue.record(Stepped(key=main.key, step=step, steps=8, loss=1, tokens=9, seconds=0.1), "local")
    finish(queue, main, values=[1, 2, 3, 4])
    further = queue.pull("local")
    assert further.key == (2, "middle")
    fail(queue, further)
    assert queue.pull("local") is None
    assert queue.done
    progress = queue.progress()
    assert (progress.done, progress.failed, progress.extra) == (1, 0, 0)
    assert len(queue.predictions()) == 4


def test_others_wait_until_the_cost_of_a_step_is_known(tmp_path: Path) -> None:
    clock = Clock()
    queue = make_queue(tmp_path, predict_before=0, budget=Budget(1000, clock=clock, workers=2), clock=clock)
    probe = queue.pull("worker-0")
    assert probe.unit.name == "short"
    assert queue.pull("worker-1") is None
    assert not queue.done
    for step in (1, 2):
        queue.record(Stepped(key=probe.key, step=step, steps=8, loss=1, tokens=9, seconds=0.1), "worker-0")
    assert queue.pull("worker-1").unit.name == "long"


def test_with_a_budget_a_failed_unit_that_has_no_answer_gets_one(tmp_path: Path) -> None:
    """Predictions before adapting have used up their part of the time, and the unit can't be adapted to."""
    clock = Clock()
    queue = make_queue(tmp_path, UNITS[:2], budget=Budget(100, clock=clock), clock=clock)
    first = queue.pull("local")
    clock.now += 12
    for event in (dataclasses.replace(predicted(first.key, "middle"), seconds=12.0), Finished(key=first.key)):
        queue.record(event, "local")
    order = []
    while (assignment := queue.pull("local")) is not None:
        order.append(assignment.key)
        if assignment.round == ADAPT_ROUND:
            fail(queue, assignment, retry=False)
        else:
            finish(queue, assignment)
    assert order == [(ADAPT_ROUND, "middle"), (ADAPT_ROUND, "long"), (BASELINE_ROUND, "long")]


def test_without_a_budget_there_are_no_further_rounds(tmp_path: Path) -> None:
    queue = make_queue(tmp_path, UNITS[:1], predict_before=0)
    finish(queue, queue.pull("local"), values=[1, 2, 3, 4])
    assert queue.pull("local") is None


def test_a_test_with_no_prediction_in_time_is_no_error(tmp_path: Path) -> None:
    queue = make_queue(tmp_path, UNITS[:1], predict_before=0)
    key = queue.pull("local").key
    queue.record(Predicted(key=key, predictions=(), prompts=0, tokens=0, seconds=0.0), "local")
    queue.record(Finished(key=key), "local")
    assert queue.done
    assert queue.predictions() == []
