"""What test-time fine-tuning did: a row for each task, and the scores before and after."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rich.table import Table

from arcft.protocols import MetricSet
from arcft.reporting.words import count, percent, plus_minus, points
from arcft.scoring.metrics import Scores, mean_and_error
from arcft.scoring.predictions import Prediction
from arcft.scoring.voting import vote

MOST_VOTES = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskRow:
    """How the adaptation to one task went."""

    task_id: str
    state: Literal["done", "failed", "left out"]
    reason: str = ""
    """Why it failed or was left out; its un-adapted predictions stand then."""

    solved: bool | None = None
    """Every test, by one of the attempts; None where an answer is not known."""

    votes: str = ""
    """How often each answer was predicted, e.g. `5, 2, 1`; see `votes_in_words`."""

    loss_first: float | None = None
    loss_last: float | None = None
    """Mean of the first and of the last few steps, in nats per supervised token; None without any step."""

    steps: int = 0
    attempts: int = 0
    """Tries that failed: 0 where the first one went well."""

    adapt_seconds: float | None = None
    predict_seconds: float | None = None
    finished_at: float | None = None
    """Seconds that the run had worked when the task was done or given up, over all its processes."""

    notes: tuple[str, ...] = ()
    unit: str = ""
    """Name of the adapter where several tasks share one: their losses, steps and seconds are those of the adapter."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adaptation:
    """What an evaluation with test-time fine-tuning knows beyond its predictions."""

    rows: Sequence[TaskRow]
    """One for each task."""

    metric_set: MetricSet
    before: Scores | None
    after: Scores | None
    """Scores before adapting, and of what is submitted; None where no answer is known, or nothing was predicted
    before."""

    predictions_before: int
    predictions_after: int
    """Predictions a test, for those that have most."""

    log: Sequence[str] = ()
    """What the user should know about the run as a whole, in order: a lowered recipe, the slots that were chosen."""

    @property
    def solved_before(self) -> Mapping[str, bool]:
        """Whether the model as it was solved a task, for each whose answers and un-adapted predictions are known."""
        if self.before is None:
            return {}
        return self.before.solved(self.metric_set)

    @property
    def adapters(self) -> list[TaskRow]:
        """The rows of tasks that are done, one for each adapter."""
        return list({row.unit or row.task_id: row for row in self.rows if row.state == "done"}.values())

    def not_adapted(self) -> str:
        """For example `2 failed, 1 left out`; empty where all were adapted to."""
        numbers = [(sum(row.state == state for row in self.rows), state) for state in ("failed", "left out")]
        return ", ".join(f"{number:,} {state}" for number, state in numbers if number)

    @property
    def shares_adapters(self) -> bool:
        return any(row.unit and row.unit != row.task_id for row in self.rows)


@dataclasses.dataclass(frozen=True)
class Change:
    """A metric before and after: fractions, each with its standard error over tasks, which is NaN for one task."""

    metric: str
    before: float
    before_error: float
    after: float
    after_error: float
    difference: float
    difference_error: float
    """Of the differences task by task, which is much smaller than the two errors suggest: both saw the same tasks."""


def changes(adaptation: Adaptation) -> list[Change]:
    """Every metric, over the tasks that have both scores; empty if one of the two is missing."""
    before, after = adaptation.before, adaptation.after
    common = [task_id for task_id in after.problems if task_id in before.problems] if before and after else []
    if before is None or after is None or not common:
        return []
    found = []
    for metric in adaptation.metric_set.names:
        pairs = [(before.problems[task_id][metric], after.problems[task_id][metric]) for task_id in common]
        found.append(
            Change(
                metric,
                *mean_and_error([first for first, _ in pairs]),
                *mean_and_error([second for _, second in pairs]),
                *mean_and_error([second - first for first, second in pairs]),
            )
        )
    return found


def solved_course(adaptation: Adaptation) -> list[tuple[float, int]]:
    """Points (seconds, tasks solved by what counted then), by time, from 0 seconds on; empty if no answer is known.

    Until a task is done, its un-adapted predictions count, where there are any.
    """
    known = [row for row in adaptation.rows if row.solved is not None]
    if not known:
        return []
    before = adaptation.solved_before
    solved = sum(before.get(row.task_id, False) for row in known)
    course = [(0.0, solved)]
    for seconds, row in _by_time(known):
        solved += bool(row.solved) - before.get(row.task_id, False)
        course.append((seconds, solved))
    return course


