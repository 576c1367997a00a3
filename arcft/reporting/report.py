"""The report of an evaluation: report.html for reading, summary.png for a slide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from arcft.files import write_text
from arcft.protocols import Card, MetricSet, Problem
from arcft.reporting.adaptation import Adaptation
from arcft.reporting.charts.curves import Curves, curves_svg
from arcft.reporting.charts.numbers import numbers_png
from arcft.reporting.html.page import page
from arcft.reporting.outcomes import sorted_results
from arcft.reporting.pictures.summary import write_summary
from arcft.scoring.metrics import Scores
from arcft.scoring.predictions import Prediction, group_by_test
from arcft.scoring.resampling import SubsampledMetrics
from arcft.scoring.selection import Candidates

NUMBERS_FILE = "numbers.png"
REPORT_FILE = "report.html"
SUMMARY_FILE = "summary.png"


def write_report(
    folder: Path,
    *,
    title: str,
    scores: Scores | None,
    problems: Sequence[Problem],
    predictions: Sequence[Prediction],
    candidates: Candidates,
    metric_set: MetricSet,
    card: Card,
    run: Mapping[str, Any],
    curves: Curves | None,
    note: str = "",
    adaptation: Adaptation | None = None,
    numbers: Sequence[SubsampledMetrics] = (),
) -> None:
    """Write report.html (one self-contained file) and summary.png (1920 x 1080) into `folder`, and numbers.png, the
    chart of `numbers`, where there are any.

    `candidates` are those of each test, the attempts first; `scores` is None where no answer is known; `run` is plain
    data shown as a table; `curves` is the training history where there is one; `note` is a warning about the scores;
    `adaptation` is what test-time fine-tuning did, whose scores after it are `scores`. Raises PredictionError where the
    predictions don't belong to the problems.
    """
    results = sorted_results(problems, scores, group_by_test(problems, predictions), candidates, metric_set)
    svg = curves_svg(curves, metric_set) if curves is not None else ""
    document = page(
        title=title,
        scores=scores,
        results=results,
        metric_set=metric_set,
        card=card,
        run=run,
        curves_svg=svg,
        note=note,
        adaptation=adaptation,
        numbers=numbers,
    )
    write_text(folder / REPORT_FILE, document)
    if numbers:
        (folder / NUMBERS_FILE).write_bytes(numbers_png(numbers, metric_set))
    write_summary(folder / SUMMARY_FILE, title, scores, results, curves, metric_set, card, note, adaptation)
