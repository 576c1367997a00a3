"""An evaluation with test-time fine-tuning: from tasks to predictions in a ledger, and to the evaluation's files."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from arcft.config.duration import parse_duration
from arcft.console import note, say
from arcft.console import show as show_table
from arcft.errors import ArcftError
from arcft.names import file_name
from arcft.reporting.adaptation import before_after_table, rows_table
from arcft.reporting.charts.adaptation_charts import adaptation_png
from arcft.reporting.charts.curves import read_history
from arcft.reporting.pictures.problems import problem_picture
from arcft.reporting.report import SUMMARY_FILE
from arcft.reporting.words import count
from arcft.runs.adaptation.adapters import ADAPTERS_FOLDER
from arcft.runs.adaptation.engine import engine_factory, make_units, slots_here
from arcft.runs.adaptation.outcome import NO_TIME, AdaptationOutcome, lines_of, outcome_of
from arcft.runs.adaptation.progress import LiveProgress
from arcft.runs.adaptation.run_folder import LEDGER_FILE, open_ledger
from arcft.runs.common.command import stopped
from arcft.runs.common.extras import extra
from arcft.runs.common.progress import progress_bar
from arcft.runs.common.signals import Stopped, stop_on_signals
from arcft.runs.evaluation import results
from arcft.runs.evaluation.changes import Changes
from arcft.runs.evaluation.live_submission import LiveSubmission
from arcft.runs.evaluation.messages import show_files, show_metrics, show_over_tests, show_reused
from arcft.runs.evaluation.predict import count_prompts
from arcft.runs.evaluation.targets import EvaluationTarget
from arcft.runs.setup.ttft_settings import TtftSettings
from arcft.scoring.metrics import Scores
from arcft.scoring.selection import make_selector
from arcft.tracking import NoTracker, Tracker
from arcft.ttft.engine.engine import Engine
from arcft.ttft.engine.memory_ladder import MemorySettings
from arcft.ttft.engine.slot_autotune import MOST
from arcft.ttft.ledger.ledger import Ledger, LedgerError
from arcft.ttft.scheduling.budget import Budget
from arcft.ttft.scheduling.queue import Queue
from arcft.ttft.units import Unit
from arcft.ttft.workers.run import default_count, drain, drain_in_processes, drain_on_ray

Show = Callable[[EvaluationTarget, Scores, AdaptationOutcome, Path], None]
"""Prints the results on the console; the path is the evaluation's folder."""


class AdaptError(ArcftError):
    """No task could be adapted to."""


def show_plan(settings: TtftSettings, target: EvaluationTarget, folder: Path) -> None:
    """A dry run: load everything once to find what does not fit, and print the amount of work."""
    config = settings.config
    units = _units(settings, target)
    engine_factory(settings, folder)()
    prompts = count_prompts(target.tasks, config.inference)
    before = sum(len(task.answers) for task in target.tasks) * settings.ttft.predict_before
    say(
        f"{target.name}: {count(len(target.tasks), 'task')}, {count(len(units), 'adapter')} of up to "
        f"{count(settings.max_steps, 'step')}, {count(prompts, 'prompt')} and {before:,} before adapting"
    )
    say("dry run: nothing was adapted, predicted or written")


