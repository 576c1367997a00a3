"""What an evaluation prints at its end."""

from __future__ import annotations

from pathlib import Path

from arcft.console import note, say, say_path, show
from arcft.protocols import MetricSet
from arcft.reporting.previews import metrics_table
from arcft.reporting.report import REPORT_FILE
from arcft.reporting.words import count, over_tests
from arcft.runs.evaluation.results import PREDICTIONS_FILE, SUBMISSION_FILE
from arcft.runs.evaluation.targets import EvaluationTarget
from arcft.scoring.metrics import Scores
from arcft.scoring.predictions import all_tests, read_predictions


def show_reused(target: EvaluationTarget, found: Path, folder: Path) -> None:
    """Print that the finished evaluation in `found` is used for `folder`."""
    where = "here" if found.resolve() == folder.resolve() else f"in {found}; copied from there"
    say(f"{target.name}: already evaluated {where}")


def show_metrics(target: EvaluationTarget, scores: Scores) -> None:
    """Print the table of metrics, or why there is none."""
    title = count(len(target.tasks), "task")
    if scores.metrics:
        errors = {target.name: scores.standard_errors()} if len(scores.problems) > 1 else None
        number = len(scores.problems)
        metric_set = target.kind.metrics
        show(metrics_table({target.name: scores.metrics}, metric_set, errors=errors, number=number, title=title))
        show_over_tests(scores, metric_set)
    else:
        say(f"{target.name}, {title}: no answers are known, so there are no metrics")


def show_over_tests(scores: Scores, metric_set: MetricSet) -> None:
    """Print the primary metric over all tests alike, if it is known."""
    words = over_tests(scores, metric_set)
    if words:
        say(words)


def show_files(target: EvaluationTarget, folder: Path) -> None:
    """Print the paths of the report and of the submission, and how much of it was not predicted."""
    say_path("report", folder / REPORT_FILE)
    say_path("submission", folder / SUBMISSION_FILE)
    words = not_predicted(target, folder)
    if words:
        note(words)


def not_predicted(target: EvaluationTarget, folder: Path) -> str:
    """How many tasks of the submission have no prediction in `folder`, and why; empty if all have."""
    chosen = {task.id for task in target.tasks}
    predictions = read_predictions(folder / PREDICTIONS_FILE, target.kind)
    predicted = {(one.task_id, one.test_index) for one in predictions if one.task_id in chosen}
    missing: dict[str, int] = {}
    for task_id, index in all_tests(target.submitted):
        if (task_id, index) not in predicted:
            missing[task_id] = missing.get(task_id, 0) + 1
    tests = {task.id: len(task.answers) for task in target.submitted}
    whole = [task_id for task_id, number in missing.items() if number == tests[task_id]]
    words = []
    if whole:
        left_out = len(tests) - len(chosen)
        number = "" if left_out == len(whole) else f"{left_out:,} of them "
        why = f" ({number}left out by data=)" if left_out else ""
        words.append(f"{len(whole):,} of {count(len(tests), 'task')}{why}")
    if len(missing) > len(whole):
        partly = sum(missing.values()) - sum(tests[task_id] for task_id in whole)
        words.append(
            f"{count(partly, 'test')} of {count(len(missing) - len(whole), 'other task' if whole else 'task')}"
        )
    if not words:
        return ""
    verb = "was" if sum(missing.values()) == 1 else "were"
    return f"{' and '.join(words)} {verb} not predicted; {SUBMISSION_FILE} has placeholders for them"
