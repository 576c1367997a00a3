"""The showcase at the end of training: adapt the model to a few new tasks and show which it solves."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from arcft.config.data import DataConfig
from arcft.config.run import TrainConfig, showcase_evaluation
from arcft.config.showcase import ShowcaseConfig
from arcft.console import say
from arcft.console import show as show_drawing
from arcft.errors import ArcftError
from arcft.protocols import Problem, ProblemError
from arcft.reporting.outcomes import right_attempt
from arcft.reporting.pictures.problems import showcase_picture
from arcft.reporting.report import REPORT_FILE
from arcft.reporting.showcase import showcase_table
from arcft.reporting.words import count, spelled
from arcft.runs.adaptation.evaluate import Show
from arcft.runs.adaptation.outcome import AdaptationOutcome, lines_of
from arcft.runs.common.command import command
from arcft.runs.common.extras import extra
from arcft.runs.common.paths import override
from arcft.runs.common.signals import Stopped
from arcft.runs.evaluate import evaluate
from arcft.runs.evaluation.targets import EvaluationTarget
from arcft.runs.setup.checkpoint_config import TrainedRun, open_checkpoint
from arcft.runs.setup.kinds import kind_of
from arcft.runs.setup.leaks import trained_on
from arcft.runs.setup.tasks import CountTokens, chosen_tasks
from arcft.scoring.metrics import Scores
from arcft.tracking import Tracker

FOLDER = "showcase"
"""The folder of the evaluation inside that of the run."""

PICTURE = "showcase.png"
SHOWN = 3
"""Solved tasks drawn in the terminal; the picture shows all of them."""


class ShowcaseError(ArcftError):
    """The showcase failed; the training itself is finished."""


def show_showcase(config: TrainConfig, folder: Path, num_tokens: CountTokens, tracker: Tracker) -> None:
    """Adapt the last checkpoint of the finished run in `folder` to new tasks, and show which ones it solves.

    This is an evaluation in a sub-folder, which can be resumed. Does nothing if there are no tasks to show, or if the
    run was itself adapted to tasks. Raises Stopped after a signal, and ShowcaseError; both say that the training is
    finished.
    """
    showcase = config.showcase
    if showcase is None or showcase.tasks == 0 or config.data.view == "leave_one_out":
        return
    try:
        run = open_checkpoint(folder)
        tasks = shortest_new_tasks(showcase, run, num_tokens)
        chosen = dataclasses.replace(showcase, data=_only(showcase.data, tasks))
        say(
            f"\nShowcase: adapting the model to the {_which(showcase, tasks)}, each by its own demonstrations. They "
            "are chosen for length alone, and short tasks are easier than most: this is not a score on the set."
        )
        evaluation = showcase_evaluation(config, chosen, str(run.checkpoint.path))
        evaluate(evaluation, folder / FOLDER, show=_printer(tracker))
    except Stopped as stopped:
        way = f"{command('train')} {override('resume', folder)}"
        message = f"the training is finished and saved; the showcase was stopped, resume with: {way}"
        raise Stopped(stopped.number, message) from stopped
    except ArcftError as error:
        raise ShowcaseError(
            f"the training is finished and saved in {folder}; its showcase failed: {error}. To skip it: showcase=none"
        ) from error


def shortest_new_tasks(showcase: ShowcaseConfig, run: TrainedRun, num_tokens: CountTokens) -> list[Problem]:
    """The shortest tasks, in tokens and then by id, that `run` was not trained on under any name.

    Raise ProblemError if there is none.
    """
    tasks = chosen_tasks(showcase.data, num_tokens)
    seen = set(trained_on(kind_of(showcase.data), run, tasks))
    new = [task for task in tasks if task.id not in seen]
    if not new:
        raise ProblemError(f"showcase.data: all of its {count(len(tasks), 'task')} were trained on; choose another set")
    return sorted(new, key=lambda task: (num_tokens(task), task.id))[: showcase.tasks]


def _only(data: DataConfig, tasks: Sequence[Problem]) -> DataConfig:
    return dataclasses.replace(data, task_ids=[task.id for task in tasks], exclude=[])


def _which(showcase: ShowcaseConfig, tasks: Sequence[Problem]) -> str:
    place = kind_of(showcase.data).title(showcase.data)
    number = f"{len(tasks)} shortest tasks" if len(tasks) > 1 else "shortest task"
    return f"{number} of {place} that it was not trained on"


def _printer(tracker: Tracker) -> Show:
    """A function that prints the outcome of the evaluation and logs it to the tracker of the training run."""

    def show(target: EvaluationTarget, scores: Scores, outcome: AdaptationOutcome, folder: Path) -> None:
        rows = outcome.adaptation.rows
        show_drawing(showcase_table(rows))
        for line in lines_of(outcome.failed):
            say(f"  {line}")
        solved = [task for task, row in zip(target.tasks, rows, strict=True) if row.solved]
        for task in solved[:SHOWN]:
            card, truth = target.kind.card, task.answers[0]
            shown = [
                part
                for given, output in card.demonstrations(task)[:1]
                for part in (("demonstration", given), ("", output))
            ]
            shown.append(("input", card.question(task, 0)))
            shown += [("predicted", right_attempt(truth, outcome.attempts[task.id, 0])), ("true", truth)]
            say(f"\n{task.id}")
            show_drawing(card.terminal(shown))
        known = sum(row.solved is not None for row in rows)
        if known:
            number = target.kind.metrics.attempts
            attempts = f"{spelled(number)} attempt" + "s" * (number != 1)
            say(f"solved in {attempts}: {len(solved)} of {count(known, 'task')}", style="bold")
            tracker.summary({"showcase/solved": len(solved), "showcase/tasks": known})
        if solved:
            with extra("the picture of solved tasks"):
                showcase_picture(folder / PICTURE, solved, outcome.attempts, target.kind.card)
                say(f"solved tasks: {folder / PICTURE}")
                tracker.picture("showcase", folder / PICTURE)
        say(f"report: {folder / REPORT_FILE}")

    return show