def adapt_and_score(
    settings: TtftSettings, target: EvaluationTarget, changes: Changes, folder: Path, tracker: Tracker, show: Show
) -> Scores:
    """Adapt to and predict the tasks that the ledger in `folder` lacks; write, `show` and return the results.

    `changes` are those of the prompts; what adapting changed is added to them.

    Raises Stopped after SIGTERM or SIGINT, and AdaptError if every task failed.
    """
    run, step = target.run, target.run.checkpoint.step if target.run else 0
    found = _found(settings, target)
    if found is not None:
        earlier, outcome = found
        show_reused(target, earlier, folder)
        if settings.ttft.keep_adapters and earlier.resolve() != folder.resolve():
            say(f"its adapters stay in {earlier / ADAPTERS_FOLDER}")
        scores = results.reuse_evaluation(
            earlier,
            folder,
            kind=target.kind,
            problems=target.tasks,
            submitted=target.submitted,
            selector=make_selector(settings.config.selection, target.kind),
        )
        show(target, scores, outcome, folder)
        _track(target, scores, outcome, folder, tracker, step)
        return scores
    outcome = _adapt(settings, target, folder, tracker)
    seconds = {"adapt_seconds": outcome.adapt_seconds, "predict_seconds": outcome.predict_seconds}
    seconds["seconds"] = sum(seconds.values())
    scores = results.write_results(
        folder,
        title=f"{target.title}, adapted",
        kind=target.kind,
        problems=target.tasks,
        submitted=target.submitted,
        predictions=outcome.predictions,
        selector=make_selector(settings.config.selection, target.kind),
        run={**target.about, **{name: round(value, 1) for name, value in seconds.items()}},
        trained=run.config if run else None,
        curves=read_history(run.folder, target.kind.metrics) if run else None,
        adaptation=outcome.adaptation,
        changes=outcome.changes(changes),
    )
    if run and settings.ttft.budget is None and not outcome.failed:
        results.record_evaluation(run.folder, target.key, run.checkpoint.path.name, folder)
    show(target, scores, outcome, folder)
    _track(target, scores, outcome, folder, tracker, step)
    if all(row.state != "done" for row in outcome.adaptation.rows):
        raise AdaptError(
            f"not one of {count(len(target.tasks), 'task')} could be adapted to: {next(iter(outcome.failed))}"
        )
    return scores


def _found(settings: TtftSettings, target: EvaluationTarget) -> tuple[Path, AdaptationOutcome] | None:
    """The folder and the outcome of an earlier evaluation with the same models, tasks and settings."""
    # What was done under a budget depends on how fast the machine was.
    if target.run is None or settings.ttft.budget is not None:
        return None
    folder = results.find_evaluation(target.run.folder, target.key)
    if folder is None or (settings.ttft.keep_adapters and not (folder / ADAPTERS_FOLDER).is_dir()):
        return None
    try:
        with Ledger.open(folder / LEDGER_FILE, target.kind) as ledger:
            selector = make_selector(settings.config.selection, target.kind)
            return folder, outcome_of(target.tasks, ledger, selector, target.kind.metrics)
    except LedgerError:
        return None  # deleted since, or in a folder that can't be written to


def _units(settings: TtftSettings, target: EvaluationTarget) -> list[Unit]:
    return make_units(settings.ttft, target.tasks, target.shares[0].builder.num_tokens)


def _adapt(settings: TtftSettings, target: EvaluationTarget, folder: Path, tracker: Tracker) -> AdaptationOutcome:
    config = settings.config
    units = _units(settings, target)
    selector = make_selector(config.selection, target.kind)
    with open_ledger(settings, folder) as ledger:
        ledger.recover()
        engine = None
        if settings.ttft.workers == "local" and not ledger.records():
            # Before there is anything in the ledger: what is refused here leaves nothing behind.
            engine = engine_factory(settings, folder, _memory_settings(ledger))()
        queue = Queue(
            ledger,
            units,
            steps=settings.max_steps,
            predictions=config.inference.predictions_per_test,
            predict_before=settings.ttft.predict_before,
            seed=settings.ttft.seed,
            attempts=target.kind.metrics.attempts,
            budget=_budget(settings, ledger),
        )
        progress = queue.progress()
        with progress_bar(target.name, len(units), progress.done + progress.failed, beats=True) as advance:
            progress_line = LiveProgress(
                target.kind,
                target.tasks,
                queue,
                LiveSubmission(folder, target.kind, target.tasks, target.submitted, selector),
                tracker=tracker,
                advance=advance,
                ledger=ledger,
                say=say,
            )
            received: list[int] = []
            if not queue.done:
                # Not while a model is loaded here: that has nothing to save, and ends at the first signal.
                drainer = _drainer(settings, folder, ledger, engine)
                with stop_on_signals(lambda reason: None) as received:
                    drainer(queue, stopped=lambda: bool(received), on_event=progress_line)
            progress_line.look()
        if received and not queue.done:
            queue.stop()
            queue.requeue("local")
            raise Stopped(received[0], stopped("evaluate", folder))
        return outcome_of(target.tasks, ledger, selector, target.kind.metrics)


