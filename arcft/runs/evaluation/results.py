"""Write an evaluation's files: metrics, submission, report; and the index of finished evaluations."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from arcft.checkpoints import RUN_FILE
from arcft.config.run import TrainConfig
from arcft.config.schema import to_dict
from arcft.console import note
from arcft.files import file_sha256, open_atomic, write_json
from arcft.json_text import json_lines
from arcft.protocols import AnswerCodec, Kind, MetricSet, Problem
from arcft.reporting.adaptation import Adaptation
from arcft.reporting.charts.curves import Curves, curves_png
from arcft.reporting.report import NUMBERS_FILE, REPORT_FILE, SUMMARY_FILE, write_report
from arcft.reporting.words import count
from arcft.runs.common.extras import extra
from arcft.scoring.metrics import Scores, score_problems, wilson_interval
from arcft.scoring.predictions import Prediction, all_tests, append_prediction, read_predictions
from arcft.scoring.resampling import metrics_by_count
from arcft.scoring.selection import Selector, attempts_of, with_reasons
from arcft.scoring.voting import Attempts

METRICS_FILE = "metrics.json"
PREDICTIONS_FILE = "predictions.jsonl"
SUBMISSION_FILE = "submission.json"
INDEX_FILE = "evaluations.jsonl"
SWEEP_FILE = "sweep.json"
SWEEP_PICTURE = "sweep.png"

# metrics.json is written and copied last: it marks an evaluation as complete.
FILES = (PREDICTIONS_FILE, SUBMISSION_FILE, REPORT_FILE, SUMMARY_FILE, METRICS_FILE)


def write_results(
    folder: Path,
    *,
    title: str,
    kind: Kind,
    problems: Sequence[Problem],
    submitted: Sequence[Problem],
    predictions: Sequence[Prediction],
    selector: Selector,
    run: Mapping[str, Any],
    trained: TrainConfig | None = None,
    curves: Curves | None = None,
    adaptation: Adaptation | None = None,
    changes: Mapping[str, Sequence[str]] | None = None,
) -> Scores:
    """Select, score, and write predictions.jsonl with the reasons of the selection, submission.json, the report, and
    metrics.json, which comes last and marks the evaluation as complete.

    `submitted` are the problems of the submission, `problems` among them. Metrics are empty if no answer is known; the
    other files are written anyway. `run` is stored in metrics.json and in the report; if it counts tasks under
    `trained_on`, report and picture start with that warning. `trained` is the config of the run whose checkpoint was
    evaluated; it is stored too, for comparisons of runs. `adaptation` holds the results of test-time fine-tuning;
    its scores before adapting are added to metrics.json. So are `changes`, by task id what was done otherwise than
    asked, and the ids of the submission's problems that were not evaluated.
    """
    seen = run.get("trained_on", 0)
    candidates = selector.candidates(problems, predictions)
    attempts = attempts_of(candidates, kind.metrics.attempts)
    scores = score_problems(problems, predictions, attempts, kind.metrics)
    numbers = metrics_by_count(problems, predictions, candidates, kind.metrics)
    write_predictions(folder / PREDICTIONS_FILE, with_reasons(predictions, candidates, selector.name), kind)
    write_submission(folder, kind, submitted, attempts)
    with extra("the report"):
        write_report(
            folder,
            title=title,
            scores=scores if scores.metrics else None,
            problems=problems,
            predictions=predictions,
            candidates=candidates,
            metric_set=kind.metrics,
            card=kind.card,
            numbers=numbers,
            run=dict(run),
            curves=curves,
            note=f"{seen} of {count(len(problems), 'task')} {'was' if seen == 1 else 'were'} trained on"
            if seen
            else "",
            adaptation=adaptation,
        )
    content = {"metrics": scores.metrics, "tasks": scores.problems, "run": dict(run)}
    if changes:
        content["changes"] = dict(changes)
    evaluated = {problem.id for problem in problems}
    content["evaluated"] = sorted(evaluated)
    content["not_evaluated"] = sorted(problem.id for problem in submitted if problem.id not in evaluated)
    content |= _over_tests(scores, kind.metrics)
    if adaptation is not None and adaptation.before is not None:
        content["before"] = adaptation.before.metrics
    if numbers:
        content["by_number"] = [number.to_json() for number in numbers]
    if trained is not None:
        content["trained"] = to_dict(trained)
    write_json(folder / METRICS_FILE, content)
    return scores


def _over_tests(scores: Scores, metric_set: MetricSet) -> dict[str, Any]:
    """What metrics.json says of all tests alike, and, under `averages`, what its figures are means of; nothing if no
    answer is known."""
    if not scores.over_tests:
        return {}
    name, share = metric_set.score_over_tests, scores.over_tests[metric_set.primary]
    return {
        "averages": {
            "metrics": "means over tasks of the means over each task's tests",
            "metrics_over_tests": "means over all tests" + (f"; {metric_set.primary} is {name}" if name else ""),
            "intervals_95": "of metrics, over tasks (Wilson)",
        },
        "metrics_over_tests": scores.over_tests,
        "tests": {
            "number": scores.num_tests,
            "solved": round(share * scores.num_tests),
            "share": share,
            "interval_95": wilson_interval(share, scores.num_tests),
        },
        "intervals_95": scores.intervals(),
        "by_test": scores.by_test,
    }


def write_submission(folder: Path, kind: Kind, submitted: Sequence[Problem], attempts: Attempts) -> None:
    """Write the submission, with an entry for each test of `submitted`, also where there are no attempts."""
    kind.write_submission(
        folder / SUBMISSION_FILE, submitted, {key: attempts.get(key, ()) for key in all_tests(submitted)}
    )


def write_predictions(path: Path, predictions: Sequence[Prediction], answers: AnswerCodec) -> None:
    """Write a predictions file atomically."""
    with open_atomic(path) as file:
        for prediction in predictions:
            append_prediction(file, prediction, answers)


def recorded_evaluations(run_folder: Path) -> list[dict[str, Any]]:
    """The entries of the index of `run_folder`, oldest first; each has a `folder`."""
    return [entry for entry in json_lines(run_folder / INDEX_FILE) if isinstance(entry.get("folder"), str)]


def find_evaluation(run_folder: Path, key: str) -> Path | None:
    """The folder of a finished evaluation with the same `key`, if the index of `run_folder` has one that is whole."""
    for entry in reversed(recorded_evaluations(run_folder)):
        folder = Path(entry["folder"])
        if entry.get("key") != key or not all((folder / name).is_file() for name in FILES):
            continue
        if _is_readable(folder) and entry.get("sha256", _digests(folder)) == _digests(folder):
            return folder
        note(f"{folder}: holds the same evaluation, but its files were changed since; evaluating again")
    return None


def _is_readable(folder: Path) -> bool:
    """Whether the metrics and the submission in `folder` are as they were written, as far as their form tells."""
    try:
        metrics, submission = (
            json.loads((folder / name).read_text(encoding="utf-8")) for name in (METRICS_FILE, SUBMISSION_FILE)
        )
    except (OSError, ValueError):
        return False
    return (
        isinstance(submission, dict)
        and isinstance(metrics, dict)
        and all(isinstance(metrics.get(name), dict) for name in ("metrics", "tasks"))
    )


def _digests(folder: Path) -> dict[str, str]:
    """sha256 of the files that hold results."""
    return {name: file_sha256(folder / name) for name in (PREDICTIONS_FILE, METRICS_FILE)}


def record_evaluation(run_folder: Path, key: str, checkpoint: str, folder: Path) -> None:
    """Add a finished evaluation to the index of `run_folder`.

    Does nothing if the run can't be written to, or if the folder is not a run but, say, the parent of a copied
    checkpoint.
    """
    if not (run_folder / RUN_FILE).is_file():
        return
    entry = {"key": key, "checkpoint": checkpoint, "folder": str(folder.resolve()), "sha256": _digests(folder)}
    with contextlib.suppress(OSError), (run_folder / INDEX_FILE).open("a", encoding="utf-8") as index:
        index.write(json.dumps(entry) + "\n")


def reuse_evaluation(
    found: Path,
    folder: Path,
    *,
    kind: Kind,
    problems: Sequence[Problem],
    submitted: Sequence[Problem],
    selector: Selector,
) -> Scores:
    """Copy a finished evaluation's files into `folder`, unless they are there; return its scores.

    It answered `problems`, but they may have been chosen from another set: the submission is that of `submitted`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    numbers = [NUMBERS_FILE] if (found / NUMBERS_FILE).is_file() else []
    for name in [*numbers, *FILES]:
        if found.resolve() != folder.resolve():
            shutil.copyfile(found / name, folder / name)
    if list(json.loads((folder / SUBMISSION_FILE).read_text(encoding="utf-8"))) != [
        problem.id for problem in submitted
    ]:
        predictions = read_predictions(folder / PREDICTIONS_FILE, kind)
        write_submission(folder, kind, submitted, selector.attempts(problems, predictions, kind.metrics.attempts))
    stored = json.loads((folder / METRICS_FILE).read_text(encoding="utf-8"))
    return Scores(
        metrics=stored["metrics"],
        problems=stored["tasks"],
        over_tests=stored.get("metrics_over_tests", {}),
        num_tests=stored.get("tests", {}).get("number", 0),
    )


def write_sweep(
    folder: Path, curves: Curves, metrics: Mapping[str, Mapping[str, float]], metric_set: MetricSet, *, by_step: bool
) -> Path | None:
    """Write the table of a checkpoint sweep (sweep.json), and its plot if the checkpoints belong to one run.

    `metrics` are by checkpoint, in order of step. Returns the plot's path.
    """
    write_json(folder / SWEEP_FILE, {name: dict(values) for name, values in metrics.items()})
    if not by_step:
        return None
    steps = {int(name.rpartition("-")[2]): values for name, values in metrics.items()}
    plot = folder / SWEEP_PICTURE
    with extra("the plot of metrics"):
        plot.write_bytes(curves_png(curves.with_metrics(steps, metric_set), metric_set))
        return plot
    return None
