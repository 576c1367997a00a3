"""The report of an evaluation: report.html for reading, summary.png for a slide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from arcft.files import write_text
from arcft.problems.arc.scoring.metrics import Scores
from arcft.problems.arc.task import Task
from arcft.reporting.adaptation import Adaptation
from arcft.reporting.charts.curves import Curves, curves_svg
from arcft.reporting.charts.numbers import numbers_png
from arcft.reporting.html.page import page
from arcft.reporting.outcomes import sorted_results
from arcft.reporting.summary import write_summary
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
    tasks: Sequence[Task],
    predictions: Sequence[Prediction],
    candidates: Candidates,
    run: Mapping[str, Any],
    curves: Curves | None,
    note: str = "",
    adaptation: Adaptation | None = None,
    numbers: Sequence[SubsampledMetrics] = (),
) -> None:
    """Write report.html (one self-contained file) and summary.png (1920 x 1080) into `folder`, and numbers.png, the
    chart of `numbers`, where there are any.

    `candidates` are those of each test, the attempts first; `scores` is None where no answer is known; `run` is plain
    data shown as a table; `curves` is the training history where there is one; `note` is what nobody should overlook
    who reads the scores; `adaptation` is what test-time fine-tuning did, whose scores after it are `scores`.
    PredictionError where the predictions don't belong to the tasks.
    """
    results = sorted_results(tasks, scores, group_by_test(tasks, predictions), candidates)
    svg = curves_svg(curves) if curves is not None else ""
    document = page(
        title=title,
        scores=scores,
        results=results,
        run=run,
        curves_svg=svg,
        note=note,
        adaptation=adaptation,
        numbers=numbers,
    )
    write_text(folder / REPORT_FILE, document)
    if numbers:
        (folder / NUMBERS_FILE).write_bytes(numbers_png(numbers))
    write_summary(folder / SUMMARY_FILE, title, scores, results, curves, note, adaptation)
