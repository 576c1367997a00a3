"""What a unit learns from: its own demonstrations, each asked for in turn, varied, and never a test."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from arcft.problems.arc.augment.transforms import Transform
from arcft.problems.arc.data.sources import PairPool, TaskSampler
from arcft.problems.arc.format.examples import ExampleBuilder, ExampleStream, LengthError
from arcft.problems.arc.task import Task
from arcft.problems.arc.views import Problem, leave_one_out, test_problem, variants_of_demonstration
from arcft.text.tokens import Example

MOST_HELD_BACK = 8
"""Tasks of a unit that hold a demonstration back: each costs a forward pass at every check."""

Draw = Callable[[Task, np.random.Generator], Transform]


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnitExamples:
    stream: ExampleStream
    """Item k is the k-th example, whatever was drawn before."""

    held_back: tuple[Example, ...]
    """Un-augmented examples that ask for demonstrations which the stream never shows."""

    notes: tuple[str, ...]
    max_seq_length: int
    """Tokens that they were fitted to."""


def prepare_examples(
    tasks: Sequence[Task],
    builder: ExampleBuilder,
    *,
    draw: Draw,
    input_from_inputs: float,
    seed: int,
    length: int,
    hold_back: bool,
) -> UnitExamples:
    """A stream of `length` augmented examples of `tasks`, a pure function of these arguments.

    `hold_back` keeps the last demonstration of tasks that have three or more (of eight tasks at most) out of the
    stream. Tasks of which no example fits are left out; raises LengthError where that leaves none.
    """
    items: list[Task | PairPool] = []
    held_back: list[Example] = []
    too_long: list[str] = []
    alone: list[str] = []
    for task in tasks:
        item: Task | PairPool = task
        if len(task.train) == 1:
            alone.append(task.id)
            item = variants_of_demonstration(task)
        elif hold_back and len(held_back) < MOST_HELD_BACK:
            split = _hold_back(task, builder)
            if split is not None:
                item, example = split
                held_back.append(example)
        if _fits(item, builder):
            items.append(item)
        else:
            too_long.append(task.id)
    if not items:
        raise LengthError(_none_fits(too_long, builder.max_seq_length))
    stream = ExampleStream(
        TaskSampler([(1.0, items)], seed=seed),
        draw,
        builder,
        length=length,
        seed=seed,
        view="leave_one_out",
        input_from_inputs=input_from_inputs,
    )
    notes = _notes(tasks, alone, too_long, patience_has_no_effect=hold_back and not held_back)
    return UnitExamples(
        stream=stream, held_back=tuple(held_back), notes=tuple(notes), max_seq_length=builder.max_seq_length
    )


def shortened(builder: ExampleBuilder, max_seq_length: int) -> ExampleBuilder:
    """The same builder for a context of at most `max_seq_length` tokens, demonstrations dropped to fit."""
    return ExampleBuilder(
        builder.prompts,
        builder.tokenization,
        max_seq_length=min(max_seq_length, builder.max_seq_length),
        drop_demonstrations=True,
    )


def _hold_back(task: Task, builder: ExampleBuilder) -> tuple[Task, Example] | None:
    """The task without its last demonstration, and the example that asks for it; None where that can't be."""
    if len(task.train) < 3:
        return None
    rest = dataclasses.replace(task, train=task.train[:-1])
    example = builder.example(Problem(task.id, rest.train, task.train[-1].input, task.train[-1].output, "output"))
    return None if example is None else (rest, example)


def _fits(item: Task | PairPool, builder: ExampleBuilder) -> bool:
    if isinstance(item, PairPool):
        rng = np.random.default_rng(0)
        views = [item.draw(rng) for _ in item.pairs]
    else:
        views = leave_one_out(item)
    return any(builder.example(test_problem(view, 0)) is not None for view in views)


def _notes(
    tasks: Sequence[Task], alone: Sequence[str], too_long: Sequence[str], *, patience_has_no_effect: bool
) -> list[str]:
    notes = []
    if alone:
        which = "the task has" if len(tasks) == 1 else f"{_few(alone)}:"
        notes.append(f"{which} one demonstration only, so its variants are learned from each other")
    if too_long:
        notes.append(f"left out, too long even with one demonstration: {_few(too_long)}")
    if patience_has_no_effect:
        notes.append("too few demonstrations to hold one back, so ttft.patience has no effect")
    return notes


def _none_fits(too_long: Sequence[str], limit: int) -> str:
    # Without the id of a task that is alone, so that many such tasks have one reason.
    which = "" if len(too_long) == 1 else f" of any of {len(too_long)} tasks ({_few(too_long)})"
    return (
        f"too long for ttft: no example{which} fits {limit} tokens, not even with one demonstration; raise "
        "inference.max_seq_length"
    )


def _few(ids: Sequence[str]) -> str:
    return ", ".join(ids[:3]) + (f" and {len(ids) - 3} more" if len(ids) > 3 else "")
