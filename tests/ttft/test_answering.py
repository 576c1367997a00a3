"""Predictions of several units: merged one by one, or side by side, and what is lost between the two."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from arcft.prediction import predict
from arcft.problems.arc.task import GridAnswer, Task, as_grid
from arcft.scoring.predictions import Prediction
from arcft.ttft.engine.engine import Engine
from arcft.ttft.engine.predict_slots import side_by_side
from arcft.ttft.units import Adapted, Event, Failed, Finished, Predicted
from tests.support.small_engine import assignment_of, events_of, inference_config, kinds, make_engine, run, small_tasks


@pytest.fixture(scope="module")
def tasks() -> list[Task]:
    return small_tasks(4)


@pytest.mark.parametrize(
    ("units", "predictions", "batch_size", "together", "can_merge", "expected"),
    [
        (1, 4, 32, True, True, False),
        (4, 4, 32, False, True, False),  # a CPU, or one slot
        (4, 4, 32, True, True, True),
        (4, 16, 32, True, True, True),
        (4, 17, 32, True, True, False),  # one test fills the batch
        (4, 17, 32, True, False, True),
        (4, 4, 32, False, False, False),
    ],
)
def test_units_go_side_by_side_where_that_fills_batches(
    tasks: list[Task], units: int, predictions: int, batch_size: int, together: bool, can_merge: bool, expected: bool
) -> None:
    assignments = [assignment_of(task, predictions=predictions) for task in tasks[:units]]
    assert side_by_side(assignments, batch_size=batch_size, together=together, can_merge=can_merge) is expected


def as_on_a_gpu(batch_size: int, **changes: Any) -> Engine:
    engine = make_engine(inference=inference_config(batch_size=batch_size), **changes)
    engine._answering.together = True
    return engine


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of all batches that are decoded."""
    decode, sizes = predict.decode, []

    def counted(model: Any, prompts: list[list[int]], *arguments: Any, **options: Any) -> Any:
        sizes.append(len(prompts))
        return decode(model, prompts, *arguments, **options)

    monkeypatch.setattr(predict, "decode", counted)
    return sizes


def answers(events: list[Event]) -> dict[tuple[str, int], list[str]]:
    return {
        (event.predictions[0].task_id, event.predictions[0].test_index): [p.text for p in event.predictions]
        for event in events
        if isinstance(event, Predicted)
    }


def test_side_by_side_gives_what_merged_gives(tasks: list[Task], batches: list[int]) -> None:
    wanted = [assignment_of(task, steps=6, predictions=2) for task in tasks]
    merged = run(make_engine(slots=4), wanted)
    assert batches == [2] * 5
    batches.clear()
    beside = run(as_on_a_gpu(6, slots=4), wanted)
    # Four units end together; of their five tests three fit into a batch.
    assert batches == [6, 4]
    assert answers(beside) == answers(merged)
    assert list(kinds(beside)).count("Finished") == 4
    last_adapted = max(number for number, event in enumerate(beside) if isinstance(event, Adapted))
    assert all(not isinstance(event, Predicted) for event in beside[:last_adapted])
    for task in tasks:
        own, others = ([p for e in events_of(x, task.id, Predicted) for p in e.predictions] for x in (beside, merged))
        assert [p.logprob for p in own] == pytest.approx([p.logprob for p in others], rel=1e-3)


def test_units_without_training_share_batches(tasks: list[Task], batches: list[int]) -> None:
    wanted = [assignment_of(task, steps=0, round=0, predictions=1) for task in tasks]
    one_by_one = run(make_engine(slots=2), wanted)
    assert batches == [1] * 5
    batches.clear()
    events = run(as_on_a_gpu(8, slots=2), [*wanted, assignment_of(tasks[0])])
    assert batches[0] == 5
    before = [event for event in events if event.key[0] == 0]
    assert answers(before) == answers(one_by_one)
    told = ["Started"] * 4 + ["Predicted", "Predicted", "Finished"] + ["Predicted", "Finished"] * 3
    assert list(kinds(before)) == told
    assert isinstance(events[-1], Finished)


