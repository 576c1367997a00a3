"""One task in the report: its demonstrations, and for each test the attempts beside the true output."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from arcft.protocols import Answer, Card, MetricSet, Problem
from arcft.reporting.outcomes import Result, is_right
from arcft.reporting.words import count
from arcft.scoring.predictions import Prediction
from arcft.scoring.voting import Candidate

DEMONSTRATION_ROOM = 110
TEST_ROOM = 190
"""Pixels that the largest drawing of a row takes."""

MOST_LISTED = 8
TEXT_LIMIT = 400


def problem_card(result: Result, anchor: str, metric_set: MetricSet, card: Card, *, drawn: bool = True) -> str:
    """An <article> with the id `anchor`; `drawn=False` leaves out all drawings."""
    problem = result.problem
    figures = metric_set.in_words(result.metrics) if result.metrics else result.outcome.name
    parts = [f'<header><h3>{escape(problem.id)}</h3><span class="faint">{escape(figures)}</span></header>']
    if drawn:
        parts.append(_demonstrations(problem, card))
    parts += [_test(result, index, card, drawn=drawn) for index in range(len(problem.answers))]
    style = f"--outcome:{result.outcome.color}"
    return f'<article class="task" id="{anchor}" style="{style}">{"".join(parts)}</article>'


def _demonstrations(problem: Problem, card: Card) -> str:
    demonstrations = card.demonstrations(problem)
    drawn = card.html([(part, None) for pair in demonstrations for part in pair], room=DEMONSTRATION_ROOM)
    pairs = [
        f'<div class="pair" data-number="{number}">{given} → {output}</div>'
        for number, (given, output) in enumerate(zip(drawn[::2], drawn[1::2], strict=True), 1)
    ]
    return f'<div class="row">{"".join(pairs)}</div>'


def _test(result: Result, index: int, card: Card, *, drawn: bool) -> str:
    problem, truth = result.problem, result.problem.answers[index]
    attempts, predictions, candidates = result.attempts[index], result.predictions[index], result.candidates[index]
    parts = []
    if drawn:
        captions = ["test input"] + ["true output"] * (truth is not None)
        captions += [_verdict(number, attempt, truth, card) for number, attempt in enumerate(attempts, 1)]
        shown = [(card.question(problem, index), None)] + [(truth, None)] * (truth is not None)
        drawings = card.html([*shown, *((attempt, truth) for attempt in attempts)], room=TEST_ROOM)
        figures = [_figure(caption, drawing) for caption, drawing in zip(captions, drawings, strict=True)]
        if not attempts:
            figures.append(_figure("attempt 1", '<span class="none">none</span>'))
        parts.append(f'<div class="row">{"".join(figures)}</div>')
    number = f"Test {index + 1} of {len(problem.answers)}. " if len(problem.answers) > 1 else ""
    votes = _votes(predictions, candidates, truth, result.num_attempts, card)
    parts.append(f'<p class="note">{number}{votes}</p>')
    if not attempts and predictions:
        parts.append(_unanswered(predictions[0]))
    return f'<section class="test">{"".join(parts)}</section>'


def _figure(caption: str, content: str) -> str:
    return f"<figure>{content}<figcaption>{caption}</figcaption></figure>"


def _verdict(number: int, attempt: Answer, truth: Answer | None, card: Card) -> str:
    right = is_right(attempt, truth)
    if right is None or truth is None:
        return f"attempt {number}"
    if right:
        return f'attempt {number} <span class="good">✓ right</span>'
    return f'attempt {number} <span class="bad">✗ {escape(card.difference(attempt, truth))}</span>'


def _votes(
    predictions: Sequence[Prediction],
    candidates: Sequence[Candidate],
    truth: Answer | None,
    num_attempts: int,
    card: Card,
) -> str:
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
        words.append(f"{count(len(candidates), f'different {card.noun}')} ({listed})")
    if len(predictions) > answered:
        words.append(f"{len(predictions) - answered} unanswered")
    text = ", ".join(words) + "." + _fails(candidates[:num_attempts])
    ranks = [rank for rank, candidate in enumerate(candidates) if is_right(candidate.answer, truth)]
    if ranks and ranks[0] >= num_attempts:
        votes = count(candidates[ranks[0]].votes, "vote")
        text += f" The right answer is there, in place {ranks[0] + 1} with {votes}."
    return text


def _listed(words: Sequence[str]) -> str:
    return ", ".join(words[:MOST_LISTED]) + (", …" if len(words) > MOST_LISTED else "")


def _fails(attempts: Sequence[Candidate]) -> str:
    """What the demonstrations have in common, and an attempt lacks."""
    return "".join(
        f" Attempt {number} breaks what the demonstrations share: {escape(', '.join(candidate.reasons['fails']))}."
        for number, candidate in enumerate(attempts, 1)
        if candidate.reasons.get("fails")
    )


def _unanswered(prediction: Prediction) -> str:
    reason = escape((prediction.error or "no reason given").rstrip("."))
    text = prediction.text if len(prediction.text) <= TEXT_LIMIT else prediction.text[:TEXT_LIMIT] + " …"
    shown = f"<pre>{escape(text)}</pre>" if text.strip() else ""
    return f'<div class="note">The first prediction: {reason}.{shown}</div>'
