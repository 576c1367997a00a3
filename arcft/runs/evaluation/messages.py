"""What an evaluation says on the console in the end."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape

from arcft.problems.arc.scoring.metrics import Scores
from arcft.reporting.previews import metrics_table
from arcft.reporting.report import REPORT_FILE
from arcft.reporting.words import count
from arcft.runs.evaluation.results import SUBMISSION_FILE
from arcft.runs.evaluation.targets import EvaluationTarget

console = Console()


def show_reused(target: EvaluationTarget, found: Path, folder: Path) -> None:
    """That the evaluation in `found` is taken over into `folder`."""
    where = "here" if found.resolve() == folder.resolve() else f"in {found}; copied from there"
    console.print(f"{target.name}: already evaluated {where}", highlight=False, markup=False, soft_wrap=True)


def show_metrics(target: EvaluationTarget, scores: Scores) -> None:
    """The table of metrics, or why there is none."""
    title = count(len(target.tasks), "task")
    if scores.metrics:
        errors = {target.name: scores.standard_errors()} if len(scores.tasks) > 1 else None
        console.print(metrics_table({target.name: scores.metrics}, errors=errors, title=title))
    else:
        console.print(f"{target.name}, {title}: no answers are known, so there are no metrics")


def show_files(folder: Path) -> None:
    """Where to look, and what to hand in."""
    console.print(f"report: [bold]{escape(str(folder / REPORT_FILE))}[/]", highlight=False, soft_wrap=True)
    console.print(f"submission: [bold]{escape(str(folder / SUBMISSION_FILE))}[/]", highlight=False, soft_wrap=True)
