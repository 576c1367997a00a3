"""Which of a test's candidates are handed in: the one door to every rule. Options: conf/selection/*.yaml."""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from arcft.config.selection import ScoreConfig, SelectionConfig, VerifyConfig
from arcft.problems.arc.scoring.verifier import Consistency, Verifier
from arcft.problems.arc.task import Grid, Task
from arcft.scoring.predictions import Prediction, TestKey, group_by_test
from arcft.scoring.voting import Candidate, GridKey, grid_key, in_order, vote

ATTEMPTS = 2
"""Grids that are handed in for a test."""

Candidates = Mapping[TestKey, Sequence[Candidate]]
"""For each test all its candidates, the best first."""


class Selector(abc.ABC):
    """Orders the candidates of a test. A function of task and predictions alone; ties go by the votes."""

    name: str

    @abc.abstractmethod
    def order(self, task: Task, test_index: int, predictions: Sequence[Prediction]) -> list[Candidate]:
        """The different grids among `predictions`, those of test `test_index` of `task`; the best first."""

    def candidates(self, tasks: Sequence[Task], predictions: Sequence[Prediction]) -> dict[TestKey, list[Candidate]]:
        """`order` for every test of `tasks`; PredictionError where `predictions` don't belong to them."""
        groups = group_by_test(tasks, predictions)
        return {
            (task.id, index): self.order(task, index, groups[task.id, index])
            for task in tasks
            for index in range(len(task.test))
        }

    def attempts(self, tasks: Sequence[Task], predictions: Sequence[Prediction]) -> dict[TestKey, list[Grid]]:
        """What is handed in for every test of `tasks`; PredictionError as `candidates` raises it."""
        return attempts_of(self.candidates(tasks, predictions))


class Vote(Selector):
    """The most frequent grid first; ties by mean log-probability a token, then by first appearance."""

    name = "vote"

    def order(self, task: Task, test_index: int, predictions: Sequence[Prediction]) -> list[Candidate]:
        return vote(predictions)


class Score(Selector):
    """A product of experts: the grid first that is the most probable under several augmentations of its test.

    The rule is the one of the ARChitects. Goes by the log-probabilities that are kept in `Prediction.scores`; a grid
    without any comes after all that have some.
    """

    name = "score"

    def __init__(self, views: int) -> None:
        """`views`: the first so many augmentations count."""
        self.views = views

    def order(self, task: Task, test_index: int, predictions: Sequence[Prediction]) -> list[Candidate]:
        scores: dict[GridKey, list[float]] = {}
        for prediction in predictions:
            if prediction.grid is not None and prediction.scores is not None:
                scores.setdefault(grid_key(prediction.grid), []).extend(prediction.scores[: self.views])
        return in_order([self._scored(one, scores.get(grid_key(one.grid), ())) for one in vote(predictions)])

    def _scored(self, candidate: Candidate, scores: Sequence[float]) -> Candidate:
        # The mean, for a grid may be scored more than once: under several adapters, or in several files.
        score = math.fsum(scores) / len(scores) if scores else None
        return dataclasses.replace(candidate, score=score, reasons={"views": len(scores)})


class Verify(Selector):
    """The grid first that a verifier judges best."""

    name = "verify"

    def __init__(self, verifier: Verifier) -> None:
        self.verifier = verifier

    def order(self, task: Task, test_index: int, predictions: Sequence[Prediction]) -> list[Candidate]:
        return in_order([self._judged(task, test_index, candidate) for candidate in vote(predictions)])

    def _judged(self, task: Task, test_index: int, candidate: Candidate) -> Candidate:
        verdict = self.verifier(task, test_index, candidate.grid)
        return dataclasses.replace(candidate, score=verdict.score, reasons=verdict.reasons)


def make_selector(config: SelectionConfig) -> Selector:
    """The rule that a config names."""
    match config:
        case ScoreConfig():
            return Score(config.num_augmentations)
        case VerifyConfig():
            return Verify(Consistency())
    return Vote()


def attempts_of(candidates: Candidates) -> dict[TestKey, list[Grid]]:
    """The grids that are handed in."""
    return {key: [candidate.grid for candidate in ordered[:ATTEMPTS]] for key, ordered in candidates.items()}


def with_reasons(predictions: Sequence[Prediction], candidates: Candidates, name: str) -> list[Prediction]:
    """`predictions` with, on the first one of each candidate, why the selection `name` has put it where it is.

    Reasons of an earlier selection are taken off.
    """
    records = {
        (*key, grid_key(candidate.grid)): _record(name, rank, candidate)
        for key, ordered in candidates.items()
        for rank, candidate in enumerate(ordered, 1)
    }
    explained = []
    for prediction in predictions:
        record = None
        if prediction.grid is not None:
            record = records.pop((prediction.task_id, prediction.test_index, grid_key(prediction.grid)), None)
        if record is not None or prediction.selection is not None:
            prediction = dataclasses.replace(prediction, selection=record)
        explained.append(prediction)
    return explained


def _record(name: str, rank: int, candidate: Candidate) -> dict[str, Any]:
    record: dict[str, Any] = {"by": name, "rank": rank}
    if name != Vote.name:
        record["score"] = candidate.score
    return {**record, **candidate.reasons, "votes": candidate.votes, "logprob_per_token": candidate.logprob}
