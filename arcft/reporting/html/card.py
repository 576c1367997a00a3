"""One problem in the report: its demonstrations, and for each test the attempts beside the true output."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from arcft.protocols import Answer, Card, MetricSet, Problem
from arcft.reporting.html.templating import render
from arcft.reporting.outcomes import Result, is_right
from arcft.reporting.words import count
from arcft.scoring.predictions import Prediction
from arcft.scoring.voting import Candidate

DEMONSTRATION_ROOM = 110
TEST_ROOM = 190
"""Pixels that the largest drawing of a row takes."""

MOST_LISTED = 8
TEXT_LIMIT = 400


@dataclasses.dataclass(frozen=True)
class Figure:
    """A drawing with its caption."""

    caption: str
    drawing: Markup
    is_right: bool | None = None
    """For an attempt: whether it is the true output; None where that is not known."""

    difference: str = ""
    """What is wrong with a wrong attempt."""


def problem_card(result: Result, anchor: str, metric_set: MetricSet, card: Card, *, drawn: bool = True) -> Markup:
    """An <article> with the id `anchor`; `drawn=False` leaves out all drawings."""
    problem = result.problem
    return render(
        "problem.html.j2",
        anchor=anchor,
        color=result.outcome.color,
        id=problem.id,
        figures=metric_set.in_words(result.metrics) if result.metrics else result.outcome.name,
        demonstrations=_demonstrations(problem, card) if drawn else [],
        tests=[_test(result, index, card, drawn=drawn) for index in range(len(problem.answers))],
    )


def _demonstrations(problem: Problem, card: Card) -> list[tuple[Markup, Markup]]:
    parts = [(part, None) for pair in card.demonstrations(problem) for part in pair]
    drawings = [Markup(html) for html in card.html(parts, room=DEMONSTRATION_ROOM)]
    return list(zip(drawings[::2], drawings[1::2], strict=True))


def _test(result: Result, index: int, card: Card, *, drawn: bool) -> dict[str, Any]:
    """The values of one test for the template."""
    truth, predictions, candidates = result.problem.answers[index], result.predictions[index], result.candidates[index]
    num_tests = len(result.problem.answers)
    number = f"Test {index + 1} of {num_tests}. " if num_tests > 1 else ""
    reason = text = ""
    if predictions and not result.attempts[index]:
        reason = (predictions[0].error or "no reason given").rstrip(".")
        text = predictions[0].text
    return {
        "drawn": drawn,
        "figures": _figures(result, index, card) if drawn else [],
        "note": number + _votes(predictions, candidates, truth, result.num_attempts, card),
        "reason": reason,
        "text": text if len(text) <= TEXT_LIMIT else text[:TEXT_LIMIT] + " …",
    }


def _figures(result: Result, index: int, card: Card) -> list[Figure]:
    problem, attempts = result.problem, result.attempts[index]
    truth = problem.answers[index]
    known = [("test input", card.question(problem, index))] + [("true output", truth)] * (truth is not None)
    drawings = card.html([*((part, None) for _, part in known), *((each, truth) for each in attempts)], room=TEST_ROOM)
    figures = [Figure(caption, Markup(html)) for (caption, _), html in zip(known, drawings, strict=False)]
    for number, (attempt, html) in enumerate(zip(attempts, drawings[len(known) :], strict=True), 1):
        right = is_right(attempt, truth)
        difference = card.difference(attempt, truth) if truth is not None and not right else ""
        figures.append(Figure(f"attempt {number}", Markup(html), right, difference))
    if not attempts:
        figures.append(Figure("attempt 1", Markup('<span class="none">none</span>')))
    return figures


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
        f" Attempt {number} breaks what the demonstrations share: {', '.join(candidate.reasons['fails'])}."
        for number, candidate in enumerate(attempts, 1)
        if candidate.reasons.get("fails")
    )
