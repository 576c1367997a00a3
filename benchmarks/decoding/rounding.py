"""How often rounding makes a token differ between forward passes over one token and over a chunk."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from arcft.decoding.core.attention import decoding_attention
from arcft.problems.arc.questions import ask_output
from arcft.problems.arc.task import GridAnswer, Task
from arcft.protocols import Positions
from decoding.subjects import OneShape, Subject

CHUNK = 16


def measure_rounding(subject: Subject, tasks: Sequence[Task], adapters: Mapping[str, Path] | None) -> dict[str, Any]:
    """Over the cells of the true answers, each predicted from the true cells before it: how often the likeliest cell
    differs between decoding token by token and in chunks."""
    cells = differing = 0
    rule = subject.builder.tokenization.positions
    for task in tasks:
        model = subject.adapted(None if adapters is None else adapters[task.id])
        for index, pair in enumerate(task.test):
            assert pair.output is not None
            grammar = OneShape(subject.builder, pair.output.shape)
            prompt = subject.builder.prompt(ask_output(task, index))
            answer = subject.builder.tokenization.completion_ids(
                subject.builder.format.completion(GridAnswer(pair.output))
            )
            steps, chunks = (_likeliest(model, rule, prompt, answer, grammar, size) for size in (1, CHUNK))
            cells += len(steps)
            differing += sum(x != y for x, y in zip(steps, chunks, strict=True))
    return {"dtype": subject.dtype, "chunk": CHUNK, "cells": cells, "differing": differing, "share": differing / cells}


@torch.inference_mode()
def _likeliest(
    model: Any, rule: Positions | None, prompt: list[int], answer: list[int], grammar: OneShape, size: int
) -> list[int]:
    """The likeliest token at each cell of `answer`, which is fed `size` tokens at a time."""
    ids = prompt + answer
    places = list(range(len(ids))) if rule is None else rule(ids)
    past, found = None, []
    wanted = set(grammar.cells)
    # The first pass ends with the prompt, whose last token predicts the first token of the answer.
    borders = [0, *range(len(prompt), len(ids), size), len(ids)]
    with decoding_attention(model):
        for start, stop in itertools.pairwise(borders):
            output = model(
                input_ids=torch.tensor([ids[start:stop]], device=model.device),
                position_ids=torch.tensor([places[start:stop]], device=model.device),
                past_key_values=past,
                use_cache=True,
            )
            past, logits = output.past_key_values, output.logits[0].float()
            for column in range(max(start, len(prompt) - 1), stop):
                place = column + 1 - len(prompt)
                if place in wanted:
                    choices = list(grammar.at(place))
                    found.append(choices[int(logits[column - start, choices].argmax())])
    return found
