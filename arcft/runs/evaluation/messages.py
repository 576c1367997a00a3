"""What an evaluation prints at its end."""

from __future__ import annotations

from pathlib import Path

from arcft.console import say, say_path, show
from arcft.reporting.previews import metrics_table
from arcft.reporting.report import REPORT_FILE
from arcft.reporting.words import count
from arcft.runs.evaluation.results import SUBMISSION_FILE
from arcft.runs.evaluation.targets import EvaluationTarget
from arcft.scoring.metrics import Scores


def show_reused(target: EvaluationTarget, found: Path, folder: Path) -> None:
    """Print that the finished evaluation in `found` is used for `folder`."""
    where = "here" if found.resolve() == folder.resolve() else f"in {found}; copied from there"
    say(f"{target.name}: already evaluated {where}")


def show_metrics(target: EvaluationTarget, scores: Scores) -> None:
    """Print the table of metrics, or why there is none."""
    title = count(len(target.tasks), "task")
    if scores.metrics:
        errors = {target.name: scores.standard_errors()} if len(scores.problems) > 1 else None
        show(metrics_table({target.name: scores.metrics}, target.kind.metrics, errors=errors, title=title))
    else:
        say(f"{target.name}, {title}: no answers are known, so there are no metrics")


def show_files(folder: Path) -> None:
    """Print the paths of the report and of the submission."""
    say_path("report", folder / REPORT_FILE)
    say_path("submission", folder / SUBMISSION_FILE)