def _drainer(settings: TtftSettings, folder: Path, ledger: Ledger, engine: Engine | None) -> Callable[..., None]:
    """What empties a queue as ttft.workers says; `engine` is one for this process, if it was built already."""
    factory = engine_factory(settings, folder, _memory_settings(ledger))
    ttft = settings.ttft
    if ttft.workers == "local":
        return partial(drain, engine or factory())
    return partial(drain_in_processes if ttft.workers == "processes" else drain_on_ray, factory, ttft.num_workers)


def _budget(settings: TtftSettings, ledger: Ledger) -> Budget | None:
    ttft = settings.ttft
    if ttft.budget is None:
        return None
    slots = slots_here(ttft)
    return Budget(
        parse_duration(ttft.budget),
        ledger.elapsed(),
        workers=default_count(ttft) or 1,
        slots=slots if isinstance(slots, int) else MOST,
    )


def _memory_settings(ledger: Ledger) -> MemorySettings | None:
    """The memory settings that an earlier process of this evaluation ended with; None if it changed none."""
    changes = [note.data["recipe"] for note in ledger.notes() if "recipe" in note.data]
    return MemorySettings(**changes[-1]) if changes else None


def show_outcome(target: EvaluationTarget, scores: Scores, outcome: AdaptationOutcome, folder: Path) -> None:
    """Print scores before and after, notes, failures, and the paths of the results."""
    title = count(len(target.tasks), "task")
    adaptation = outcome.adaptation
    if scores.metrics and adaptation.before is not None:
        show_table(before_after_table(adaptation, title=f"{target.name}, {title}: means over tasks"))
        show_over_tests(scores, target.kind.metrics)
    else:
        show_metrics(target, scores)
    for line in lines_of(outcome.notes, "adapter" if adaptation.shares_adapters else "task"):
        note(line)
    if outcome.failed:
        number = sum(map(len, outcome.failed.values()))
        has_fallback = adaptation.predictions_before > 0
        stands = "their predictions before adapting stand" if has_fallback else "there are no predictions for them"
        what = "left out" if set(outcome.failed) == {NO_TIME} else "failed"
        say(f"{number} of {title} {what}; {stands}:", "yellow")
        for line in lines_of(outcome.failed):
            say(f"  {line}")
    show_files(target, folder)


def _track(
    target: EvaluationTarget, scores: Scores, outcome: AdaptationOutcome, folder: Path, tracker: Tracker, step: int
) -> None:
    """Log the whole evaluation as one W&B run."""
    if isinstance(tracker, NoTracker):
        return
    tracker.log(scores.tracked(target.kind.metrics), step)
    tracker.picture("eval/summary", folder / SUMMARY_FILE)
    if outcome.adaptation.before is not None:
        before = {f"before/{name}": value for name, value in outcome.adaptation.before.metrics.items()}
        tracker.log(before, step)
        tracker.summary(before)
    columns, rows = rows_table(outcome.adaptation)
    tracker.table("ttft/tasks", columns, rows)
    with extra("pictures for W&B"), tempfile.TemporaryDirectory() as place:
        picture = Path(place) / "picture.png"
        if outcome.adaptation.adapters:
            adaptation_png(picture, outcome.adaptation)
            tracker.picture("ttft/course", picture)
        for task in target.tasks:
            problem_picture(picture, task, outcome.attempts, target.kind.card, shown=target.kind.metrics.attempts)
            tracker.picture(f"ttft/task/{file_name(task.id)}", picture)