def done_course(adaptation: Adaptation) -> list[tuple[float, int]]:
    """Points (seconds, tasks done), by time, from 0 seconds on; empty if no task was done at a known time."""
    finished = _by_time([row for row in adaptation.rows if row.state == "done"])
    return [(0.0, 0), *((seconds, number) for number, (seconds, _) in enumerate(finished, 1))] if finished else []


def gained_and_lost(adaptation: Adaptation) -> tuple[list[str], list[str]]:
    """Ids of the tasks that are solved now and were not before, and of those that were and are not."""
    before = adaptation.solved_before
    known = [row for row in adaptation.rows if row.solved is not None and row.task_id in before]
    gained = [row.task_id for row in known if row.solved and not before[row.task_id]]
    return gained, [row.task_id for row in known if before[row.task_id] and not row.solved]


def votes_in_words(groups: Sequence[Sequence[Prediction]]) -> str:
    """How often each answer was predicted, the most frequent first, e.g. `5, 2, 1`; a semicolon stands between tests.

    `groups` are the predictions of each test of a task. A test without any answer is a 0; the rarest of many answers
    are left out.
    """
    return "; ".join(_listed(_votes(group)) for group in groups)


def before_after_table(adaptation: Adaptation, *, title: str | None = None) -> Table:
    """Metrics before and after, side by side in percent with their change, for a rich console of 80 columns.

    Raises ValueError where one of the two is not known.
    """
    found = changes(adaptation)
    if not found:
        raise ValueError("scores before and after are needed for a table of both")
    table = Table(
        title=title, title_justify="left", title_style="bold", caption=number_note(adaptation), caption_justify="left",
        box=None, pad_edge=False, padding=(0, 2, 0, 0),
    )  # fmt: skip
    table.add_column("metric")
    table.add_column(f"before\n{count(adaptation.predictions_before, 'prediction')}", justify="right", no_wrap=True)
    table.add_column(f"after\n{count(adaptation.predictions_after, 'prediction')}", justify="right", no_wrap=True)
    table.add_column("change\nin points", justify="right", no_wrap=True)
    for change in found:
        table.add_row(
            change.metric,
            f"{percent(change.before)} {plus_minus(change.before_error)}".strip(),
            f"{percent(change.after)} {plus_minus(change.after_error)}".strip(),
            f"{points(change.difference)} {plus_minus(change.difference_error)}".strip(),
            style="bold" if change.metric == adaptation.metric_set.primary else None,
        )
    return table


def number_note(adaptation: Adaptation) -> str:
    """What to keep in mind where the two had different numbers of predictions; empty where they had not."""
    before, after = adaptation.predictions_before, adaptation.predictions_after
    if before == after:
        return ""
    grow = adaptation.metric_set.grow
    names = f"{', '.join(grow[:-1])} and {grow[-1]}" if len(grow) > 1 else "".join(grow)
    return (
        f"{count(before, 'prediction')} a test before, {after:,} after: {names} rise with that number alone; "
        "the other metrics are means over predictions and do not."
    )


def rows_table(adaptation: Adaptation) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows for `Tracker.table`; each cell of a column is of one kind, or None."""
    before = adaptation.solved_before
    names = ["task", "state", "solved before", "solved", "votes", "loss first", "loss last", "steps", "failed tries"]
    names += ["adapt seconds", "predict seconds", "finished at seconds", "reason", "notes", "adapter"]
    rows: list[list[Any]] = [
        [
            row.task_id, row.state, before.get(row.task_id), row.solved, row.votes, row.loss_first, row.loss_last,
            row.steps, row.attempts, row.adapt_seconds, row.predict_seconds, row.finished_at, row.reason,
            "; ".join(row.notes), row.unit or row.task_id,
        ]
        for row in adaptation.rows
    ]  # fmt: skip
    return names, rows


def median(values: Sequence[float | None]) -> float | None:
    """The median of the values that are known; None if none is."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _by_time(rows: Sequence[TaskRow]) -> list[tuple[float, TaskRow]]:
    """Rows whose time is known, with it, in order."""
    timed = [(row.finished_at, row) for row in rows if row.finished_at is not None]
    return sorted(timed, key=lambda pair: pair[0])


def _listed(votes: Sequence[int]) -> str:
    words = [str(number) for number in votes[:MOST_VOTES]] + ["…"] * (len(votes) > MOST_VOTES)
    return ", ".join(words) or "0"


def _votes(predictions: Sequence[Prediction]) -> list[int]:
    return [candidate.votes for candidate in vote(predictions)]
