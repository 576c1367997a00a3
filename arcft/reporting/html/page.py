"""The HTML of a report: a single file without scripts or external resources."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from arcft.protocols import Card, MetricSet
from arcft.reporting.adaptation import Adaptation
from arcft.reporting.charts.numbers import EXPLAINED, numbers_svg
from arcft.reporting.html.adaptation_section import adaptation_section, before_words
from arcft.reporting.html.card import problem_card
from arcft.reporting.html.templating import render
from arcft.reporting.outcomes import ANSWERED, OUTCOMES, SOLVED, UNANSWERED, Outcome, Result
from arcft.reporting.words import SPREAD, describe, over_tests, spelled, spread
from arcft.scoring.metrics import Scores
from arcft.scoring.resampling import SubsampledMetrics

MOST_BYTES = 10_000_000
"""Above this size further tasks are listed without drawings, and the page says so."""

MOST_REASONS = 10
ORDERS = {SOLVED: "The surest first", ANSWERED: "By id", UNANSWERED: "By id"}
"""How the problems of an outcome are sorted; all others are sorted by how near they come."""


def page(
    *,
    title: str,
    scores: Scores | None,
    results: Sequence[Result],
    metric_set: MetricSet,
    card: Card,
    run: Mapping[str, Any],
    curves_svg: str,
    note: str = "",
    adaptation: Adaptation | None = None,
    numbers: Sequence[SubsampledMetrics] = (),
) -> str:
    """The whole document. `results` are all problems, sorted; `curves_svg` is empty if there are no curves."""
    anchors = {result.problem.id: f"task-{number}" for number, result in enumerate(results)}
    counts = Counter(result.outcome for result in results)
    sections, left_out = _sections(results, anchors, metric_set, card)
    number = spelled(metric_set.attempts)
    chosen = "The attempt is the first" if number == "one" else f"The {number} attempts are the first {number}"
    return render(
        "page.html.j2",
        title=title,
        card_css=Markup(card.css),
        description=describe(results),
        note=note,
        headlines=_headlines(scores, adaptation.before if adaptation else None, metric_set),
        overview=render(
            "overview.html.j2",
            counts=[(outcome, counts[outcome]) for outcome in OUTCOMES if counts[outcome]],
            anchored=[(result, anchors[result.problem.id]) for result in results],
        ),
        adaptation=adaptation_section(adaptation, results, anchors) if adaptation else "",
        numbers=_numbers(numbers, metric_set),
        curves_svg=Markup(curves_svg),
        sections=sections,
        left_out=left_out,
        most_megabytes=MOST_BYTES // 1_000_000,
        errors=_errors(results, card.noun),
        run=list(_flat(run)),
        chosen=chosen,
        noun=card.noun,
        legend=card.legend,
    )


def _headlines(scores: Scores | None, before: Scores | None, metric_set: MetricSet) -> Markup:
    if scores is None or not scores.metrics:
        return render("headlines.html.j2", boxes=[])
    errors, first = scores.standard_errors(), metric_set.headlines
    boxes = [
        {
            "name": name,
            "is_primary": name == metric_set.primary,
            "value": scores.metrics[name],
            "spread": spread(scores.metrics[name], errors[name], len(scores.problems)),
            "definition": metric_set.definitions[name],
            "before": before_words(before, name),
        }
        for name in [*first, *(name for name in metric_set.names if name not in first)]
    ]
    return render(
        "headlines.html.j2",
        boxes=boxes,
        number=len(scores.problems),
        explained=SPREAD,
        over_tests=over_tests(scores, metric_set),
    )


def _sections(
    results: Sequence[Result], anchors: Mapping[str, str], metric_set: MetricSet, card: Card
) -> tuple[list[dict[str, Any]], int]:
    """A section per outcome with an article per problem, and how many of these have no drawings for lack of room."""
    sections, size, left_out = [], 0, 0
    for outcome, group in itertools.groupby(results, key=lambda result: result.outcome):
        articles = []
        for result in group:
            anchor = anchors[result.problem.id]
            article = problem_card(result, anchor, metric_set, card)
            if size + len(article) > MOST_BYTES:
                article = problem_card(result, anchor, metric_set, card, drawn=False)
                left_out += 1
            size += len(article)
            articles.append(article)
        sections.append({"name": outcome.name, "words": _order(outcome), "articles": articles})
    return sections, left_out


def _order(outcome: Outcome) -> str:
    return f"{ORDERS.get(outcome, 'The nearest first')}. {outcome.meaning.capitalize()}."


def _errors(results: Sequence[Result], noun: str) -> Markup:
    """Why predictions have no valid answer; numbers in the reasons are masked, so that similar reasons are counted
    together."""
    reasons = Counter(
        re.sub(r"\d+", "#", prediction.error or "no reason given")
        for result in results
        for group in result.predictions
        for prediction in group
        if prediction.answer is None
    )
    if not reasons:
        return Markup("")
    return render(
        "errors.html.j2",
        total=reasons.total(),
        noun=noun,
        reasons=reasons.most_common(MOST_REASONS),
        rest=max(0, len(reasons) - MOST_REASONS),
    )


def _numbers(numbers: Sequence[SubsampledMetrics], metric_set: MetricSet) -> Markup:
    if not numbers:
        return Markup("")
    svg = Markup(numbers_svg(numbers, metric_set))
    return render("numbers.html.j2", explained=EXPLAINED, names=list(metric_set.by_rank), numbers=numbers, svg=svg)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value, default=str)
