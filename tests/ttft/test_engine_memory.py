"""What the engine gives up when memory runs out, and what it keeps."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from arcft.models.stacked_lora import StackedLora
from arcft.prediction.prompts import AugmentedPrompt
from arcft.problems.arc.task import Task
from arcft.training.slots import SlotStep, SlotTrainer
from arcft.ttft.units import Adapted, Event, Failed, Finished, Lowered, Predicted, Started
from tests.support.paths import ROOT
from tests.support.small_engine import (
    adapted_model,
    assignment_of,
    events_of,
    inference_config,
    kinds,
    make_engine,
    outcome,
    run,
    small_tasks,
)

NO_MEMORY = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"


@pytest.fixture(scope="module")
def tasks() -> list[Task]:
    return small_tasks(4)


@pytest.fixture
def limit_memory(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[SlotTrainer, int, int], bool]], None]:
    """Have memory run out in training steps for which a rule of (trainer, slots, longest example) says so."""
    step = SlotTrainer.step

    def limit(too_much: Callable[[SlotTrainer, int, int], bool]) -> None:
        def limited(self: SlotTrainer, examples: Sequence[Sequence[Any]], first: int = 0) -> list[SlotStep]:
            longest = max(len(example.input_ids) for own in examples for example in own)
            if too_much(self, len(examples), longest):
                raise RuntimeError(NO_MEMORY)
            return step(self, examples, first)

        monkeypatch.setattr(SlotTrainer, "step", limited)

    return limit


def lowered(events: Sequence[Event]) -> list[str]:
    return [event.reason.partition(" (")[0] for event in events if isinstance(event, Lowered)]


def test_fewer_slots_first_and_what_was_learned_is_kept(tasks: list[Task], limit_memory: Any) -> None:
    wanted = [assignment_of(task, steps=5) for task in tasks]
    expected = run(make_engine(slots=4), wanted)
    limit_memory(lambda trainer, count, longest: count > 1)
    engine = make_engine(slots=4)
    events = run(engine, wanted)
    assert lowered(events) == ["out of memory: slots 4 -> 2", "out of memory: slots 2 -> 1"]
    assert engine.memory.slots == 1
    for assignment in wanted:
        (own,), (other,) = events_of(events, assignment, Adapted), events_of(expected, assignment, Adapted)
        assert own.losses == pytest.approx(other.losses, rel=1e-4)
    assert list(kinds(events)).count("Stepped") == 5 * 4


def test_a_step_that_ran_out_of_memory_is_repeated_not_lost(tasks: list[Task], limit_memory: Any) -> None:
    expected = run(make_engine(), [assignment_of(tasks[0], steps=5)])
    seen: list[int] = []

    def at_third_step(trainer: SlotTrainer, count: int, longest: int) -> bool:
        seen.append(count)
        return len(seen) == 3

    limit_memory(at_third_step)
    events = run(make_engine(), [assignment_of(tasks[0], steps=5)])
    assert lowered(events) == ["out of memory: gradient_checkpointing False -> True"]
    (own,), (other,) = events_of(events, tasks[0].id, Adapted), events_of(expected, tasks[0].id, Adapted)
    assert own.losses == pytest.approx(other.losses, rel=1e-5)
    assert len(seen) == 6


def test_then_activations_then_the_context_and_the_settings_stay_lowered(tasks: list[Task], limit_memory: Any) -> None:
    limit_memory(lambda trainer, count, longest: not trainer.gradient_checkpointing or longest > 90)
    engine = make_engine(max_seq_length=200)
    events = run(engine, [assignment_of(tasks[0]), assignment_of(tasks[2])])
    assert lowered(events) == [
        "out of memory: gradient_checkpointing False -> True",
        "out of memory: max_seq_length 200 -> 84",
    ]
    assert [event.key[1] for event in events if isinstance(event, Finished)] == [tasks[0].id, tasks[2].id]
    (started,) = events_of(events, tasks[2].id, Started)
    assert (started.recipe["max_seq_length"], started.recipe["gradient_checkpointing"]) == (84, True)


def test_last_the_rank(tasks: list[Task], limit_memory: Any) -> None:
    stacked = StackedLora(adapted_model(r=16), 1)
    limit_memory(lambda trainer, count, longest: trainer.stacked.rank > 8)
    events = run(make_engine(stacked=stacked, max_seq_length=200), [assignment_of(tasks[0], steps=6)])
    assert lowered(events)[-1] == "out of memory: rank 16 -> 8"
    assert stacked.rank == 8
    assert isinstance(events[-1], Finished)


def test_when_nothing_is_left_to_give_up_the_unit_fails(tasks: list[Task], limit_memory: Any) -> None:
    limit_memory(lambda trainer, count, longest: longest > 60)
    events = run(make_engine(), [assignment_of(tasks[0])])
    assert list(kinds(events)) == ["Started", "Lowered", "Failed"]
    assert isinstance(events[-1], Failed)
    assert events[-1].retry
    assert events[-1].reason == f"out of memory, and no setting is left to reduce: {NO_MEMORY}"


def test_units_that_wait_give_way_before_the_settings_do(tasks: list[Task], limit_memory: Any) -> None:
    wanted = [assignment_of(task, steps=5) for task in tasks]
    passes: list[int] = []

    def after_two_steps(trainer: SlotTrainer, count: int, longest: int) -> bool:
        passes.append(count)
        return len(passes) > 2 and (count > 2 or trainer.stacked.slots > 2)

    limit_memory(after_two_steps)
    engine = make_engine(slots=4)
    events = run(engine, wanted)
    assert lowered(events) == ["out of memory: slots 4 -> 2", "out of memory: 2 units restart later: " + NO_MEMORY]
    assert engine.memory.slots == 2
    for assignment in wanted:
        assert len(events_of(events, assignment, Adapted)[0].losses) == 5
        assert isinstance(events_of(events, assignment)[-1], Finished)


def test_slots_that_are_empty_are_given_up_at_once(tasks: list[Task], limit_memory: Any) -> None:
    limit_memory(lambda trainer, count, longest: trainer.stacked.slots > 1)
    events = run(make_engine(slots=8), [assignment_of(tasks[0])])
    assert lowered(events) == ["out of memory: slots 8 -> 1"]
    assert isinstance(events[-1], Finished)


def test_the_measuring_of_slots_ends_where_memory_does(tasks: list[Task], limit_memory: Any) -> None:
    limit_memory(lambda trainer, count, longest: count > 1)
    engine = make_engine(slots="auto")
    events = run(engine, [assignment_of(task) for task in tasks])
    assert lowered(events) == ["ttft.slots=auto: 1"]
    assert f"no memory for 2: {NO_MEMORY}" in next(e.reason for e in events if isinstance(e, Lowered))
    assert list(kinds(events)).count("Finished") == 4


def test_no_memory_to_look_at_what_is_held_back(tasks: list[Task], monkeypatch: pytest.MonkeyPatch) -> None:
    loss, looks = SlotTrainer.loss, []

    def limited(self: SlotTrainer, slot: int, examples: Sequence[Any]) -> float:
        looks.append(slot)
        if len(looks) == 3:
            raise RuntimeError(NO_MEMORY)
        return loss(self, slot, examples)

    monkeypatch.setattr(SlotTrainer, "loss", limited)
    # The third look is the one after the last step.
    events = run(make_engine(patience=8), [assignment_of(tasks[0], steps=4)])
    assert lowered(events) == ["out of memory: gradient_checkpointing False -> True"]
    assert isinstance(events[-1], Finished)


def test_who_loses_a_slot_while_others_are_looked_at_begins_again_whole(
    tasks: list[Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = [assignment_of(task, steps=5) for task in tasks[:2]]
    alone = run(make_engine(patience=4), wanted)
    loss, looks = SlotTrainer.loss, []

    def limited(self: SlotTrainer, slot: int, examples: Sequence[Any]) -> float:
        looks.append(slot)
        if len(looks) == 3:
            raise RuntimeError(NO_MEMORY)
        return loss(self, slot, examples)

    monkeypatch.setattr(SlotTrainer, "loss", limited)
    # Two looks before the first step, the third after it.
    events = run(make_engine(slots=2, patience=4), wanted)
    assert lowered(events) == ["out of memory: slots 2 -> 1"]
    for assignment in wanted:
        (own,), (other,) = events_of(events, assignment, Adapted), events_of(alone, assignment, Adapted)
        assert own.losses == pytest.approx(other.losses, rel=1e-4)


def test_no_memory_for_another_slot(tasks: list[Task], monkeypatch: pytest.MonkeyPatch) -> None:
    resize = StackedLora.resize

    def limited(self: StackedLora, slots: int) -> None:
        resize(self, slots)
        if slots > 2:
            raise RuntimeError(NO_MEMORY)

    stacked = StackedLora(adapted_model(), 2)
    monkeypatch.setattr(StackedLora, "resize", limited)
    events = run(make_engine(stacked=stacked, slots=4), [assignment_of(task) for task in tasks])
    assert lowered(events) == ["out of memory: slots 4 -> 2"]
    assert list(kinds(events)).count("Finished") == 4


@pytest.fixture
def limit_decoding(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int, int], bool]], None]:
    """Have memory run out in decoding batches for which a rule of (rows, longest prompt) says so."""
    from arcft.prediction import predict

    complete_prompts = predict.complete_prompts

    def limit(too_much: Callable[[int, int], bool]) -> None:
        def limited(model: Any, builder: Any, batch: Sequence[AugmentedPrompt], *others: Any, **options: Any) -> Any:
            if too_much(len(batch), max(len(prompt.token_ids) for prompt in batch)):
                raise RuntimeError(NO_MEMORY)
            return complete_prompts(model, builder, batch, *others, **options)

        monkeypatch.setattr(predict, "complete_prompts", limited)

    return limit


def test_prediction_goes_on_in_smaller_batches(tasks: list[Task], limit_decoding: Any) -> None:
    expected = run(make_engine(inference=inference_config(batch_size=1)), [assignment_of(tasks[0])])
    limit_decoding(lambda rows, longest: rows > 1)
    engine = make_engine(inference=inference_config(batch_size=4))
    events = run(engine, [assignment_of(tasks[0])])
    assert lowered(events) == ["out of memory: batch_size 4 -> 2", "out of memory: batch_size 2 -> 1"]
    assert engine.memory.batch_size == 1
    assert outcome(events, tasks[0].id) == outcome(expected, tasks[0].id)


def test_prompts_are_shortened_where_one_alone_is_too_much(tasks: list[Task], limit_decoding: Any) -> None:
    limit_decoding(lambda rows, longest: rows > 1 or longest > 100)
    engine = make_engine(max_seq_length=200)
    events = run(engine, [assignment_of(tasks[0], steps=0)])
    # Three quarters of what prompt and answer need, for each of the two tests.
    assert lowered(events)[1:] == [f"out of memory: prompts of {tasks[0].id} 200 -> 104 tokens"] * 2
    assert isinstance(events[-1], Finished)
    assert [len(event.predictions) for event in events if isinstance(event, Predicted)] == [3, 3]


def test_a_unit_that_no_prompt_is_short_enough_for_fails(tasks: list[Task], limit_decoding: Any) -> None:
    limit_decoding(lambda rows, longest: longest > 10)
    events = run(make_engine(), [assignment_of(tasks[0], steps=0), assignment_of(tasks[1], steps=0)])
    failed = [event for event in events if isinstance(event, Failed)]
    assert [event.reason for event in failed] == [f"out of memory, and no setting is left to reduce: {NO_MEMORY}"] * 2


def test_without_memory_to_merge_adapters_stay_beside_the_weights(
    tasks: list[Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run(make_engine(), [assignment_of(tasks[0])])

    @contextmanager
    def merged(self: StackedLora, slot: int) -> Iterator[None]:
        raise RuntimeError(NO_MEMORY)
        yield

    monkeypatch.setattr(StackedLora, "merged", merged)
    engine = make_engine()
    events = run(engine, [assignment_of(tasks[0]), assignment_of(tasks[1])])
    assert lowered(events) == ["out of memory: merge True -> False"]
    found, wanted = (
        [p for event in events_of(x, tasks[0].id, Predicted) for p in event.predictions] for x in (events, expected)
    )
    assert [p.text for p in found] == [p.text for p in wanted]


SCRIPT = """
import resource, sys, torch
torch.set_num_threads(1)
from tests.support.small_engine import *
from arcft.ttft.units import Lowered, Stepped
from tests.support.paths import ROOT
engine = make_engine(slots=4, batch_size=int(sys.argv[1]), max_seq_length=512)
wanted = [assignment_of(task, steps=3) for task in small_tasks(4)]
run(engine, wanted[:1])  # what libraries allocate once
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[2]) * 2**20,) * 2)
for event in run(engine, wanted):
    if isinstance(event, Lowered):
        print("lowered", event.reason.partition(" (")[0])
print("finished", engine.memory)
"""


@pytest.mark.slow
def test_memory_that_really_runs_out(tasks: list[Task]) -> None:
    root = ROOT
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, "64", "60"], capture_output=True, text=True, cwd=root, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "lowered out of memory: slots 4 -> 2" in done.stdout, done.stdout
    assert "finished" in done.stdout
