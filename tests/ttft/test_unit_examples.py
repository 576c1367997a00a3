"""What a unit is given to learn from: its demonstrations in turn, and never a test."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from arcft.problems.arc.augment.sampler import GridQuestionSampler
from arcft.problems.arc.augment.transforms import Identity
from arcft.problems.arc.own_examples import DemonstrationExamples, leave_one_out, variants_of_demonstration
from arcft.problems.arc.questions import ask_output
from arcft.problems.arc.task import Pair, Task, as_grid
from arcft.text.stream import LengthError
from arcft.ttft.engine.unit_examples import MOST_HELD_BACK, UnitExamples, prepare_examples, shortened
from tests.support.small_engine import make_builder, questions

UNVARIED = GridQuestionSampler(
    lambda task, rng: Identity(), view="leave_one_out", input_from_inputs=0.0, cells_are_tokens=False
)


def pair(color: int) -> Pair:
    return Pair(as_grid([[color, 0]]), as_grid([[0], [color]]))


def task_of(demonstrations: int, name: str = "t") -> Task:
    return Task(name, train=tuple(pair(color) for color in range(1, demonstrations + 1)), test=(pair(9),))


def prepared(*tasks: Task, **changes: Any) -> UnitExamples:
    builder, asked = changes.pop("builder", make_builder()), changes.pop("questions", UNVARIED)
    options: dict[str, Any] = {"seed": 3, "length": 60, "hold_back": False}
    return prepare_examples(tasks, builder, DemonstrationExamples(), asked, **{**options, **changes})


def shown(examples: UnitExamples) -> set[tuple[int, ...]]:
    return {tuple(examples.stream[k].input_ids) for k in range(len(examples.stream))}


def examples_of(task: Task) -> set[tuple[int, ...]]:
    found = (make_builder().example(ask_output(view, 0)) for view in leave_one_out(task))
    return {tuple(example.input_ids) for example in found if example is not None}


def test_each_demonstration_is_asked_for_from_the_others() -> None:
    examples = prepared(task_of(4))
    assert shown(examples) == examples_of(task_of(4))
    assert (examples.held_back, examples.notes) == ((), ())


def test_the_tests_answer_changes_nothing() -> None:
    task = task_of(3)
    secret = dataclasses.replace(task, test=(Pair(task.test[0].input),))
    for asked in (questions(), UNVARIED):
        assert shown(prepared(task, questions=asked)) == shown(prepared(secret, questions=asked))


def test_examples_are_a_function_of_seed_and_number() -> None:
    one, longer = (prepared(task_of(4), questions=questions(), length=length) for length in (5, 50))
    assert [one.stream[k] for k in range(5)] == [longer.stream[k] for k in range(5)]
    other = prepared(task_of(4), questions=questions(), seed=4)
    assert [one.stream[k] for k in range(5)] != [other.stream[k] for k in range(5)]


def test_what_is_held_back_is_never_shown() -> None:
    task = task_of(4)
    examples = prepared(task, hold_back=True)
    rest = dataclasses.replace(task, train=task.train[:3])
    assert shown(examples) == examples_of(rest)
    (held,) = examples.held_back
    asked = dataclasses.replace(rest, test=(task.train[3],))
    assert held == make_builder().example(ask_output(asked, 0))
    assert examples.notes == ()


def test_of_many_tasks_some_hold_one_back() -> None:
    examples = prepared(*(task_of(3, f"t{number}") for number in range(20)), hold_back=True)
    assert len(examples.held_back) == MOST_HELD_BACK


def test_a_demonstration_alone_is_learned_from_its_variants() -> None:
    task = task_of(1)
    examples = prepared(task, hold_back=True, length=200)
    pool = variants_of_demonstration(task)
    built = set()
    for shown_pair in pool.pairs:
        for asked_pair in pool.pairs:
            example = make_builder().example(ask_output(Task("t", (shown_pair,), (asked_pair,)), 0))
            assert example is not None
            if shown_pair != asked_pair:
                built.add(tuple(example.input_ids))
    assert shown(examples) <= built
    assert len(shown(examples)) > len(built) / 2
    assert examples.notes == (
        "the task has one demonstration only, so its variants are learned from each other",
        "too few demonstrations to hold one back, so ttft.patience has no effect",
    )


def test_what_is_too_long_is_left_out_and_named() -> None:
    grid = as_grid(np.zeros((20, 20), dtype=np.int8))
    long = [Task(f"long{number}", (Pair(grid, grid), Pair(grid, grid)), (Pair(grid),)) for number in range(5)]
    examples = prepared(task_of(2), *long)
    assert shown(examples) == examples_of(task_of(2))
    assert examples.notes == ("left out, too long even with one demonstration: long0, long1, long2 and 2 more",)
    message = "too long for ttft: no example of any of 5 tasks .* fits 512 tokens, .*raise inference.max_seq_length"
    with pytest.raises(LengthError, match=message):
        prepared(*long)


def test_demonstrations_are_dropped_to_fit_a_shorter_context() -> None:
    builder = make_builder()
    whole = prepared(task_of(6))
    longest = max(map(len, shown(whole)))
    short = shortened(builder, longest - 1)
    assert (short.max_seq_length, short.drop_demonstrations) == (longest - 1, True)
    assert max(map(len, shown(prepared(task_of(6), builder=short)))) < longest
    assert shortened(builder, 10_000).max_seq_length == 512
    assert whole.notes == ()
    note = f"longer than {longest - 1} tokens, so examples leave out demonstrations"
    assert prepared(task_of(6), builder=short).notes == (note,)
    # Of a unit of several tasks, those that are cut are named.
    assert prepared(task_of(2, "a"), task_of(6, "b"), builder=short).notes == (f"{note}: b",)
