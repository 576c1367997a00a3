"""The HTML of a report: a single file without scripts or external resources."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from arcft.protocols import Card, MetricSet
from arcft.reporting.adaptation import Adaptation
from arcft.reporting.charts.numbers import numbers_section
from arcft.reporting.html.adaptation_section import adaptation_section, before_words
from arcft.reporting.html.card import problem_card
from arcft.reporting.html.style import CSS
from arcft.reporting.outcomes import OUTCOMES, Outcome, Result
from arcft.reporting.words import count, describe, percent, plus_minus, spelled
from arcft.scoring.metrics import Scores
from arcft.scoring.resampling import SubsampledMetrics

MOST_BYTES = 10_000_000
"""Above this size further tasks are listed without drawings, and the page says so."""

# Reports are shared: even if some text were taken for markup, nothing would run or be fetched.
_SECURITY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


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
    before = adaptation.before if adaptation else None
    anchors = {result.problem.id: _anchor(number) for number, result in enumerate(results)}
    sections = [
        f"<h1>{escape(title)}</h1><p class='faint'>{escape(describe(results))}</p>",
        f"<p><b>{escape(note)}</b></p>" if note else "",
        _headlines(scores, before, metric_set) if scores and scores.metrics else _no_metrics(),
        _overview(results),
        adaptation_section(adaptation, results, anchors) if adaptation else "",
        numbers_section(numbers, metric_set),
        _curves(curves_svg),
        *_tasks(results, metric_set, card),
        _errors(results, card.noun),
        _run(run),
        _definitions(metric_set.attempts, card),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_SECURITY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>\n{CSS}{card.css}</style></head>\n<body>\n"
        + "\n".join(section for section in sections if section)
        + "\n</body></html>\n"
    )


def _headlines(scores: Scores, before: Scores | None, metric_set: MetricSet) -> str:
    errors = scores.standard_errors()
    first = metric_set.headlines
    names = [*first, *(name for name in metric_set.names if name not in first)]
    boxes = "".join(
        f'<div class="metric{" main" if name == metric_set.primary else ""}"><b>{percent(scores.metrics[name])}</b> '
        f"<small>{plus_minus(errors[name]) or '&nbsp;'}</small><code>{name}</code>"
        f"<small>{escape(metric_set.definitions[name])}</small>{_before(before, name)}</div>"
        for name in names
    )
    note = f"Means over {count(len(scores.problems), 'task')}."
    if len(scores.problems) > 1:
        note += " ± is the standard error over tasks."
    return f'<div class="metrics">{boxes}</div><p class="faint">{note}</p>'


def _before(before: Scores | None, name: str) -> str:
    words = before_words(before, name)
    return f'<small class="before">{words}</small>' if words else ""


def _no_metrics() -> str:
    return "<p>The right answers are not known, so there are no metrics.</p>"


def _overview(results: Sequence[Result]) -> str:
    counts = Counter(result.outcome for result in results)
    shown = [outcome for outcome in OUTCOMES if counts[outcome]]
    bar = "".join(f'<i style="flex:{counts[outcome]};background:{outcome.color}"></i>' for outcome in shown)
    legend = "".join(
        f'<li><span class="dot" style="background:{outcome.color}"></span>'
        f"<b>{counts[outcome]:,} {outcome.name}</b> <span class='faint'>{outcome.meaning}</span></li>"
        for outcome in shown
    )
    strip = "".join(
        f'<a href="#{_anchor(number)}" title="{escape(result.problem.id)}: {result.outcome.name}" '
        f'style="background:{result.outcome.color}"></a>'
        for number, result in enumerate(results)
    )
    return f'<div class="bar">{bar}</div><ul class="legend">{legend}</ul><div class="strip">{strip}</div>'


def _curves(svg: str) -> str:
    if not svg:
        return ""
    words = "Losses, and metrics on tasks held out of training, as they were while the model was trained."
    return f"<h2>Training</h2><p class='faint'>{words}</p><div class='curves'>{svg}</div>"


def _tasks(results: Sequence[Result], metric_set: MetricSet, card: Card) -> Iterator[str]:
    """A section per outcome with a card per task; without drawings once the page is too large."""
    size, left_out = 0, 0
    heading: Outcome | None = None
    for number, result in enumerate(results):
        if result.outcome is not heading:
            heading = result.outcome
            same = sum(other.outcome is heading for other in results)
            yield f"<h2>{heading.name.capitalize()}: {count(same, 'task')}</h2><p class='faint'>{_order(heading)}</p>"
        article = problem_card(result, _anchor(number), metric_set, card)
        if size + len(article) > MOST_BYTES:
            article = problem_card(result, _anchor(number), metric_set, card, drawn=False)
            left_out += 1
        size += len(article)
        yield article
    if left_out:
        yield (
            f"<p><b>{count(left_out, 'task')}</b> above could not be drawn: the page would be larger than "
            f"{MOST_BYTES // 1_000_000} MB. To see them, evaluate fewer tasks with data.task_ids.</p>"
        )


def _order(outcome: Outcome) -> str:
    return (
        {
            "solved": "The surest first. ",
            "answered": "By id. ",
            "unanswered": "By id. ",
        }.get(outcome.name, "The nearest first. ")
        + outcome.meaning.capitalize()
        + "."
    )


def _errors(results: Sequence[Result], noun: str) -> str:
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
        return ""
    most = reasons.most_common(10)
    rows = "".join(f'<tr><td class="number">{number:,}</td><td>{escape(reason)}</td></tr>' for reason, number in most)
    rest = len(reasons) - len(most)
    more = f"<p class='faint'>and {count(rest, 'rarer reason')}</p>" if rest else ""
    total = count(reasons.total(), "prediction")
    return f"<h2>Why {total} had no valid {noun}</h2><table>{rows}</table>{more}"


def _run(run: Mapping[str, Any]) -> str:
    rows = "".join(f"<tr><th>{escape(key)}</th><td>{escape(value)}</td></tr>" for key, value in _flat(run))
    return f"<h2>Run</h2><table>{rows}</table>" if rows else ""


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value, default=str)


def _definitions(attempts: int, card: Card) -> str:
    number = spelled(attempts)
    chosen = "The attempt is the first" if attempts == 1 else f"The {number} attempts are the first {number}"
    return (
        "<h2>How to read this</h2><p>A test is answered by one or more predictions, for the task as it is or "
        f"augmented, which is undone. {chosen} of the different {card.noun}s: by the selection's scores where there "
        "are any, then by the number of predictions that gave it; of equally frequent ones the more probable is first. "
        f"{escape(card.legend)} A metric is the mean over tests, then over tasks; a test without predictions counts as "
        "unanswered.</p>"
    )


def _anchor(number: int) -> str:
    return f"task-{number}"
