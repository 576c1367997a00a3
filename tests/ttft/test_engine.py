"""The engine, on a small model and real tasks: what comes out of a unit, in which order, and on what it depends."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from arcft.models.adapter_config import LoraError
from arcft.models.stacked_lora import StackedLora
from arcft.prediction.predict import predict_problems
from arcft.prediction.prompts import derived_seed
from arcft.problems.arc.augment.sampler import GridQuestionSampler
from arcft.problems.arc.augment.transforms import Identity
from arcft.problems.arc.task import Pair, Task, as_grid
from arcft.text.item_sampler import ItemSampler
from arcft.text.stream import ExampleStream
from arcft.training.batches import collate
from arcft.training.slots import SlotTrainer
from arcft.ttft.engine import slot_autotune as slot_search
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
    Started,
    Stepped,
    Unit,
)
from tests.support.small_engine import (
    NEVER,
    ListQueue,
    adapted_model,
    assignment_of,
    deal_views,
    events_of,
    inference_config,
    kinds,
    make_builder,
    make_engine,
    outcome,
    questions,
    run,
    small_tasks,
    unit_of,
    without_time,
)

TASKS = 4


@pytest.fixture(scope="module")
def tasks() -> list[Task]:
    return small_tasks(TASKS)


class Clock:
    """Moves on by a second whenever it is looked at."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


def texts(events: list[Event], unit: str) -> list[str]:
    return [prediction.text for event in events_of(events, unit, Predicted) for prediction in event.predictions]


def test_what_happens_to_a_unit_is_told_in_order(tasks: list[Task]) -> None:
    events = run(make_engine(), [assignment_of(tasks[0]), assignment_of(tasks[1], predictions=2)])
    assert list(kinds(events)) == [
        *["Started", *["Stepped"] * 4, "Adapted", "Predicted", "Predicted", "Finished"],
        *["Started", *["Stepped"] * 4, "Adapted", "Predicted", "Finished"],
    ]
    assert [event.key for event in events[:9]] == [(ADAPT_ROUND, tasks[0].id)] * 9
    steps = [event for event in events[:9] if isinstance(event, Stepped)]
    assert [(step.step, step.steps) for step in steps] == [(number, 4) for number in (1, 2, 3, 4)]
    (adapted,) = events_of(events, tasks[0].id, Adapted)
    assert (adapted.steps, adapted.ended, adapted.adapter) == (4, "steps", None)
    assert adapted.losses == tuple(step.loss for step in steps)
    assert adapted.tokens == sum(step.tokens for step in steps)
    assert adapted.seconds == pytest.approx(sum(step.seconds for step in steps))
    answered = events_of(events, tasks[0].id, Predicted)
    assert [(p.task_id, p.test_index) for event in answered for p in event.predictions] == [
        (tasks[0].id, index) for index in (0, 0, 0, 1, 1, 1)
    ]
    assert all(event.tokens > 3 * 10 and event.seconds > 0 for event in answered)
    assert len(events_of(events, tasks[1].id, Predicted)[0].predictions) == 2
    started = events_of(events, tasks[0].id, Started)[0]
    assert started.recipe == {
        "slots": 1,
        "gradient_checkpointing": False,
        "max_seq_length": 512,
        "rank": 4,
        "batch_size": 3,
        "merge": True,
        "slots_known": True,
        "learning_rate": 1e-2,
    }
    assert started.notes == ()


