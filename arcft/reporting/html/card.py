"""One problem in the report: its demonstrations, and for each test the attempts beside the true answer."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from arcft.protocols import Answer, Card, MetricSet
from arcft.reporting.outcomes import Result, is_right
from arcft.reporting.words import count
from arcft.scoring.predictions import Prediction
from arcft.scoring.voting import Candidate

DEMONSTRATION_ROOM = 110
TEST_ROOM = 190
"""Pixels that the largest drawing of a row takes."""

MOST_LISTED = 8
TEXT_LIMIT = 400


def problem_card(result: Result, card: Card, metric_set: MetricSet, anchor: str, *, drawn: bool = True) -> str:
    """An <article> with the id `anchor`; `drawn=False` leaves out all drawings."""
    problem = result.problem
    figures = metric_set.in_words(result.metrics) if result.metrics else result.outcome.name
    parts = [f'<header><h3>{escape(problem.id)}</h3><span class="faint">{escape(figures)}</span></header>']
    if drawn:
        parts.append(_demonstrations(result, card))
    parts += [_test(result, index, card, drawn=drawn) for index in range(len(problem.answers))]
    style = f"--outcome:{result.outcome.color}"
    return f'<article class="task" id="{anchor}" style="{style}">{"".join(parts)}</article>'


def _demonstrations(result: Result, card: Card) -> str:
    shown = card.demonstrations(result.problem)
    drawn = iter(card.html([(part, None) for pair in shown for part in pair], room=DEMONSTRATION_ROOM))
    pairs = [
        f'<div class="pair" data-number="{number}">{given} → {output}</div>'
        for number, (given, output) in enumerate(zip(drawn, drawn, strict=True), 1)
    ]
    return f'<div class="row">{"".join(pairs)}</div>'


def _test(result: Result, index: int, card: Card, *, drawn: bool) -> str:
    attempts, predictions, candidates = result.attempts[index], result.predictions[index], result.candidates[index]
    answers = result.problem.answers
    truth = answers[index]
    parts = []
    if drawn:
        known = [] if truth is None else [truth]
        given = [(card.question(result.problem, index), None), *((answer, None) for answer in known)]
        drawings = card.html([*given, *((answer, truth) for answer in attempts)], room=TEST_ROOM)
        captions = ["test input", *("true output" for _ in known)]
        captions += [_verdict(number, answer, truth, card) for number, answer in enumerate(attempts, 1)]
        figures = [_figure(caption, drawing) for caption, drawing in zip(captions, drawings, strict=True)]
        if not attempts:
            figures.append(_figure("attempt 1", '<span class="none">none</span>'))
        parts.append(f'<div class="row">{"".join(figures)}</div>')
    number = f"Test {index + 1} of {len(answers)}. " if len(answers) > 1 else ""
    words = _votes(predictions, candidates, truth, result.num_attempts, card.noun)
    parts.append(f'<p class="note">{number}{words}</p>')
    if not attempts and predictions:
        parts.append(_unanswered(predictions[0]))
    return f'<section class="test">{"".join(parts)}</section>'


def _figure(caption: str, content: str) -> str:
    return f"<figure>{content}<figcaption>{caption}</figcaption></figure>"


def _verdict(number: int, attempt: Answer, truth: Answer | None, card: Card) -> str:
    if truth is None:
        return f"attempt {number}"
    if is_right(attempt, truth):
        return f'attempt {number} <span class="good">✓ right</span>'
    return f'attempt {number} <span class="bad">✗ {escape(card.difference(attempt, truth))}</span>'


def _votes(
    predictions: Sequence[Prediction], candidates: Sequence[Candidate], truth: Answer | None, submitted: int, noun: str
) -> str:
    """How far the predictions agree, why the attempts were selected, and which rank the right answer has."""
    if not predictions:
        return "No predictions."
    answered = sum(candidate.votes for candidate in candidates)
    words = [count(len(predictions), "prediction")]
    if candidates:
        listed = f"votes: {_listed([str(candidate.votes) for candidate in candidates])}"
        if any(candidate.score is not None for candidate in candidates):
            scores = ["–" if candidate.score is None else f"{candidate.score:.3g}" for candidate in candidates]
            listed += f"; scores: {_listed(scores)}"
        words.append(f"{count(len(candidates), f'different {noun}')} ({listed})")
    if len(predictions) > answered:
        words.append(f"{len(predictions) - answered} unanswered")
    text = ", ".join(words) + "." + _fails(candidates[:submitted])
    ranks = [rank for rank, candidate in enumerate(candidates) if is_right(candidate.answer, truth)]
    if ranks and ranks[0] >= submitted:
        votes = count(candidates[ranks[0]].votes, "vote")
        text += f" The right answer is there, in place {ranks[0] + 1} with {votes}."
    return text


def _listed(words: Sequence[str]) -> str:
    return ", ".join(words[:MOST_LISTED]) + (", …" if len(words) > MOST_LISTED else "")


def _fails(attempts: Sequence[Candidate]) -> str:
    """Which properties common to the demonstrations an attempt lacks."""
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
