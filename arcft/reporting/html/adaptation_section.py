"""The report's section on test-time fine-tuning, as HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from arcft.reporting.adaptation import (
    Adaptation,
    TaskRow,
    changes,
    gained_and_lost,
    median,
    number_note,
)
from arcft.reporting.charts.adaptation_charts import adaptation_svg
from arcft.reporting.outcomes import Result
from arcft.reporting.words import count, duration, percent, plus_minus, points
from arcft.scoring.metrics import Scores

MOST_OPEN_ROWS = 20
"""A longer table of tasks is collapsed, so that the rest of the page stays in reach."""

MOST_OPEN_LINKS = 12

NUMERIC = {"loss", "steps", "adapting", "predicting", "done after"}


def adaptation_section(adaptation: Adaptation, results: Sequence[Result], anchors: Mapping[str, str]) -> str:
    """The section. Tasks are in the order of `results` and link to their cards, whose ids are in `anchors` by task."""
    rows = {row.task_id: row for row in adaptation.rows}
    ordered = [(rows[result.problem.id], result) for result in results if result.problem.id in rows]
    parts = [
        "<h2>Test-time fine-tuning</h2>",
        _outcome(adaptation, anchors),
        _costs(adaptation),
        _changes(adaptation),
        _charts(adaptation),
        _failures([row for row, _ in ordered if row.state != "done"], anchors),
        _tasks(adaptation, [(row, result) for row, result in ordered if row.state == "done"], anchors),
        _log(adaptation.log),
    ]
    return "\n".join(part for part in parts if part)


def before_words(before: Scores | None, metric: str) -> str:
    """For a headline, e.g. `before 12.5% ± 3.1`; empty if unknown."""
    if before is None or metric not in before.metrics:
        return ""
    error = before.standard_errors()[metric] if len(before.problems) > 1 else float("nan")
    return f"before {percent(before.metrics[metric])} {plus_minus(error)}".strip()


def _outcome(adaptation: Adaptation, anchors: Mapping[str, str]) -> str:
    """How many tasks were adapted to, and which ones adapting gained or lost."""
    done = sum(row.state == "done" for row in adaptation.rows)
    missing = adaptation.not_adapted()
    words = f"Adapted to {done:,} of {count(len(adaptation.rows), 'task')}"
    if adaptation.shares_adapters:
        words += f", with {count(len(adaptation.adapters), 'adapter')}"
    words += f"; <b>{missing}</b>." if missing else "."
    gained, lost = gained_and_lost(adaptation)
    if adaptation.before is not None and not gained and not lost:
        words += " The same tasks are solved as before."
    return f"<p>{words}</p>{_links('newly solved', gained, anchors)}{_links('no longer solved', lost, anchors)}"


def _links(what: str, task_ids: Sequence[str], anchors: Mapping[str, str]) -> str:
    if not task_ids:
        return ""
    opened = " open" if len(task_ids) <= MOST_OPEN_LINKS else ""
    links = ", ".join(_link(task_id, anchors) for task_id in task_ids)
    return f"<details class='links'{opened}><summary>{count(len(task_ids), 'task')} {what}</summary>{links}</details>"


def _link(task_id: str, anchors: Mapping[str, str]) -> str:
    name = f"<code>{escape(task_id)}</code>"
    return f'<a href="#{anchors[task_id]}">{name}</a>' if task_id in anchors else name


def _costs(adaptation: Adaptation) -> str:
    adapters = adaptation.adapters
    words = []
    for name, seconds in (
        ("adapting", [row.adapt_seconds for row in adapters]),
        ("predicting", [row.predict_seconds for row in adapters]),
    ):
        middle = median(seconds)
        if middle is not None:
            words.append(f"{name} {duration(middle)}")
    steps = median([row.steps for row in adapters])
    if not words or steps is None:
        return ""
    return f"<p class='faint'>Median of {_each(adaptation)}: {', '.join(words)}, {steps:,.0f} steps.</p>"


def _changes(adaptation: Adaptation) -> str:
    found, primary = changes(adaptation), adaptation.metric_set.primary
    if not found:
        return ""
    head = "".join(
        f'<th class="number">{words}</th>'
        for words in (
            f"before<br>{count(adaptation.predictions_before, 'prediction')} a test",
            f"after<br>{count(adaptation.predictions_after, 'prediction')} a test",
            "change<br>in points",
        )
    )
    body = "".join(
        f"<tr class='{'main' if change.metric == primary else ''}'><th><code>{change.metric}</code></th>"
        + "".join(
            f'<td class="number">{value} <small>{plus_minus(error)}</small></td>'
            for value, error in (
                (percent(change.before), change.before_error),
                (percent(change.after), change.after_error),
                (points(change.difference), change.difference_error),
            )
        )
        + "</tr>"
        for change in found
    )
    note = number_note(adaptation)
    if len(adaptation.rows) > 1:
        note = f"± is the standard error over tasks; that of the change is taken task by task. {note}"
    return f'<table class="changes"><tr><th></th>{head}</tr>{body}</table><p class="faint">{escape(note)}</p>'


def _charts(adaptation: Adaptation) -> str:
    svg = adaptation_svg(adaptation)
    if not svg:
        return ""
    words = ""
    if adaptation.before is not None:
        words += "Until a task is done its un-adapted predictions count, so the line starts where these stand. "
    if any(row.loss_first is not None for row in adaptation.adapters):
        words += f"A dot below the dashed line is {_each(adaptation)} whose loss fell."
    note = f"<p class='faint'>{words}</p>" if words else ""
    return f"<div class='curves'>{svg}</div>{note}"


def _each(adaptation: Adaptation) -> str:
    return "an adapter" if adaptation.shares_adapters else "a task"


def _failures(rows: Sequence[TaskRow], anchors: Mapping[str, str]) -> str:
    if not rows:
        return ""
    body = "".join(
        f'<tr><td>{_link(row.task_id, anchors)}</td><td class="number">{row.attempts:,}</td>'
        f"<td>{escape(row.reason or 'no reason given')}</td><td>{escape('; '.join(row.notes))}</td></tr>"
        for row in rows
    )
    return (
        f"<details{_opened(rows)}><summary>{count(len(rows), 'task')} not adapted to</summary>"
        "<p class='faint'>Predictions made before adapting, if any, are submitted for them.</p>"
        f'<table><tr><th>task</th><th class="number">tries</th><th>reason</th><th></th></tr>{body}</table></details>'
    )


def _tasks(adaptation: Adaptation, rows: Sequence[tuple[TaskRow, Result]], anchors: Mapping[str, str]) -> str:
    if not rows:
        return ""
    before = adaptation.solved_before
    cells = [_cells(row, result, before.get(row.task_id), anchors) for row, result in rows]
    names = [name for name in cells[0] if any(values[name] for values in cells)]
    kinds = {name: ' class="number"' if name in NUMERIC else "" for name in names}
    head = "".join(f"<th{kinds[name]}>{name}</th>" for name in names)
    body = "".join(
        "<tr>" + "".join(f"<td{kinds[name]}>{values[name]}</td>" for name in names) + "</tr>" for values in cells
    )
    summary = f"<summary>{count(len(rows), 'task')}, in the order of this report</summary>"
    return f"<details{_opened(rows)}>{summary}<div class='wide'><table><tr>{head}</tr>{body}</table></div></details>"


def _opened(rows: Sequence[object]) -> str:
    return " open" if len(rows) <= MOST_OPEN_ROWS else ""


def _cells(row: TaskRow, result: Result, before: bool | None, anchors: Mapping[str, str]) -> dict[str, str]:
    retried = [f"done in try {row.attempts + 1}"] if row.attempts else []
    return {
        "task": _link(row.task_id, anchors),
        "adapter": escape(row.unit) if row.unit != row.task_id else "",
        "before": "" if before is None else "solved" if before else "–",
        "now": f'<span class="dot" style="background:{result.outcome.color}"></span>{result.outcome.name}',
        "votes": escape(row.votes),
        "loss": _losses(row),
        "steps": f"{row.steps:,}",
        "adapting": _seconds(row.adapt_seconds),
        "predicting": _seconds(row.predict_seconds),
        "done after": _seconds(row.finished_at),
        "notes": escape("; ".join([*retried, *row.notes])),
    }


def _losses(row: TaskRow) -> str:
    if row.loss_first is None or row.loss_last is None:
        return ""
    return f"{row.loss_first:.3f} → {row.loss_last:.3f}"


def _seconds(seconds: float | None) -> str:
    return "" if seconds is None else duration(seconds)


def _log(lines: Sequence[str]) -> str:
    if not lines:
        return ""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<h3 class='words'>On the way</h3><ul>{items}</ul>"
