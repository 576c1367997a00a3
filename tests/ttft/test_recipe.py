"""The ladder that memory walks down."""

from __future__ import annotations

import dataclasses

from arcft.ttft.engine.memory_ladder import MemorySettings, difference, lower

TOP = MemorySettings(slots=4, gradient_checkpointing=False, max_seq_length=4096, rank=32, batch_size=8, merge=True)


def test_the_ladder_gives_up_speed_first_then_context_then_rank() -> None:
    steps, previous, memory = [], TOP, lower(TOP, longest=5000, shortest=1024)
    while memory is not None:
        steps.append(difference(previous, memory))
        previous, memory = memory, lower(memory, longest=5000, shortest=1024)
    assert steps == [
        "slots 4 -> 2",
        "slots 2 -> 1",
        "gradient_checkpointing False -> True",
        "max_seq_length 4096 -> 3072",
        "max_seq_length 3072 -> 2304",
        "max_seq_length 2304 -> 1728",
        "max_seq_length 1728 -> 1296",
        "rank 32 -> 16",
        "rank 16 -> 8",
    ]


def test_every_number_of_slots_comes_down_to_one_and_a_low_rank_stays() -> None:
    memory: MemorySettings | None = dataclasses.replace(
        TOP, slots=7, gradient_checkpointing=True, max_seq_length=100, rank=8
    )
    slots = []
    while memory is not None:
        slots.append(memory.slots)
        memory = lower(memory, longest=100, shortest=100)
    assert slots == [7, 3, 1]


def test_the_context_is_lowered_from_what_the_examples_need() -> None:
    at_context = dataclasses.replace(TOP, slots=1, gradient_checkpointing=True)
    lowered = lower(at_context, longest=2000, shortest=1024)
    assert lowered == dataclasses.replace(at_context, max_seq_length=1500)
    assert lower(at_context, longest=1300, shortest=1024) == dataclasses.replace(at_context, rank=16)
