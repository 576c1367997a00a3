"""The training examples of a unit: from its problems' own demonstrations, never from a test."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from arcft.protocols import Item, OwnExamples, OwnMaterial, Problem, QuestionSampler
from arcft.text.builder import ExampleBuilder
from arcft.text.item_sampler import ItemSampler
from arcft.text.stream import ExampleStream, LengthError
from arcft.text.tokens import Example

MOST_HELD_BACK = 8
"""At most this many problems of a unit hold an example back, because each costs a forward pass at every check."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnitExamples:
    stream: ExampleStream
    """Item k is the k-th example, independent of earlier draws."""

    held_back: tuple[Example, ...]
    """Un-augmented examples of demonstrations that the stream never shows."""

    notes: tuple[str, ...]
    max_seq_length: int
    """The context, in tokens, that they were fitted to."""


def prepare_examples(
    problems: Sequence[Problem],
    builder: ExampleBuilder,
    own: OwnExamples,
    questions: QuestionSampler,
    *,
    seed: int,
    length: int,
    hold_back: bool,
) -> UnitExamples:
    """A stream of `length` augmented examples of `problems`, a pure function of these arguments.

    `hold_back` keeps one demonstration of each problem that can spare one (at most MOST_HELD_BACK problems) out of the
    stream. Problems without an example that fits are skipped; raises LengthError if none remains.
    """
    items: list[Item] = []
    held_back: list[Example] = []
    too_long: list[str] = []
    cut: list[str] = []
    noted: dict[str, list[str]] = {}
    for problem in problems:
        material, example = _material(problem, builder, own, hold_back=hold_back and len(held_back) < MOST_HELD_BACK)
        if example is not None:
            held_back.append(example)
        if material.note:
            noted.setdefault(material.note, []).append(problem.id)
        left_out = [builder.left_out_of_example(question) for question in own.trials(material.item)]
        if all(number is None for number in left_out):
            too_long.append(problem.id)
            continue
        items.append(material.item)
        if any(left_out):
            cut.append(problem.id)
    if not items:
        raise LengthError(_none_fits(too_long, builder.max_seq_length))
    sampler = ItemSampler([(1.0, items)], seed=seed)
    notes = _notes(noted, too_long, is_alone=len(problems) == 1, patience_has_no_effect=hold_back and not held_back)
    if cut:
        which = "" if len(problems) == 1 else f": {_few(cut)}"
        notes.append(f"longer than {builder.max_seq_length} tokens, so examples leave out demonstrations{which}")
    return UnitExamples(
        stream=ExampleStream(sampler, questions, builder, length=length, seed=seed),
        held_back=tuple(held_back),
        notes=tuple(notes),
        max_seq_length=builder.max_seq_length,
    )


def shortened(builder: ExampleBuilder, max_seq_length: int) -> ExampleBuilder:
    """The same builder for a context of at most `max_seq_length` tokens, demonstrations dropped to fit."""
    return ExampleBuilder(
        builder.format,
        builder.tokenization,
        max_seq_length=min(max_seq_length, builder.max_seq_length),
        drop_demonstrations=True,
    )


def _material(
    problem: Problem, builder: ExampleBuilder, own: OwnExamples, *, hold_back: bool
) -> tuple[OwnMaterial, Example | None]:
    """What is learned of `problem`, and the example that is held back; if that does not fit, nothing is held back."""
    material = own.material(problem, hold_back=hold_back)
    if material.held_back is None:
        return material, None
    example = builder.example(material.held_back)
    return (own.material(problem, hold_back=False), None) if example is None else (material, example)


def _notes(
    noted: Mapping[str, Sequence[str]], too_long: Sequence[str], *, is_alone: bool, patience_has_no_effect: bool
) -> list[str]:
    notes = [f"the task has {note}" if is_alone else f"{_few(ids)}: {note}" for note, ids in noted.items()]
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
