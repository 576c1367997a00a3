"""One evaluation, from its config to its files: find what is evaluated, predict, select, score, report.

A checkpoint, a base model or files of predictions are one target; a pattern of checkpoints is one for each.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from arcft import __version__
from arcft.checkpoints import RUN_FILE, CheckpointError, lock_run, read_run_yaml, write_run_yaml
from arcft.config.run import EvaluateConfig
from arcft.config.schema import ConfigError, to_dict
from arcft.console import note, say, say_path
from arcft.console import show as show_table
from arcft.reporting.charts.curves import read_history
from arcft.reporting.previews import metrics_table
from arcft.reporting.report import SUMMARY_FILE
from arcft.reporting.words import SPREAD, count
from arcft.runs.adaptation.evaluate import Show, adapt_and_score, show_outcome, show_plan
from arcft.runs.common.optimized_metric import check_name
from arcft.runs.common.tracking import tracked
from arcft.runs.evaluation import results
from arcft.runs.evaluation.changes import Changes, changed_prompts
from arcft.runs.evaluation.live_submission import LiveSubmission
from arcft.runs.evaluation.messages import not_predicted, show_files, show_metrics, show_reused
from arcft.runs.evaluation.predict import count_prompts, predict_shares
from arcft.runs.evaluation.targets import EvaluationTarget, resolve_targets
from arcft.runs.setup.arithmetic import Arithmetics
from arcft.runs.setup.checkpoint_config import is_pattern
from arcft.runs.setup.ttft_settings import TtftSettings
from arcft.scoring.metrics import Scores
from arcft.scoring.selection import make_selector
from arcft.tracking import Tracker


def run_evaluation(
    config: EvaluateConfig, settings: TtftSettings | None, folder: Path, explicit: Sequence[str], show: Show | None
) -> Mapping[str, float]:
    """Carry out what arcft.runs.evaluate has settled: `config` with absolute paths and, with ttft, its `settings`.

    With ttft, `folder` is started and locked by the caller. Returns metrics by the names that trackers give them.
    """
    delegates = settings is not None and settings.ttft.workers != "local"
    targets = resolve_targets(config, explicit, Arithmetics(config.inference, folder, delegates=delegates))
    is_sweep = config.adapters is None and config.checkpoint is not None and is_pattern(config.checkpoint)
    _check_optimized_metric(config, targets, is_sweep)
    if settings is not None:
        settings = dataclasses.replace(settings, arithmetic=targets[0].arithmetic)
    changes = changed_prompts(targets, config.inference)
    if config.dry_run:
        if settings is None:
            _show_plan(config, targets)
        else:
            show_plan(settings, targets[0], folder)
        return {}
    if not is_sweep and targets[0].run is not None:
        # A resumed run may have a newer checkpoint; the whole evaluation stays with this one.
        config = dataclasses.replace(config, checkpoint=str(targets[0].run.checkpoint.path))
    values = to_dict(config)
    with lock_run(folder) if settings is None else contextlib.nullcontext():
        keys = {target.name: target.key for target in targets}
        _refuse_another(folder, keys, is_sweep)
        chosen = {one.name: dataclasses.asdict(one.arithmetic) for one in targets if one.arithmetic is not None}
        write_run_yaml(
            folder, {"arcft": __version__, "job": "evaluate", "config": values, "keys": keys, "arithmetic": chosen}
        )
        with tracked(config.tracking, values, folder, job="evaluate") as tracker:
            metrics: Mapping[str, float] = {}
            if is_sweep:
                _sweep(config, targets, changes, folder, tracker)
            elif settings is not None:
                metrics = adapt_and_score(
                    settings, targets[0], changes[0], folder, tracker, show or show_outcome
                ).metrics
            else:
                scores = _scores(config, targets[0], changes[0], folder, folder, tracker)
                show_metrics(targets[0], scores)
                show_files(targets[0], folder)
                metrics = scores.metrics
            if tracker.where:
                say(f"W&B: {tracker.where}")
    return {f"eval/{name}": value for name, value in metrics.items()}


def _check_optimized_metric(config: EvaluateConfig, targets: Sequence[EvaluationTarget], is_sweep: bool) -> None:
    """Raise ConfigError where `optimized_metric` names nothing that this evaluation has one value of."""
    name = config.optimized_metric
    check_name(name, [f"eval/{metric}" for metric in targets[0].kind.metrics.names])
    if name is not None and is_sweep:
        raise ConfigError(
            [f"optimized_metric={name}: checkpoint={config.checkpoint} has a value for each checkpoint; name one"]
        )
    answers = [answer for target in targets for task in target.tasks for answer in task.answers]
    if name is not None and all(answer is None for answer in answers):
        raise ConfigError(
            [f"optimized_metric={name}: no answer to these tasks is known; choose data whose answers are, or drop it"]
        )


def _show_plan(config: EvaluateConfig, targets: Sequence[EvaluationTarget]) -> None:
    """Load every model once, which finds out whether it fits, and print the amount of work."""
    for target in targets:
        for share in target.shares:
            share.model()
        prompts = count_prompts(target.tasks, config.inference) if target.shares else 0
        say(f"{target.name}: {count(len(target.tasks), 'task')}, {count(prompts, 'prompt')}")
    say("dry run: nothing was predicted or written")


def _refuse_another(folder: Path, keys: Mapping[str, str], is_sweep: bool) -> None:
    """Raise CheckpointError where `folder` holds another run: its answers would be mixed with these."""
    if not (folder / RUN_FILE).is_file():
        return
    stored = read_run_yaml(folder)
    stored_keys = stored.get("keys")
    if not isinstance(stored_keys, dict):
        raise CheckpointError(f"{folder}: holds another run; choose another folder")
    if not stored_keys:
        # With ttft, run.yaml is written before the targets are known; that run was killed before they were.
        return
    # A resumed sweep may find checkpoints that were saved since.
    changed = [name for name, key in keys.items() if stored_keys.get(name, key if is_sweep else None) != key]
    if changed:
        raise CheckpointError(
            f"{folder}: its evaluation of {changed[0]} was started with another checkpoint, other tasks or another "
            "inference config, or one of these was changed since; start a new evaluation"
        )


def _scores(
    config: EvaluateConfig, target: EvaluationTarget, changes: Changes, folder: Path, resume: Path, tracker: Tracker
) -> Scores:
    """Evaluate one target into `folder`, or copy the finished evaluation that the index of its run lists."""
    run = target.run
    found = results.find_evaluation(run.folder, target.key) if run else None
    selector = make_selector(config.selection, target.kind)
    if found:
        show_reused(target, found, folder)
        scores = results.reuse_evaluation(
            found, folder, kind=target.kind, problems=target.tasks, submitted=target.submitted, selector=selector
        )
    else:
        folder.mkdir(parents=True, exist_ok=True)
        predictions = target.predictions
        if predictions is None:
            path = folder / results.PREDICTIONS_FILE
            predictions = predict_shares(
                target.shares,
                config.inference,
                config.selection,
                path,
                kind=target.kind,
                title=target.name,
                resume=resume,
                submission=LiveSubmission(folder, target.kind, target.tasks, target.submitted, selector),
            )
        seconds = sum(prediction.seconds or 0.0 for prediction in predictions)
        scores = results.write_results(
            folder,
            title=target.title,
            kind=target.kind,
            problems=target.tasks,
            submitted=target.submitted,
            predictions=predictions,
            selector=selector,
            run={**target.about, "seconds": round(seconds, 1)},
            trained=run.config if run else None,
            curves=read_history(run.folder, target.kind.metrics) if run else None,
            changes=changes,
        )
        if run:
            results.record_evaluation(run.folder, target.key, run.checkpoint.path.name, folder)
    step = run.checkpoint.step if run else 0
    tracker.log(scores.tracked(target.kind.metrics), step)
    tracker.picture("eval/summary", folder / SUMMARY_FILE)
    return scores


def _sweep(
    config: EvaluateConfig,
    targets: Sequence[EvaluationTarget],
    changes: Sequence[Changes],
    folder: Path,
    tracker: Tracker,
) -> None:
    """Evaluate each checkpoint in a sub-folder, then write and show a table and a plot over all of them."""
    scores = {}
    for target, changed in zip(targets, changes, strict=True):
        scores[target.name] = _scores(config, target, changed, folder / target.name, folder, tracker)
    metrics = {name: score.metrics for name, score in scores.items() if score.metrics}
    if metrics:
        runs = [target.run for target in targets if target.run]
        of_one_run = len({run.folder for run in runs}) == 1
        metric_set = targets[0].kind.metrics
        history = read_history(runs[0].folder, metric_set)
        plot = results.write_sweep(folder, history, metrics, metric_set, by_step=of_one_run)
        errors = {name: score.standard_errors() for name, score in scores.items() if len(score.problems) > 1}
        title = f"{count(len(metrics), 'checkpoint')} on {count(len(targets[0].tasks), 'task')}"
        number = max(len(score.problems) for score in scores.values())
        show_table(metrics_table(metrics, metric_set, errors=errors, number=number, title=title))
        say(f"each is the mean over tasks; {SPREAD}" if errors else "each is the mean over tasks")
        tracker.table("checkpoints", ["checkpoint", *metric_set.names], [[k, *v.values()] for k, v in metrics.items()])
        if plot is not None:
            say_path("metrics against training step", plot)
            tracker.picture("sweep", plot)
    else:
        say("no answers are known, so there are no metrics")
    say_path("a folder for each checkpoint", folder)
    for line in dict.fromkeys(not_predicted(target, folder / target.name) for target in targets):
        if line:
            note(line)
