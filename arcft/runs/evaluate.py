"""What one evaluation does: predict, vote, score, and write submission and report, for each thing it was asked for."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from arcft import __version__
from arcft.checkpoints import RUN_FILE, CheckpointError, lock_run, read_run_yaml, write_run_yaml
from arcft.config.run import EvaluateConfig
from arcft.config.schema import to_dict
from arcft.config.ttft import TtftConfig
from arcft.console import note, say, say_path
from arcft.console import show as show_table
from arcft.reporting.charts.curves import read_history
from arcft.reporting.previews import metrics_table
from arcft.reporting.report import SUMMARY_FILE
from arcft.reporting.words import count
from arcft.runs.adaptation.evaluate import Show, adapt_and_score, show_outcome, show_plan
from arcft.runs.adaptation.run_folder import start_evaluation_folder
from arcft.runs.common.paths import evaluation_with_absolute_paths
from arcft.runs.common.tracking import tracked
from arcft.runs.evaluation import results
from arcft.runs.evaluation.messages import show_files, show_metrics, show_reused
from arcft.runs.evaluation.predict import count_prompts, predict_shares
from arcft.runs.evaluation.targets import EvaluationTarget, resolve_targets
from arcft.runs.setup.checkpoint_config import is_pattern
from arcft.runs.setup.ttft_settings import TtftSettings, refuse_without_effect, resolve_ttft
from arcft.scoring.metrics import Scores
from arcft.scoring.selection import make_selector
from arcft.tracking import Tracker


def evaluate(
    config: EvaluateConfig,
    folder: Path,
    *,
    explicit: Sequence[str] = (),
    settings: TtftSettings | None = None,
    show: Show = show_outcome,
) -> None:
    """Evaluate what `config` names and write everything into `folder`; goes on where an earlier call was stopped.

    `explicit` are the keys that the user set by hand: they may not contradict a checkpoint. `settings` is what was
    made of the config with ttft, if that was done already, and `show` tells its outcome. Raises ArcftError before
    anything is written where checkpoints, tasks or predictions are not as they should be.
    """
    config = evaluation_with_absolute_paths(config)
    refuse_without_effect(config, explicit)
    if not isinstance(config.ttft, TtftConfig):
        _evaluate(config, folder, explicit, None, show)
        return
    settings = settings or resolve_ttft(config, explicit)
    for text in settings.notes:
        note(text)
    with contextlib.nullcontext() if config.dry_run else start_evaluation_folder(settings, folder):
        _evaluate(settings.config, folder, explicit, settings, show)


def _evaluate(
    config: EvaluateConfig, folder: Path, explicit: Sequence[str], settings: TtftSettings | None, show: Show
) -> None:
    targets = resolve_targets(config, explicit)
    if config.dry_run:
        if settings is None:
            _show_plan(config, targets)
        else:
            show_plan(settings, targets[0], folder)
        return
    is_sweep = config.adapters is None and config.checkpoint is not None and is_pattern(config.checkpoint)
    if not is_sweep and targets[0].run is not None:
        # On resuming, a run may have a newer checkpoint, and half of the answers would come from another model.
        config = dataclasses.replace(config, checkpoint=str(targets[0].run.checkpoint.path))
    values = to_dict(config)
    with lock_run(folder):
        keys = {target.name: target.key for target in targets}
        _refuse_another(folder, keys, is_sweep)
        write_run_yaml(folder, {"arcft": __version__, "job": "evaluate", "config": values, "keys": keys})
        with tracked(config.tracking, values, folder, job="evaluate") as tracker:
            if is_sweep:
                _sweep(config, targets, folder, tracker)
            elif settings is not None:
                adapt_and_score(settings, targets[0], folder, tracker, show)
            else:
                show_metrics(targets[0], _scores(config, targets[0], folder, folder, tracker))
                show_files(folder)
            if tracker.where:
                say(f"W&B: {tracker.where}")


def _show_plan(config: EvaluateConfig, targets: Sequence[EvaluationTarget]) -> None:
    """Load every model once, so that what does not fit is found, and say how much there is to do."""
    for target in targets:
        for share in target.shares:
            share.model()
        prompts = count_prompts(target.tasks, config.inference) if target.shares else 0
        say(f"{target.name}: {count(len(target.tasks), 'task')}, {count(prompts, 'prompt')}")
    say("dry run: nothing was predicted or written")


def _refuse_another(folder: Path, keys: Mapping[str, str], is_sweep: bool) -> None:
    """Raise CheckpointError where `folder` holds another run, whose answers would be mixed with these."""
    if not (folder / RUN_FILE).is_file():
        return
    stored = read_run_yaml(folder)
    stored_keys = stored.get("keys")
    if not isinstance(stored_keys, dict):
        raise CheckpointError(f"{folder}: holds another run; choose another folder")
    if not stored_keys:
        # It was written before anything was read, and nothing followed.
        return
    # A sweep that goes on may find checkpoints that were saved since.
    changed = [name for name, key in keys.items() if stored_keys.get(name, key if is_sweep else None) != key]
    if changed:
        raise CheckpointError(
            f"{folder}: its evaluation of {changed[0]} was begun with another checkpoint, other tasks or another "
            "inference config, or one of these was changed since; start a new evaluation"
        )


def _scores(config: EvaluateConfig, target: EvaluationTarget, folder: Path, resume: Path, tracker: Tracker) -> Scores:
    """Evaluate one subject into `folder`, or take over what was found in the index of its run."""
    run = target.run
    found = results.find_evaluation(run.folder, target.key) if run else None
    if found:
        show_reused(target, found, folder)
        scores = results.reuse_evaluation(found, folder)
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
            )
        seconds = sum(prediction.seconds or 0.0 for prediction in predictions)
        scores = results.write_results(
            folder,
            title=target.title,
            kind=target.kind,
            problems=target.tasks,
            predictions=predictions,
            selector=make_selector(config.selection, target.kind),
            run={**target.about, "seconds": round(seconds, 1)},
            curves=read_history(run.folder, target.kind.metrics) if run else None,
        )
        if run:
            results.record_evaluation(run.folder, target.key, run.checkpoint.path.name, folder)
    step = run.checkpoint.step if run else 0
    tracker.log({f"eval/{name}": value for name, value in scores.metrics.items()}, step)
    tracker.picture("eval/summary", folder / SUMMARY_FILE)
    return scores


def _sweep(config: EvaluateConfig, targets: Sequence[EvaluationTarget], folder: Path, tracker: Tracker) -> None:
    """Each checkpoint in a sub-folder of its own, and a table and a plot over all of them."""
    scores = {}
    for target in targets:
        scores[target.name] = _scores(config, target, folder / target.name, folder, tracker)
    metrics = {name: score.metrics for name, score in scores.items() if score.metrics}
    if metrics:
        runs = [target.run for target in targets if target.run]
        of_one_run = len({run.folder for run in runs}) == 1
        metric_set = targets[0].kind.metrics
        history = read_history(runs[0].folder, metric_set)
        plot = results.write_sweep(folder, history, metrics, metric_set, by_step=of_one_run)
        errors = {name: score.standard_errors() for name, score in scores.items() if len(score.problems) > 1}
        title = f"{count(len(metrics), 'checkpoint')} on {count(len(targets[0].tasks), 'task')}"
        show_table(metrics_table(metrics, metric_set, errors=errors, title=title))
        tracker.table("checkpoints", ["checkpoint", *metric_set.names], [[k, *v.values()] for k, v in metrics.items()])
        if plot is not None:
            say_path("metrics against training step", plot)
            tracker.picture("sweep", plot)
    else:
        say("no answers are known, so there are no metrics")
    say_path("a folder for each checkpoint", folder)
