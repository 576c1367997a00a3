"""The report's section on test-time fine-tuning, as HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from arcft.reporting.adaptation import (
    Adaptation,
    TaskRow,
    changes,
    compared,
    difference_spread,
    gained_and_lost,
    median,
    number_note,
)
from arcft.reporting.charts.adaptation_charts import adaptation_svg
from arcft.reporting.html.templating import render
from arcft.reporting.outcomes import Result
from arcft.reporting.words import SPREAD, duration, percent, spread
from arcft.scoring.metrics import Scores

MOST_OPEN_ROWS = 20
"""A longer table of tasks is collapsed, so that the rest of the page stays in reach."""

MOST_OPEN_LINKS = 12
NUMERIC = ("loss", "steps", "adapting", "predicting", "done after")


def adaptation_section(adaptation: Adaptation, results: Sequence[Result], anchors: Mapping[str, str]) -> Markup:
    """The section. Tasks are in the order of `results` and link to their cards, whose ids are in `anchors` by task."""
    rows = {row.task_id: row for row in adaptation.rows}
    ordered = [(rows[result.problem.id], result) for result in results if result.problem.id in rows]
    before = adaptation.solved_before
    tasks = [_cells(row, result, before.get(row.task_id)) for row, result in ordered if row.state == "done"]
    gained, lost = gained_and_lost(adaptation)
    svg = adaptation_svg(adaptation)
    return render(
        "adaptation.html.j2",
        anchors=anchors,
        num_done=len(tasks),
        num_tasks=len(adaptation.rows),
        num_adapters=len(adaptation.adapters),
        shares_adapters=adaptation.shares_adapters,
        missing=adaptation.not_adapted(),
        gained=gained,
        lost=lost,
        is_unchanged=adaptation.before is not None and not gained and not lost,
        costs=_costs(adaptation),
        changes=changes(adaptation),
        num_compared=len(compared(adaptation)),
        difference_spread=difference_spread,
        changes_note=_changes_note(adaptation),
        primary=adaptation.metric_set.primary,
        predictions_before=adaptation.predictions_before,
        predictions_after=adaptation.predictions_after,
        svg=Markup(svg),
        svg_note=_svg_note(adaptation),
        failures=[row for row, _ in ordered if row.state != "done"],
        tasks=tasks,
        columns=[name for name in tasks[0] if any(cells[name] for cells in tasks)] if tasks else [],
        numeric=NUMERIC,
        log=adaptation.log,
        most_open_rows=MOST_OPEN_ROWS,
        most_open_links=MOST_OPEN_LINKS,
    )


def before_words(before: Scores | None, metric: str) -> str:
    """For a headline, e.g. `before 12.5% ± 3.1`; empty if unknown."""
    if before is None or metric not in before.metrics:
        return ""
    value, number = before.metrics[metric], len(before.problems)
    error = before.standard_errors()[metric] if number > 1 else float("nan")
    return f"before {percent(value)} {spread(value, error, number)}".strip()


def _costs(adaptation: Adaptation) -> str:
    """For example `Median of a task: adapting 7.0 s, predicting 1.5 s, 64 steps.`; empty if unknown."""
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
    return f"Median of {_each(adaptation)}: {', '.join(words)}, {steps:,.0f} steps."


def _changes_note(adaptation: Adaptation) -> str:
    note = number_note(adaptation)
    if len(adaptation.rows) > 1:
        return f"Means over tasks. {SPREAD}; that of the change is taken task by task. {note}"
    return note


def _svg_note(adaptation: Adaptation) -> str:
    words = ""
    if adaptation.before is not None:
        words += "Until a task is done its un-adapted predictions count, so the line starts where these stand. "
    if any(row.loss_first is not None for row in adaptation.adapters):
        words += f"A dot below the dashed line is {_each(adaptation)} whose loss fell."
    return words


def _each(adaptation: Adaptation) -> str:
    return "an adapter" if adaptation.shares_adapters else "a task"


def _cells(row: TaskRow, result: Result, before: bool | None) -> dict[str, Any]:
    """The cells of a task, by column."""
    retried = [f"done in try {row.attempts + 1}"] if row.attempts else []
    return {
        "task": row.task_id,
        "adapter": row.unit if row.unit != row.task_id else "",
        "before": "" if before is None else "solved" if before else "–",
        "now": result.outcome,
        "votes": row.votes,
        "loss": _losses(row),
        "steps": f"{row.steps:,}",
        "adapting": _seconds(row.adapt_seconds),
        "predicting": _seconds(row.predict_seconds),
        "done after": _seconds(row.finished_at),
        "notes": "; ".join([*retried, *row.notes]),
    }


def _losses(row: TaskRow) -> str:
    if row.loss_first is None or row.loss_last is None:
        return ""
    return f"{row.loss_first:.3f} → {row.loss_last:.3f}"


def _seconds(seconds: float | None) -> str:
    return "" if seconds is None else duration(seconds)
