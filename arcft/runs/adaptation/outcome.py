"""Read the results from the ledger: predictions, scores before and after, a row per task, and failures."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from arcft.protocols import MetricSet, Problem
from arcft.reporting.adaptation import Adaptation, TaskRow, votes_in_words
from arcft.reporting.words import count
from arcft.scoring.metrics import Scores, score_problems
from arcft.scoring.predictions import Prediction, group_by_test
from arcft.scoring.selection import Selector, attempts_of
from arcft.scoring.voting import Attempts
from arcft.ttft.ledger.ledger import Ledger, Record
from arcft.ttft.units import ADAPT_ROUND, BASELINE_ROUND

NO_TIME = "no time was left; resume with resume= and a larger ttft.budget="
FEW = 5
"""The first and the last loss are means over at most this many steps; they share none."""
SHOWN = 5


@dataclasses.dataclass(frozen=True)
class AdaptationOutcome:
    """The results of an evaluation with test-time fine-tuning."""

    predictions: list[Prediction]
    """The final predictions, in the order of tasks."""

    attempts: Attempts
    adaptation: Adaptation
    adapt_seconds: float
    """Of all adapters together, the time of each worker counted; `predict_seconds` likewise, before adapting too."""

    predict_seconds: float

    @property
    def failed(self) -> dict[str, list[str]]:
        """Ids of the tasks that failed or were left out, by reason, most frequent first."""
        return _grouped((row.reason, row.task_id) for row in self.adaptation.rows if row.state != "done")

    @property
    def notes(self) -> dict[str, list[str]]:
        """Task ids by note: where the run deviated from the request."""
        rows = self.adaptation.rows
        # If several tasks share an adapter, its notes are listed once, under its name.
        return _grouped(dict.fromkeys((note, row.unit or row.task_id) for row in rows for note in row.notes))

    def changes(self, changes: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
        """`changes` of the prompts by task id, and the notes about adapting to the tasks."""
        rows = self.adaptation.rows
        merged = {row.task_id: [*changes.get(row.task_id, ()), *row.notes] for row in rows}
        return {task_id: words for task_id, words in merged.items() if words}


def lines_of(grouped: Mapping[str, Sequence[str]], what: str = "task") -> list[str]:
    """For example `3 tasks (007bbfb7, 00d62c1b, 017c7c7b): out of memory`."""
    return [
        f"{count(len(names), what)} ({', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''}): {words}"
        for words, names in grouped.items()
    ]


def outcome_of(
    tasks: Sequence[Problem], ledger: Ledger, selector: Selector, metric_set: MetricSet
) -> AdaptationOutcome:
    """Collect everything that the report shows."""
    groups, before = group_by_test(tasks, ledger.current_predictions()), ledger.predictions(BASELINE_ROUND)
    predictions = [prediction for group in groups.values() for prediction in group]
    attempts = attempts_of(selector.candidates(tasks, predictions), metric_set.attempts)
    after_scores = _scores(tasks, predictions, attempts, metric_set)
    before_scores = None
    if before:
        attempts_before = attempts_of(selector.candidates(tasks, before), metric_set.attempts)
        before_scores = _scores(tasks, before, attempts_before, metric_set)
    records = {task_id: record for record in ledger.records(ADAPT_ROUND) for task_id in record.task_ids}
    rows = []
    for task in tasks:
        mine = [groups[task.id, index] for index in range(len(task.answers))]
        record = records[task.id]
        finished_at = None if record.finished_at is None else ledger.elapsed_at(record.finished_at)
        rows.append(_row(task, record, mine, after_scores, metric_set, finished_at))
    adaptation = Adaptation(
        rows=rows,
        metric_set=metric_set,
        before=before_scores,
        after=after_scores,
        predictions_before=_most(tasks, before),
        predictions_after=_most(tasks, predictions),
        log=[note.text for note in ledger.notes()],
    )
    everything = ledger.records()
    return AdaptationOutcome(
        predictions,
        attempts,
        adaptation,
        adapt_seconds=sum(record.adapt_seconds for record in everything),
        predict_seconds=sum(record.predict_seconds for record in everything),
    )


def _row(
    task: Problem,
    record: Record,
    groups: Sequence[Sequence[Prediction]],
    scores: Scores | None,
    metric_set: MetricSet,
    finished_at: float | None,
) -> TaskRow:
    few = min(FEW, max(1, len(record.losses) // 2))
    is_known = scores is not None and all(answer is not None for answer in task.answers)
    # Units still queued when the run ends had no time left.
    state: Literal["done", "failed", "left out"] = "left out"
    if record.state == "done" or record.state == "failed":
        state = record.state
    return TaskRow(
        task_id=task.id,
        state=state,
        reason={"done": "", "failed": record.reason or "", "left out": NO_TIME}[state],
        solved=scores.solved(metric_set)[task.id] if scores is not None and is_known else None,
        votes=votes_in_words(groups),
        loss_first=_mean(record.losses[:few]),
        loss_last=_mean(record.losses[-few:]),
        steps=record.steps,
        attempts=record.attempts,
        adapt_seconds=record.adapt_seconds,
        predict_seconds=record.predict_seconds,
        finished_at=finished_at,
        notes=record.notes,
        unit=record.name if record.name != task.id else "",
    )


def _scores(
    tasks: Sequence[Problem], predictions: Sequence[Prediction], attempts: Attempts, metric_set: MetricSet
) -> Scores | None:
    scores = score_problems(tasks, predictions, attempts, metric_set)
    return scores if scores.metrics else None


def _most(tasks: Sequence[Problem], predictions: Sequence[Prediction]) -> int:
    return max(map(len, group_by_test(tasks, predictions).values()), default=0)


def _grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    for words, name in pairs:
        names.setdefault(words, []).append(name)
    return dict(sorted(names.items(), key=lambda entry: -len(entry[1])))


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
