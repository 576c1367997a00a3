"""The results of test-time fine-tuning: a row per task, and scores before and after."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rich.table import Table

from arcft.protocols import MetricSet
from arcft.reporting.words import count, percent, plus_minus, points, spread
from arcft.scoring.metrics import Scores, mean_and_error
from arcft.scoring.predictions import Prediction
from arcft.scoring.voting import vote

MOST_VOTES = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskRow:
    """The result of adapting to one task."""

    task_id: str
    state: Literal["done", "failed", "left out"]
    reason: str = ""
    """Why it failed or was left out; then its predictions before adapting count."""

    solved: bool | None = None
    """Whether every test is solved by one of the attempts; None if an answer is unknown."""

    votes: str = ""
    """How often each answer was predicted, e.g. `5, 2, 1`; see `votes_in_words`."""

    loss_first: float | None = None
    loss_last: float | None = None
    """Mean loss over the last few steps (`loss_first`: the first), in nats per supervised token; None without steps."""

    steps: int = 0
    attempts: int = 0
    """Failed attempts; 0 if the first one succeeded."""

    adapt_seconds: float | None = None
    predict_seconds: float | None = None
    finished_at: float | None = None
    """Seconds of the run, over all its processes, when the task finished or failed for good."""

    notes: tuple[str, ...] = ()
    unit: str = ""
    """Name of the adapter if several tasks share one; losses, steps and seconds are then the adapter's."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adaptation:
    """The results of test-time fine-tuning besides the predictions."""

    rows: Sequence[TaskRow]
    """One row per task."""

    metric_set: MetricSet
    before: Scores | None
    after: Scores | None
    """Scores before adapting (`before`) and of the submitted answers; None if no answer is known, or if nothing was
    predicted before."""

    predictions_before: int
    predictions_after: int
    """The largest number of predictions per test."""

    log: Sequence[str] = ()
    """Remarks on the run as a whole, in order, such as reduced memory settings or the chosen number of slots."""

    @property
    def solved_before(self) -> Mapping[str, bool]:
        """Whether the unadapted model solved a task; for tasks with known answers and predictions before adapting."""
        if self.before is None:
            return {}
        return self.before.solved(self.metric_set)

    @property
    def adapters(self) -> list[TaskRow]:
        """The rows of finished tasks, one per adapter."""
        return list({row.unit or row.task_id: row for row in self.rows if row.state == "done"}.values())

    def not_adapted(self) -> str:
        """For example `2 failed, 1 left out`; empty if all tasks were adapted to."""
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
    """Standard error of the per-task differences; smaller than the two errors suggest, as the tasks are the same."""


def compared(adaptation: Adaptation) -> list[str]:
    """Ids of the tasks that have both scores."""
    before, after = adaptation.before, adaptation.after
    return [task_id for task_id in after.problems if task_id in before.problems] if before and after else []


def difference_spread(change: Change) -> str:
    """The standard error of the difference; empty where it is the same for all tasks."""
    return plus_minus(change.difference_error) if change.difference_error else ""


def changes(adaptation: Adaptation) -> list[Change]:
    """Every metric, over the `compared` tasks; empty if there are none."""
    before, after, common = adaptation.before, adaptation.after, compared(adaptation)
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
    """Points (seconds, tasks solved by the current answers) over time, from 0 seconds; empty if no answer is known.

    Until a task is finished, its predictions before adapting count, if there are any.
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
    """Points (seconds, tasks finished) over time, from 0 seconds; empty if no finishing time is known."""
    finished = _by_time([row for row in adaptation.rows if row.state == "done"])
    return [(0.0, 0), *((seconds, number) for number, (seconds, _) in enumerate(finished, 1))] if finished else []


def gained_and_lost(adaptation: Adaptation) -> tuple[list[str], list[str]]:
    """Ids of the tasks that adapting gained (solved only after), and of those that it lost."""
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

    Raises ValueError if either is unknown.
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
    number = len(compared(adaptation))
    for change in found:
        table.add_row(
            change.metric,
            f"{percent(change.before)} {spread(change.before, change.before_error, number)}".strip(),
            f"{percent(change.after)} {spread(change.after, change.after_error, number)}".strip(),
            f"{points(change.difference)} {difference_spread(change)}".strip(),
            style="bold" if change.metric == adaptation.metric_set.primary else None,
        )
    return table


def number_note(adaptation: Adaptation) -> str:
    """A caveat if the two have different numbers of predictions, else empty."""
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
    """Columns and rows for `Tracker.table`; the cells of a column have one type, or are None."""
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
    """The median of the known values; None if there are none."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _by_time(rows: Sequence[TaskRow]) -> list[tuple[float, TaskRow]]:
    """(finishing time, row) for rows with a known time, in order of time."""
    timed = [(row.finished_at, row) for row in rows if row.finished_at is not None]
    return sorted(timed, key=lambda pair: pair[0])


def _listed(votes: Sequence[int]) -> str:
    words = [str(number) for number in votes[:MOST_VOTES]] + ["…"] * (len(votes) > MOST_VOTES)
    return ", ".join(words) or "0"


def _votes(predictions: Sequence[Prediction]) -> list[int]:
    return [candidate.votes for candidate in vote(predictions)]