def test_of_a_batch_that_fails_only_the_unit_to_blame_fails(tasks: list[Task], monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [assignment_of(task, steps=0, round=0, predictions=1) for task in tasks]
    expected = answers(run(make_engine(slots=2), wanted))
    places = predict.predict_places

    def broken(model: Any, builder: Any, asked: Any, config: Any, **options: Any) -> Any:
        if any(prompt.problem.id == tasks[2].id for prompt in asked):
            raise ValueError("no such token")
        return places(model, builder, asked, config, **options)

    monkeypatch.setattr("arcft.ttft.engine.predict_slots.predict_places", broken)
    events = run(as_on_a_gpu(8, slots=2), wanted)
    (failed,) = [event for event in events if isinstance(event, Failed)]
    assert failed == Failed(key=(0, tasks[2].id), reason="ValueError: no such token", retry=True)
    assert answers(events) == {key: texts for key, texts in expected.items() if key[0] != tasks[2].id}
    assert not events_of(events, tasks[2].id, Finished)


SEARCH = {"name": "search", "threshold": 1e-4, "max_nodes": 300, "batch_size": 6, "grammar": True}


def test_a_search_answers_prompts_with_several_predictions(tasks: list[Task]) -> None:
    wanted = [assignment_of(task, steps=2, predictions=2) for task in tasks[:2]]
    events = run(make_engine(inference=inference_config(**SEARCH)), wanted)
    told = [event for event in events if isinstance(event, Predicted)]
    assert [event.prompts for event in told] == [2, 2, 2]
    assert sum(len(event.predictions) for event in told) > 6
    for event in told:
        transforms = [str(prediction.transform) for prediction in event.predictions]
        # Those of one prompt follow each other.
        assert len([one for one, before in zip(transforms, ["", *transforms], strict=False) if one != before]) == 2


def test_a_search_that_is_stopped_is_not_told(tasks: list[Task], monkeypatch: pytest.MonkeyPatch) -> None:
    search, begun = predict.search, []

    def listening(*arguments: Any, **options: Any) -> Any:
        begun.append(True)
        return search(*arguments, **options)

    monkeypatch.setattr(predict, "search", listening)
    wanted = [assignment_of(tasks[1], steps=1)]
    events = run(make_engine(inference=inference_config(**SEARCH)), wanted, lambda: bool(begun))
    assert list(kinds(events)) == ["Started", "Stepped", "Adapted"]
    assert begun == [True]


def scores(events: list[Event]) -> dict[tuple[str, int], list[tuple[float, ...]]]:
    return {
        (event.predictions[0].task_id, event.predictions[0].test_index): [
            prediction.scores for prediction in event.predictions if prediction.scores is not None
        ]
        for event in events
        if isinstance(event, Predicted)
    }


@pytest.fixture
def grids_of_one_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is written counts as a grid: one cell, its colour the number of the prediction in its pass."""
    places = predict.predict_places

    def as_grids(*arguments: Any, **options: Any) -> dict[int, list[Prediction]]:
        found = places(*arguments, **options)
        return {
            place: [dataclasses.replace(prediction, answer=GridAnswer(as_grid([[place % 2]])))]
            for place, (prediction,) in found.items()
        }

    monkeypatch.setattr("arcft.ttft.engine.predict_slots.predict_places", as_grids)


@pytest.mark.usefixtures("grids_of_one_cell")
def test_grids_are_scored_by_the_adapter_that_has_predicted_them(tasks: list[Task]) -> None:
    wanted = [assignment_of(task, steps=6, predictions=2) for task in tasks]
    views = {"options": {"num_views": 3}}
    merged = scores(run(make_engine(slots=4, **views), wanted))
    beside = scores(run(as_on_a_gpu(6, slots=4, **views), wanted))
    unadapted = scores(run(make_engine(**views), [dataclasses.replace(each, steps=0) for each in wanted]))
    assert len(merged) == 5
    for key, own in merged.items():
        assert [len(each) for each in own] == [3, 3]
        for each, other, before in zip(own, beside[key], unadapted[key], strict=True):
            assert each == pytest.approx(other, rel=1e-3)
            assert each != pytest.approx(before, rel=1e-2)


@pytest.mark.usefixtures("grids_of_one_cell")
@pytest.mark.parametrize(("calls", "views"), [(2, []), (4, [2, 2]), (99, [3, 3])])
def test_a_deadline_ends_scoring_between_augmentations(tasks: list[Task], calls: int, views: list[int]) -> None:
    """The clock passes the deadline after so many looks at it, of which two are for the predictions."""
    looks = iter([0.0] * calls)
    engine = make_engine(options={"num_views": 3, "clock": lambda: next(looks, 2.0)})
    events = run(engine, [assignment_of(tasks[1], steps=0, predictions=2, deadline=1.0)])
    assert {key: [len(own) for own in found] for key, found in scores(events).items()} == {(tasks[1].id, 0): views}
    assert [len(event.predictions) for event in events_of(events, tasks[1].id, Predicted)] == [2]
    assert isinstance(events[-1], Finished)
