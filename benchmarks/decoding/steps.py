"""Decoding only, with one technique after another switched on; and prefill only."""

from __future__ import annotations

import copy
import dataclasses
import functools
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from unittest import mock

import numpy as np

from arcft.decoding.core.completion import Completion
from arcft.decoding.decode import decode
from arcft.decoding.options import DecodingOptions
from arcft.problems.arc.questions import ask_output
from decoding.reference import generate, read, usual_attention
from decoding.subjects import OneShape, Subject, random_task, seconds_now

WAYS = ("generate", "loop", "folded", "grammar", "jumps", "guess95", "guess")
TITLES = {
    "generate": "generate",
    "loop": "our loop",
    "folded": "+ folded attention",
    "grammar": "+ grammar",
    "jumps": "+ forced skipped",
    "guess95": "+ draft, 95% right",
    "guess": "+ correct draft",
}


def measure_steps(subject: Subject, side: int, rows: int, repeats: int) -> dict[str, Any]:
    """Cells per second of each variant, from the first token after the prompt to the last of the grid.

    All rows have the same prompt, whose prefill is not counted: `generate` is given its KV cache, and from our loop's
    time that of decoding a single token is subtracted.
    """
    builder, model = subject.builder, subject.model
    prompt = builder.prompt(ask_output(random_task(side, demonstrations=1, tests=1), 0))
    grammar = OneShape(builder, (side, side))
    slow = OneShape(builder, (side, side), jumps=False)
    length, prompts = grammar.longest, [prompt] * rows
    common = DecodingOptions(**subject.ends, positions=builder.tokenization.positions)

    def ours(
        limit: int = length, draft_tokens: Sequence[Sequence[int]] | None = None, **changes: Any
    ) -> list[Completion]:
        options = dataclasses.replace(common, **changes)
        return decode(model, prompts, options, max_new_tokens=limit, draft_tokens=draft_tokens)

    def freely(limit: int = length) -> list[Completion]:
        return ours(limit, end_ids=[])

    right = [
        *decode(model, [prompt], dataclasses.replace(common, grammar=grammar), max_new_tokens=length)[0].token_ids,
        common.end_ids[0],
    ]
    wrong = [nearly(right, grammar, seed=row) for row in range(rows)]
    past = read(model, prompt, rows)
    pads: dict[str, Any] = {"pad_id": common.pad_id}
    ways: dict[str, Callable[[], Any]] = {
        "generate": lambda: generate(model, prompts, length, past=pasts.pop(), **pads),
        "loop": lambda: _unfolded(freely),
        "folded": freely,
        "grammar": lambda: ours(grammar=slow),
        "jumps": lambda: ours(grammar=grammar),
        "guess95": lambda: ours(grammar=grammar, draft_tokens=wrong),
        "guess": lambda: ours(grammar=grammar, draft_tokens=[right] * rows),
        "read": lambda: freely(1),
        "read unfolded": lambda: _unfolded(lambda: freely(1)),
    }
    pasts = [copy.deepcopy(past)]
    ways["generate"]()  # warm-up
    times: dict[str, list[float]] = {way: [] for way in ways}
    for repeat in range(repeats):
        for way in _from(list(ways), repeat):
            pasts = [copy.deepcopy(past)] if way == "generate" else []
            begun = seconds_now(model.device)
            ways[way]()
            times[way].append(seconds_now(model.device) - begun)
    taken = {way: _without_reading(way, times, length) for way in WAYS}
    cells = side * side * rows
    return {
        "side": side,
        "rows": rows,
        "prompt_tokens": len(prompt),
        "tokens": length,
        "cells_per_second": {way: cells / statistics.median(own) for way, own in taken.items()},
        "ratios": ratios(taken, "generate"),
    }


def _without_reading(way: str, times: Mapping[str, Sequence[float]], length: int) -> list[float]:
    """Seconds to decode `length` tokens after the prefill."""
    if way == "generate":
        return list(times[way])
    reading = statistics.median(times["read unfolded" if way == "loop" else "read"])
    # Prefill includes the first token. In a very short measurement it can appear to take all the time.
    return [max(seconds - reading, 1e-6) * length / (length - 1) for seconds in times[way]]


def measure_reading(subject: Subject, side: int, repeats: int) -> list[dict[str, Any]]:
    """Seconds to the first token of 8 equal prompts, and of 4 tests of one task: our loop with and without
    shared prefixes, and `generate`."""
    builder, model = subject.builder, subject.model
    task = random_task(side, demonstrations=2, tests=4)
    tests = [builder.prompt(ask_output(task, number)) for number in range(4)]
    pads: dict[str, Any] = {"pad_id": subject.ends["pad_id"]}
    shared = DecodingOptions(**pads, positions=builder.tokenization.positions)
    apart = dataclasses.replace(shared, share_prefixes=False)
    found = []
    for name, prompts in (("a prompt 8 times", tests[:1] * 8), ("4 tests of a task", tests)):
        ways: dict[str, Callable[[], Any]] = {
            "generate": functools.partial(generate, model, prompts, 1, **pads),
            "apart": functools.partial(decode, model, prompts, apart, max_new_tokens=1),
            "shared": functools.partial(decode, model, prompts, shared, max_new_tokens=1),
        }
        times = in_turns(subject, ways, repeats)
        found.append(
            {
                "prompts": name,
                "tokens": sum(map(len, prompts)),
                "seconds": {way: statistics.median(own) for way, own in times.items()},
                "ratios": ratios(times, "apart"),
            }
        )
    return found


def in_turns(subject: Subject, ways: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {way: [] for way in ways}
    for repeat in range(repeats):
        for way in _from(list(ways), repeat):
            begun = seconds_now(subject.model.device)
            ways[way]()
            times[way].append(seconds_now(subject.model.device) - begun)
    return times


def ratios(times: Mapping[str, Sequence[float]], than: str) -> dict[str, float]:
    """Speedups over `than`: medians over pairs that were measured next to each other."""
    return {way: statistics.median(x / y for x, y in zip(times[than], own, strict=True)) for way, own in times.items()}


def nearly(tokens: Sequence[int], grammar: OneShape, *, seed: int) -> list[int]:
    """`tokens` with about one cell in 20 changed."""
    rng = np.random.default_rng(seed)
    changed = list(tokens)
    for place in grammar.cells:
        if rng.random() < 0.05:
            changed[place] = int(rng.choice([token for token in grammar.at(place) if token != tokens[place]]))
    return changed


def _unfolded(call: Callable[[], Any]) -> Any:
    with mock.patch("arcft.decoding.core.batch.decoding_attention", usual_attention):
        return call()


def _from(names: list[str], first: int) -> list[str]:
    """`names` rotated to begin with the one at `first`."""
    first %= len(names)
    return names[first:] + names[:first]