def test_a_unit_is_trained_and_predicted_as_by_a_plain_loop(tasks: list[Task]) -> None:
    task, steps = tasks[0], 6
    events = run(make_engine(max_steps=steps), [assignment_of(task, steps=steps, seed=5)])
    model, builder = adapted_model(), make_builder()
    seed = derived_seed(5, task.id)
    stream = ExampleStream(
        ItemSampler([(1.0, [task])], seed=seed),
        questions(),
        builder,
        length=steps,
        seed=seed,
    )
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.0)
    losses = []
    for step in range(steps):
        # ttft.warmup_ratio of 6 steps rounds to none; down in a straight line.
        optimizer.param_groups[0]["lr"] = 1e-2 * (steps - step) / steps
        loss = model(**collate([stream[step]], pad_id=0)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    (adapted,) = events_of(events, task.id, Adapted)
    assert adapted.losses == pytest.approx(losses, rel=1e-4)
    expected = [
        p for group in predict_problems(model, builder, deal_views(), [task], inference_config()) for p in group
    ]
    found = [p for event in events_of(events, task.id, Predicted) for p in event.predictions]
    assert [p.text for p in found] == [p.text for p in expected]
    assert [p.transform for p in found] == [p.transform for p in expected]
    assert [p.logprob for p in found] == pytest.approx([p.logprob for p in expected], rel=1e-3)


@pytest.mark.parametrize("changes", [{}, {"patience": 2, "batch_size": 2}], ids=["plain", "patience"])
def test_with_one_slot_a_unit_depends_on_nothing_else_in_the_run(tasks: list[Task], changes: dict[str, Any]) -> None:
    wanted = [assignment_of(task) for task in tasks]
    expected = {
        assignment.unit.name: outcome(run(make_engine(**changes), [assignment]), assignment) for assignment in wanted
    }
    before = [assignment_of(task, steps=0, round=BASELINE_ROUND, predictions=1) for task in tasks]
    engine = make_engine(**changes)
    together = run(engine, [before[1], *wanted, *before])
    # A new engine of the same process, and one that was stopped in the middle of another unit.
    again = run(engine, wanted[::-1])
    stops = itertools.chain([False] * 9, itertools.repeat(True))
    run(engine, [wanted[3]], lambda: next(stops))
    after_stop = run(engine, wanted[:1])
    for assignment in wanted:
        main = [event for event in together if event.key[0] == ADAPT_ROUND]
        assert outcome(main, assignment) == expected[assignment.unit.name]
        assert outcome(again, assignment) == expected[assignment.unit.name]
    assert outcome(after_stop, wanted[0]) == expected[tasks[0].id]


def test_the_seed_and_the_name_decide_the_examples(tasks: list[Task]) -> None:
    def losses(assignment: Assignment) -> tuple[float, ...]:
        events = run(make_engine(), [assignment])
        return events_of(events, assignment, Adapted)[0].losses  # type: ignore[no-any-return]

    first = losses(assignment_of(tasks[0]))
    assert losses(assignment_of(tasks[0], round=2)) == first
    assert losses(assignment_of(tasks[0], seed=1)) != first
    assert losses(assignment_of(unit_of(tasks[0], name="other"))) != first


def test_no_steps_predict_with_the_adapter_of_the_start(tasks: list[Task]) -> None:
    assignments = [assignment_of(task, steps=0, round=BASELINE_ROUND) for task in tasks[:2]]
    events = run(make_engine(), assignments)
    assert list(kinds(events)) == ["Started", "Predicted", "Predicted", "Finished", "Started", "Predicted", "Finished"]
    expected = predict_problems(adapted_model(), make_builder(), deal_views(), tasks[:2], inference_config())
    assert [p.text for e in events if isinstance(e, Predicted) for p in e.predictions] == [
        p.text for group in expected for p in group
    ]


def test_predictions_go_on_where_others_ended(tasks: list[Task]) -> None:
    many = run(make_engine(), [assignment_of(tasks[1], predictions=6)])
    more = run(make_engine(), [assignment_of(tasks[1], first_prediction=2, predictions=4)])
    of_many, of_more = (
        [without_time(p) for e in events_of(x, tasks[1].id, Predicted) for p in e.predictions] for x in (many, more)
    )
    assert [p.transform for p in of_more] == [p.transform for p in of_many[2:]]
    assert [p.text for p in of_more] == [p.text for p in of_many[2:]]


def test_tests_that_are_done_are_left_out(tasks: list[Task]) -> None:
    whole = run(make_engine(), [assignment_of(tasks[0])])
    rest = run(make_engine(), [assignment_of(tasks[0], done=frozenset({(tasks[0].id, 0)}))])
    assert outcome(rest, tasks[0].id) == [outcome(whole, tasks[0].id)[0], outcome(whole, tasks[0].id)[2]]
    everything = frozenset({(tasks[0].id, 0), (tasks[0].id, 1)})
    nothing = run(make_engine(), [assignment_of(tasks[0], steps=0, done=everything)])
    assert list(kinds(nothing)) == ["Started", "Finished"]


def saving_to(folder: Path) -> Callable[..., str]:
    def save(unit: Unit, steps: int, write: Callable[[Path], None]) -> str:
        target = folder / f"{unit.name}-{steps}"
        write(target)
        return str(target)

    return save


def test_a_saved_adapter_answers_as_the_unit_did(tasks: list[Task], tmp_path: Path) -> None:
    engine = make_engine(options={"save": saving_to(tmp_path)})
    trained = run(engine, [assignment_of(tasks[0]), assignment_of(tasks[1], round=2)])
    (adapted,) = events_of(trained, tasks[0].id, Adapted)
    assert adapted.adapter == str(tmp_path / f"{tasks[0].id}-4")
    # Only the main round's: another round's would be taken for it.
    assert events_of(trained, tasks[1].id, Adapted)[0].adapter is None
    again = assignment_of(tasks[0], adapter=adapted.adapter)
    events = run(make_engine(), [again])
    assert list(kinds(events)) == ["Started", "Predicted", "Predicted", "Finished"]
    assert outcome(events, again) == outcome(trained, again)[1:]


def test_a_saved_adapter_that_is_damaged_is_made_again(tasks: list[Task], tmp_path: Path) -> None:
    expected = run(make_engine(), [assignment_of(tasks[0])])
    events = run(make_engine(), [assignment_of(tasks[0], adapter=str(tmp_path / "gone"))])
    assert outcome(events, tasks[0].id) == outcome(expected, tasks[0].id)
    (note,) = events_of(events, tasks[0].id, Started)[0].notes
    assert note.startswith("adapted again, as its adapter can't be used: ")
    assert str(tmp_path / "gone") in note


def test_with_another_adapter_all_tests_are_answered_again(tasks: list[Task], tmp_path: Path) -> None:
    # What the lost adapter answered is thrown away when the unit is adapted to again.
    gone = assignment_of(tasks[0], adapter=str(tmp_path / "gone"), done=frozenset({(tasks[0].id, 0)}))
    events = run(make_engine(), [gone])
    assert outcome(events, gone) == outcome(run(make_engine(), [assignment_of(tasks[0])]), gone)


@pytest.mark.parametrize("slots", [2, 3])
def test_several_slots_give_what_one_gives(tasks: list[Task], slots: int) -> None:
    # Of unequal lengths, so that slots end at different times and are filled again.
    wanted = [assignment_of(task, steps=steps) for task, steps in zip(tasks, (3, 6, 4, 5), strict=True)]
    one = run(make_engine(), wanted)
    several = run(make_engine(slots=slots), wanted)
    for assignment in wanted:
        (alone,), (beside,) = events_of(one, assignment, Adapted), events_of(several, assignment, Adapted)
        assert beside.losses == pytest.approx(alone.losses, rel=1e-4)
        assert (beside.tokens, beside.steps) == (alone.tokens, alone.steps)
        assert texts(several, assignment.unit.name) == texts(one, assignment.unit.name)
    open_units, most = set(), 0
    for event in several:
        open_units |= {event.key} if isinstance(event, Started) else set()
        most = max(most, len(open_units))
        open_units -= {event.key} if isinstance(event, Finished) else set()
    assert most == slots


def test_a_unit_is_asked_for_when_a_slot_is_free_and_near_the_others_length(tasks: list[Task]) -> None:
    queue = ListQueue([assignment_of(task, steps=steps) for task, steps in zip(tasks, (3, 6, 4, 5), strict=True)])
    list(make_engine(slots=2).work(queue, NEVER))
    lengths = [unit_of(task).length for task in tasks]
    # Two at first; then beside the second (and, when that ends, beside the third); at the end there is nothing more.
    assert queue.asked[:4] == [None, lengths[0], lengths[1], lengths[2]]
    assert set(queue.asked[4:]) <= {None, *lengths}
    # Once after every step while a slot is free: of the last unit's two that it makes alone, and when all is done.
    assert len(queue.asked) <= 2 * TASKS + 6


def handed_out_after(events: list[Event], wanted: list[Assignment], steps: int) -> Callable[[int | None], Any]:
    """A queue that knows after so many steps what they cost, and gives nothing but its first unit before."""
    waiting = list(wanted)

    def pull(near: int | None) -> Assignment | None:
        known = [event for event in events if isinstance(event, Stepped)][steps - 1 :]
        return waiting.pop(0) if waiting and (known or len(waiting) == len(wanted)) else None

    return pull


def test_what_was_held_back_at_first_joins_while_others_are_trained(tasks: list[Task]) -> None:
    events: list[Event] = []
    pull = handed_out_after(events, [assignment_of(task, steps=6) for task in tasks[:2]], 2)
    for event in make_engine(slots=2).work(pull, NEVER):
        events.append(event)
    assert [type(event) for event in events[:4]] == [Started, Stepped, Stepped, Started]
    assert list(kinds(events)).count("Finished") == 2


def test_slots_are_measured_also_where_units_are_held_back_at_first(tasks: list[Task]) -> None:
    events: list[Event] = []
    wanted = [assignment_of(task, steps=9, round=number) for number in (1, 2) for task in tasks]
    for event in make_engine(slots="auto").work(handed_out_after(events, wanted, 2), NEVER):
        events.append(event)
    (chosen,) = [event for event in events if isinstance(event, Lowered)]
    assert re.match(r"ttft\.slots=auto: \d \(2 are ", chosen.reason)
    assert list(kinds(events)).count("Stepped") == 9 * len(wanted)


def test_what_failed_elsewhere_may_come_back(tasks: list[Task]) -> None:
    waiting: list[Assignment | None] = [assignment_of(tasks[0]), None, assignment_of(tasks[1]), None, None]
    events = list(make_engine(slots=2).work(lambda near: waiting.pop(0), NEVER))
    assert [event.key[1] for event in events if isinstance(event, Finished)] == [tasks[0].id, tasks[1].id]
    assert waiting == []


def test_a_stop_ends_within_a_step_or_a_test(tasks: list[Task]) -> None:
    whole = list(kinds(run(make_engine(), [assignment_of(tasks[0]), assignment_of(tasks[1])])))
    for count in range(len(whole)):
        seen: list[Event] = []
        engine = make_engine()
        for event in engine.work(
            ListQueue([assignment_of(tasks[0]), assignment_of(tasks[1])]),
            lambda seen=seen, count=count: len(seen) > count,
        ):
            seen.append(event)
        assert list(kinds(seen))[: count + 1] == whole[: count + 1]
        # What a pass or a test has brought is still told, and what needs no time.
        assert sum(isinstance(event, Stepped | Predicted) for event in seen[count + 1 :]) <= 1


def test_a_deadline_ends_training_and_leaves_time_to_predict(tasks: list[Task]) -> None:
    engine = make_engine(options={"clock": Clock()}, inference=inference_config(batch_size=1))
    events = run(engine, [assignment_of(tasks[0], steps=50, predictions=9, deadline=20.0)])
    (adapted,) = events_of(events, tasks[0].id, Adapted)
    assert adapted.ended == "deadline"
    assert 3 <= adapted.steps < 12
    counts = [len(event.predictions) for event in events_of(events, tasks[0].id, Predicted)]
    assert len(counts) == 2
    assert all(1 <= count < 9 for count in counts)
    assert isinstance(events[-1], Finished)


def test_when_it_is_too_late_there_is_one_prediction_of_the_start(tasks: list[Task]) -> None:
    events = run(make_engine(), [assignment_of(tasks[0], steps=50, deadline=0.0)])
    assert list(kinds(events)) == ["Started", "Adapted", "Predicted", "Predicted", "Finished"]
    assert (events[1].steps, events[1].losses, events[1].ended) == (0, (), "deadline")  # type: ignore[attr-defined]
    start = run(make_engine(), [assignment_of(tasks[0], steps=0)])
    assert texts(events, tasks[0].id) == [texts(start, tasks[0].id)[0], texts(start, tasks[0].id)[3]]


def test_patience_ends_a_unit_that_learns_nothing_more_and_keeps_its_best_weights(tasks: list[Task]) -> None:
    task, steady = tasks[0], {"scheduler": "constant", "warmup_ratio": 0.0, "options": {"learning_rate": 1.0}}
    events = run(make_engine(patience=4, **steady), [assignment_of(task, steps=40)])
    (adapted,) = events_of(events, task.id, Adapted)
    assert adapted.ended == "patience"
    best = adapted.steps - 4
    assert 0 < best < 36
    assert events_of(events, task.id, Started)[0].notes == ()
    # Trained no longer than that, it answers the same; and another way when it is trained on.
    until_best = run(make_engine(patience=4, **steady), [assignment_of(task, steps=best)])
    assert events_of(until_best, task.id, Adapted)[0].losses == adapted.losses[:best]
    assert outcome(events, task.id)[1:] == outcome(until_best, task.id)[1:]
    trained_on = run(make_engine(patience=1000, **steady), [assignment_of(task, steps=1)])
    assert outcome(trained_on, task.id)[1:] != outcome(until_best, task.id)[1:]


def test_patience_does_not_end_what_goes_on_learning(tasks: list[Task]) -> None:
    events = run(make_engine(patience=8), [assignment_of(tasks[0], steps=12)])
    (adapted,) = events_of(events, tasks[0].id, Adapted)
    assert (adapted.ended, adapted.steps) == ("steps", 12)


def test_without_a_third_demonstration_patience_has_no_effect(tasks: list[Task]) -> None:
    task = dataclasses.replace(tasks[1], train=tasks[1].train[:2])
    plain = run(make_engine(), [assignment_of(task)])
    events = run(make_engine(patience=1, options={}), [assignment_of(task)])
    assert outcome(events, task.id) == outcome(plain, task.id)
    note = "too few demonstrations to hold one back, so ttft.patience has no effect"
    assert events_of(events, task.id, Started)[0].notes == (note,)


def test_a_task_of_one_demonstration_is_adapted_to_and_says_so(tasks: list[Task]) -> None:
    task = dataclasses.replace(tasks[1], train=tasks[1].train[:1])
    events = run(make_engine(), [assignment_of(task)])
    assert isinstance(events[-1], Finished)
    assert len(events_of(events, task.id, Adapted)[0].losses) == 4
    note = "the task has one demonstration only, so its variants are learned from each other"
    assert events_of(events, task.id, Started)[0].notes == (note,)


def wide_task() -> Task:
    grid = as_grid([[0, 1, 2] * 6] * 18)
    return Task("wide", train=(Pair(grid, grid), Pair(grid, grid)), test=(Pair(grid),))


def test_a_task_that_is_too_long_fails_once_and_the_others_go_on(tasks: list[Task]) -> None:
    events = run(make_engine(), [assignment_of(wide_task()), assignment_of(tasks[0])])
    assert events[0] == Failed(
        key=(ADAPT_ROUND, "wide"),
        reason="too long for ttft: no example fits 512 tokens, not even with one demonstration; raise "
        "inference.max_seq_length",
        retry=False,
    )
    assert isinstance(events[-1], Finished)


def test_a_unit_of_several_tasks_has_one_adapter(tasks: list[Task]) -> None:
    unit = unit_of(*tasks[:2], wide_task(), name="split-0")
    events = run(make_engine(), [assignment_of(unit, steps=6)])
    (started,) = events_of(events, "split-0", Started)
    assert started.notes == ("left out, too long even with one demonstration: wide",)
    answered = [
        (e.predictions[0].task_id, e.predictions[0].test_index) for e in events_of(events, unit.name, Predicted)
    ]
    assert answered == [(tasks[0].id, 0), (tasks[0].id, 1), (tasks[1].id, 0), ("wide", 0)]
    assert list(kinds(events)).count("Adapted") == list(kinds(events)).count("Finished") == 1


def test_a_loss_that_is_no_number_fails_the_unit_and_no_other(tasks: list[Task]) -> None:
    for slots in (1, 2):
        stacked = StackedLora(adapted_model(), slots)
        healthy = run(make_engine(stacked=stacked, slots=slots), [assignment_of(tasks[1], steps=6)])
        engine = make_engine(stacked=stacked, slots=slots, options={"learning_rate": 1e30}, scheduler="constant")
        events = run(engine, [assignment_of(tasks[0], steps=6)])
        assert isinstance(events[-1], Failed)
        assert events[-1].retry
        assert events[-1].reason.startswith("not finite: loss nan")
        again = run(make_engine(stacked=stacked, slots=slots), [assignment_of(tasks[1], steps=6)])
        assert outcome(again, tasks[1].id) == outcome(healthy, tasks[1].id)


def test_logits_that_are_no_numbers_fail_the_unit(tasks: list[Task]) -> None:
    adapted = adapted_model()
    with torch.no_grad():
        adapted.get_input_embeddings().weight.fill_(float("nan"))
    events = run(make_engine(stacked=StackedLora(adapted, 1)), [assignment_of(tasks[0], steps=0)])
    assert isinstance(events[-1], Failed)
    assert events[-1].retry
    assert "not finite" in events[-1].reason


def test_a_second_try_is_gentler_shorter_and_alone(tasks: list[Task]) -> None:
    second = assignment_of(tasks[1], attempt=1)
    events = run(make_engine(slots=3), [assignment_of(tasks[0], steps=6), second, assignment_of(tasks[2])])
    recipe = events_of(events, second, Started)[0].recipe
    assert (recipe["slots"], recipe["max_seq_length"], recipe["learning_rate"]) == (
        1,
        second.unit.length * 3 // 4,
        5e-3,
    )
    steps = [event.key[1] for event in events if isinstance(event, Stepped)]
    first = steps.index(tasks[1].id)
    assert steps[first : first + 4] == [tasks[1].id] * 4
    assert sorted(set(steps)) == sorted(task.id for task in tasks[:3])
    alone = run(make_engine(), [second])
    assert outcome(events, second) == outcome(alone, second)


def test_a_second_try_is_shorter_than_what_the_task_needs(tasks: list[Task]) -> None:
    second = assignment_of(tasks[1], attempt=1)
    longest = []
    for attempt in (0, 1):
        engine = make_engine()
        (adapted,) = events_of(run(engine, [assignment_of(tasks[1], attempt=attempt)]), second, Adapted)
        longest.append(adapted.tokens)
    assert longest[1] < longest[0]
    # Two demonstrations of unlike size: three quarters hold neither question, so the second try has the whole context.
    small, large = as_grid([[1]]), as_grid([[1, 2] * 4] * 8)
    task = Task("unlike", train=(Pair(large, small), Pair(small, large)), test=(Pair(small, small),))
    events = run(make_engine(), [assignment_of(task, attempt=1)])
    assert isinstance(events[-1], Finished)


def test_measuring_the_slots_wastes_nothing_and_tells_its_choice(tasks: list[Task]) -> None:
    wanted = [assignment_of(task, steps=9, round=number) for number in (1, 2) for task in tasks]
    engine = make_engine(slots="auto")
    events = run(engine, wanted)
    (chosen,) = [event for event in events if isinstance(event, Lowered)]
    assert chosen.recipe["slots"] == engine.memory.slots
    assert engine.memory.slots in (1, 2, 4, 8)
    assert chosen.reason.startswith(f"ttft.slots=auto: {engine.memory.slots} (2 are ")
    assert list(kinds(events)).count("Stepped") == 9 * len(wanted)
    one = run(make_engine(), wanted[:4])
    for assignment in wanted[:4]:
        main = [event for event in events if event.key[0] == ADAPT_ROUND]
        (measured,), (alone,) = events_of(main, assignment, Adapted), events_of(one, assignment, Adapted)
        assert measured.losses == pytest.approx(alone.losses, rel=1e-3)
    # A later engine of the same run begins with the choice.
    later = run(make_engine(slots="auto", options={"memory": engine.memory}), wanted[:2])
    assert not [event for event in later if isinstance(event, Lowered)]


def test_one_unit_alone_leaves_nothing_to_measure(tasks: list[Task]) -> None:
    events = run(make_engine(slots="auto"), [assignment_of(tasks[0], steps=8)])
    (chosen,) = [event for event in events if isinstance(event, Lowered)]
    assert (chosen.recipe["slots"], chosen.reason) == (1, "ttft.slots=auto: 1 (nothing to compare)")
    assert isinstance(events[-1], Finished)


@pytest.mark.parametrize(("lengths", "times"), [((400, 300), 1), ((400, 200), 2)])
def test_slots_are_measured_again_for_units_of_half_the_length(
    tasks: list[Task], monkeypatch: pytest.MonkeyPatch, lengths: tuple[int, int], times: int
) -> None:
    # More are never found to pay.
    monkeypatch.setattr(slot_search, "GAIN", float("inf"))
    units = [Unit(name=f"{length}-{task.id}", problems=(task,), length=length) for length in lengths for task in tasks]
    engine = make_engine(slots="auto")
    events = run(engine, [assignment_of(unit, steps=9) for unit in units])
    chosen = [event for event in events if isinstance(event, Lowered)]
    assert len(chosen) == times
    assert all(event.reason.startswith("ttft.slots=auto: 1 (2 are ") for event in chosen)
    assert list(kinds(events)).count("Stepped") == 9 * len(units)


def test_slots_that_were_not_chosen_are_given_back(tasks: list[Task]) -> None:
    stacked = StackedLora(adapted_model(), 1)
    slots = []
    for event in make_engine(stacked=stacked, slots="auto").work(ListQueue([assignment_of(tasks[0], steps=8)]), NEVER):
        if isinstance(event, Stepped):
            slots.append(stacked.slots)
    # It had a second one while it waited for another unit.
    assert slots[-1] == 1


def test_slots_are_measured_also_where_memory_ran_out_before(tasks: list[Task]) -> None:
    # An earlier process came no further than predictions before adapting, in smaller batches.
    earlier = make_engine(slots="auto").memory
    engine = make_engine(slots="auto", options={"memory": dataclasses.replace(earlier, batch_size=1)})
    events = run(engine, [assignment_of(task, steps=9, round=number) for number in (1, 2) for task in tasks])
    (chosen,) = [event for event in events if isinstance(event, Lowered)]
    assert chosen.reason.startswith(f"ttft.slots=auto: {engine.memory.slots} (2 are ")
    assert engine.memory.batch_size == 1


def test_a_full_disk_is_no_units_fault(tasks: list[Task], tmp_path: Path) -> None:
    def save(unit: Unit, steps: int, write: Callable[[Path], None]) -> str:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        run(make_engine(options={"save": save}), [assignment_of(tasks[0])])


def test_a_bug_in_one_unit_is_told_and_the_others_go_on(tasks: list[Task], caplog: pytest.LogCaptureFixture) -> None:
    def broken(task: Task, rng: Any) -> Any:
        if task.id == tasks[0].id:
            raise ZeroDivisionError("division by zero")
        return Identity()

    asked = GridQuestionSampler(broken, view="leave_one_out", input_from_inputs=0.0, cells_are_tokens=False)
    events = run(make_engine(options={"questions": asked}), [assignment_of(tasks[0]), assignment_of(tasks[1])])
    (failed,) = [event for event in events if isinstance(event, Failed)]
    assert (failed.key, failed.retry) == ((ADAPT_ROUND, tasks[0].id), True)
    assert failed.reason == "ZeroDivisionError: division by zero"
    assert isinstance(events[-1], Finished)
    assert "in broken" in caplog.text


@pytest.mark.parametrize("slots", [1, 3])
def test_a_base_of_16_bits(tasks: list[Task], slots: int) -> None:
    stacked = StackedLora(adapted_model(torch.bfloat16), slots)
    weights = {name: value.clone() for name, value in stacked.model.state_dict().items()}
    wanted = [assignment_of(task, steps=20) for task in tasks]
    events = run(make_engine(stacked=stacked, slots=slots, max_steps=20), wanted)
    assert list(kinds(events)).count("Finished") == len(wanted)
    for event in events:
        if isinstance(event, Adapted):
            assert sum(event.losses[-5:]) < sum(event.losses[:5])
    # Merging has left nothing behind in the weights that all units share.
    assert all(torch.equal(value, weights[name]) for name, value in stacked.model.state_dict().items())


def test_a_model_that_takes_one_slot_only(tasks: list[Task], monkeypatch: pytest.MonkeyPatch) -> None:
    step = SlotTrainer.step

    def one_only(self: SlotTrainer, examples: Any, first: int = 0) -> Any:
        if len(examples) > 1:
            raise LoraError("model.layers.0.mlp.experts: its rows are not in equal groups; use ttft.slots=1")
        return step(self, examples, first)

    monkeypatch.setattr(SlotTrainer, "step", one_only)
    units = [
        Unit(name=f"{length}-{task.id}", problems=(task,), length=length) for length in (400, 100) for task in tasks[:2]
    ]
    events = run(make_engine(slots="auto"), [assignment_of(unit) for unit in units])
    (chosen,) = [event for event in events if isinstance(event, Lowered)]
    assert chosen.recipe["slots"] == 1
    assert "experts: its rows are not in equal groups" in chosen.reason
    assert list(kinds(events)).count("Finished") == 4
    with pytest.raises(LoraError, match=r"use ttft\.slots=1"):
        run(make_engine(slots=2), [assignment_of(task) for task in tasks[:2]])


def test_deadlines_of_units_side_by_side(tasks: list[Task]) -> None:
    clock = Clock()
    engine = make_engine(slots=2, options={"clock": clock})
    short, long = assignment_of(tasks[1], steps=60, deadline=10.0), assignment_of(tasks[2], steps=60, deadline=60.0)
    events = run(engine, [short, long])
    (first,), (second,) = (events_of(events, unit, Adapted) for unit in (short, long))
    assert (first.ended, second.ended) == ("deadline", "deadline")
    assert 0 < first.steps < second.steps < 60
    assert all(len(event.predictions) >= 1 for event in events if isinstance(event, Predicted))
    assert list(kinds(events)).count("Finished") == 2
