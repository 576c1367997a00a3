"""One task in the report: its demonstrations, and for each test the attempts beside the true output."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from arcft.problems.arc.drawing.drawings import cell_size, grid_html
from arcft.problems.arc.task import Grid, Pair, Task
from arcft.reporting.outcomes import Result, is_right
from arcft.reporting.words import count, percent
from arcft.scoring.predictions import Prediction
from arcft.scoring.selection import ATTEMPTS
from arcft.scoring.voting import Candidate

DEMONSTRATION_ROOM = 110
TEST_ROOM = 190
"""Pixels that the longest side of a task's grids takes."""

MOST_LISTED = 8
TEXT_LIMIT = 400


def task_card(result: Result, anchor: str, *, drawn: bool = True) -> str:
    """An <article> with the id `anchor`; `drawn=False` leaves out all grids."""
    task = result.task
    header = f'<header><h3>{escape(task.id)}</h3><span class="faint">{_figures(result)}</span></header>'
    parts = [header]
    if drawn:
        parts.append(_demonstrations(task))
    for index, pair in enumerate(task.test):
        parts.append(_test(result, index, pair, drawn=drawn))
    style = f"--outcome:{result.outcome.color}"
    return f'<article class="task" id="{anchor}" style="{style}">{"".join(parts)}</article>'


def _figures(result: Result) -> str:
    metrics = result.metrics
    if not metrics:
        return result.outcome.name
    words = [f"{percent(metrics['accuracy'])} of predictions right"]
    if metrics["accuracy"] < 1:
        words.append(f"best prediction {percent(metrics['max_correct_pixels'])} of cells")
    return ", ".join(words)


def _demonstrations(task: Task) -> str:
    grids = [grid for pair in task.train for grid in (pair.input, pair.output) if grid is not None]
    cell = cell_size(_longest(grids), DEMONSTRATION_ROOM)
    pairs = []
    for number, pair in enumerate(task.train, 1):
        drawn = [grid_html(grid, cell) for grid in (pair.input, pair.output) if grid is not None]
        pairs.append(f'<div class="pair" data-number="{number}">{" → ".join(drawn)}</div>')
    return f'<div class="row">{"".join(pairs)}</div>'


def _test(result: Result, index: int, pair: Pair, *, drawn: bool) -> str:
    attempts, predictions, candidates = result.attempts[index], result.predictions[index], result.candidates[index]
    parts = []
    if drawn:
        known = [grid for grid in (pair.input, pair.output) if grid is not None]
        cell = cell_size(_longest([*known, *attempts]), TEST_ROOM)
        figures = [_figure("test input", grid_html(pair.input, cell))]
        if pair.output is not None:
            figures.append(_figure("true output", grid_html(pair.output, cell)))
        figures += [
            _figure(_verdict(number, grid, pair.output), grid_html(grid, cell, truth=pair.output))
            for number, grid in enumerate(attempts, 1)
        ]
        if not attempts:
            figures.append(_figure("attempt 1", '<span class="none">none</span>'))
        parts.append(f'<div class="row">{"".join(figures)}</div>')
    number = f"Test {index + 1} of {len(result.task.test)}. " if len(result.task.test) > 1 else ""
    parts.append(f'<p class="note">{number}{_votes(predictions, candidates, pair.output)}</p>')
    if not attempts and predictions:
        parts.append(_unanswered(predictions[0]))
    return f'<section class="test">{"".join(parts)}</section>'


def _figure(caption: str, content: str) -> str:
    return f"<figure>{content}<figcaption>{caption}</figcaption></figure>"


def _verdict(number: int, attempt: Grid, truth: Grid | None) -> str:
    right = is_right(attempt, truth)
    if right is None or truth is None:
        return f"attempt {number}"
    if right:
        return f'attempt {number} <span class="good">✓ right</span>'
    if attempt.shape != truth.shape:
        return f'attempt {number} <span class="bad">✗ wrong size</span>'
    wrong = count(int(np.sum(attempt != truth)), "wrong cell")
    return f'attempt {number} <span class="bad">✗ {wrong}</span>'


def _votes(predictions: Sequence[Prediction], candidates: Sequence[Candidate], truth: Grid | None) -> str:
    """What the predictions agree on, why the attempts were selected, and where the right answer is among them."""
    if not predictions:
        return "No predictions."
    answered = sum(candidate.votes for candidate in candidates)
    words = [count(len(predictions), "prediction")]
    if candidates:
        listed = f"votes: {_listed([str(candidate.votes) for candidate in candidates])}"
        if any(candidate.score is not None for candidate in candidates):
            scores = ["–" if candidate.score is None else f"{candidate.score:.3g}" for candidate in candidates]
            listed += f"; scores: {_listed(scores)}"
        words.append(f"{count(len(candidates), 'different grid')} ({listed})")
    if len(predictions) > answered:
        words.append(f"{len(predictions) - answered} unanswered")
    text = ", ".join(words) + "." + _fails(candidates)
    ranks = [rank for rank, candidate in enumerate(candidates) if is_right(candidate.grid, truth)]
    if ranks and ranks[0] >= ATTEMPTS:
        votes = count(candidates[ranks[0]].votes, "vote")
        text += f" The right answer is there, in place {ranks[0] + 1} with {votes}."
    return text


def _listed(words: Sequence[str]) -> str:
    return ", ".join(words[:MOST_LISTED]) + (", …" if len(words) > MOST_LISTED else "")


def _fails(candidates: Sequence[Candidate]) -> str:
    """What the demonstrations have in common, and an attempt has not."""
    return "".join(
        f" Attempt {number} breaks what the demonstrations share: {escape(', '.join(candidate.reasons['fails']))}."
        for number, candidate in enumerate(candidates[:ATTEMPTS], 1)
        if candidate.reasons.get("fails")
    )


def _unanswered(prediction: Prediction) -> str:
    reason = escape((prediction.error or "no reason given").rstrip("."))
    text = prediction.text if len(prediction.text) <= TEXT_LIMIT else prediction.text[:TEXT_LIMIT] + " …"
    shown = f"<pre>{escape(text)}</pre>" if text.strip() else ""
    return f'<div class="note">The first prediction: {reason}.{shown}</div>'


def _longest(grids: Sequence[Grid]) -> int:
    return max(side for grid in grids for side in grid.shape)
