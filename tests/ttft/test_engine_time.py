"""How an engine divides its time: between training and predicting, among tests, and which seconds it reports."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import pytest

from arcft.models.stacked_lora import StackedLora
from arcft.prediction import predict
from arcft.problems.arc.task import GridAnswer, Task, as_grid
from arcft.training.slots import SlotTrainer
from arcft.ttft.units import Adapted, Event, Finished, Predicted, Stepped
from tests.support.small_engine import (
    adapted_model,
    assignment_of,
    events_of,
    inference_config,
    kinds,
    make_engine,
    run,
    small_tasks,
)
from tests.support.small_units import Clock
from tests.ttft.test_answering import as_on_a_gpu
from tests.ttft.test_engine_memory import lowered


@pytest.fixture(scope="module")
def tasks() -> list[Task]:
    return small_tasks(4)


@pytest.mark.parametrize(("deadline", "steps"), [(20.0, 10), (7.0, 4), (60.0, 25)])
def test_training_takes_half_of_the_time_to_the_deadline(tasks: list[Task], deadline: float, steps: int) -> None:
    """Each step takes a second; predicting no time."""
    clock = Clock(0.0)
    engine = make_engine(options={"clock": clock})
    events: list[Event] = []
    for event in engine.work(iter_of(assignment_of(tasks[1], steps=25, deadline=deadline)), lambda: False):
        clock.now += isinstance(event, Stepped)
        events.append(event)
    (adapted,) = events_of(events, tasks[1].id, Adapted)
    assert (adapted.steps, adapted.ended) == (steps, "steps" if steps == 25 else "deadline")


def iter_of(*assignments: Any) -> Any:
    waiting = list(assignments)
    return lambda near: waiting.pop(0) if waiting else None


def test_the_time_to_the_deadline_is_shared_among_the_tests_of_a_unit(
    tasks: list[Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each prediction takes a second, and there are twenty for two tests."""
    clock, decode = Clock(0.0), predict.decode

    def slow(*arguments: Any, **options: Any) -> Any:
        clock.now += 1
        return decode(*arguments, **options)

    monkeypatch.setattr(predict, "decode", slow)
    engine = make_engine(options={"clock": clock}, inference=inference_config(batch_size=1))
    events = run(engine, [assignment_of(tasks[0], steps=0, predictions=30, deadline=20.0)])
    assert [len(event.predictions) for event in events_of(events, tasks[0].id, Predicted)] == [10, 10]


def test_each_test_of_a_batch_is_charged_its_share_of_the_seconds(tasks: list[Task]) -> None:
    engine = as_on_a_gpu(32, slots=4)
    wanted = [assignment_of(task, steps=0, predictions=4) for task in tasks]
    start = time.perf_counter()
    events = run(engine, wanted)
    elapsed = time.perf_counter() - start
    charged = [event.seconds for event in events if isinstance(event, Predicted)]
    assert len(charged) == 5
    assert 0.3 * elapsed < sum(charged) <= elapsed


def test_answers_that_are_half_scored_when_it_is_stopped_are_not_reported(
    tasks: list[Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    places, stopping = predict.predict_places, []

    def as_grids(*arguments: Any, **options: Any) -> dict[int, list[Any]]:
        found = places(*arguments, **options)
        stopping.append(True)
        for predictions in found.values():
            for prediction in predictions:
                object.__setattr__(prediction, "answer", GridAnswer(as_grid([[1]])))
        return found

    monkeypatch.setattr("arcft.ttft.engine.predict_slots.predict_places", as_grids)
    engine = make_engine(options={"num_views": 3})
    events = run(engine, [assignment_of(tasks[1], steps=0, predictions=2)], stopped=lambda: bool(stopping))
    assert list(kinds(events)) == ["Started"]


@pytest.mark.parametrize(("steps", "looks"), [(5, 4), (6, 4), (1, 2)])
def test_with_patience_the_last_step_is_looked_at(
    tasks: list[Task], monkeypatch: pytest.MonkeyPatch, steps: int, looks: int
) -> None:
    """Before the first step, after every second one, and after the last."""
    loss, counted = SlotTrainer.loss, []

    def counting(self: SlotTrainer, slot: int, examples: Sequence[Any]) -> float:
        counted.append(slot)
        return loss(self, slot, examples)

    monkeypatch.setattr(SlotTrainer, "loss", counting)
    run(make_engine(patience=8), [assignment_of(tasks[0], steps=steps)])
    assert len(counted) == looks


def test_the_best_weights_are_forgotten_with_the_rank_that_they_have(
    tasks: list[Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory runs out after the best loss was seen, so that rank and slots are lowered; the unit is finished."""
    step = SlotTrainer.step
    done: list[int] = []

    def limited(self: SlotTrainer, examples: Sequence[Sequence[Any]], first: int = 0) -> Any:
        if len(done) >= 1 and self.stacked.rank > 8:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        done.append(first)
        return step(self, examples, first)

    monkeypatch.setattr(SlotTrainer, "step", limited)
    losses = iter([2.0, *(3.0 for _ in range(100))])
    monkeypatch.setattr(SlotTrainer, "loss", lambda self, slot, examples: next(losses))
    engine = make_engine(patience=40, stacked=StackedLora(adapted_model(r=16), 1), max_seq_length=200)
    events = run(engine, [assignment_of(tasks[0], steps=4)])
    assert lowered(events)[-1] == "out of memory: rank 16 -> 8"
    assert isinstance(events[-1], Finished)
