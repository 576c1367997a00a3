"""Which of a test's candidates are submitted. Options: conf/selection/*.yaml."""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from arcft.config.selection import ScoreConfig, SelectionConfig, VerifyConfig
from arcft.protocols import Kind, Problem, TestKey, Verifier
from arcft.scoring.predictions import Prediction, group_by_test
from arcft.scoring.voting import Attempts, Candidate, in_order, vote

Candidates = Mapping[TestKey, Sequence[Candidate]]
"""For each test all its candidates, the best first."""


class Selector(abc.ABC):
    """Orders the candidates of a test, by problem and predictions alone; ties are broken by the votes."""

    name: str

    @abc.abstractmethod
    def order(self, problem: Problem, test_index: int, predictions: Sequence[Prediction]) -> list[Candidate]:
        """The distinct answers among `predictions`, those of test `test_index` of `problem`; the best first."""

    def candidates(
        self, problems: Sequence[Problem], predictions: Sequence[Prediction]
    ) -> dict[TestKey, list[Candidate]]:
        """`order` for every test of `problems`; raises PredictionError where `predictions` don't belong to them."""
        groups = group_by_test(problems, predictions)
        return {
            (problem.id, index): self.order(problem, index, groups[problem.id, index])
            for problem in problems
            for index in range(len(problem.answers))
        }

    def attempts(self, problems: Sequence[Problem], predictions: Sequence[Prediction], number: int) -> Attempts:
        """The best `number` answers to every test of `problems`; raises PredictionError as `candidates` does."""
        return attempts_of(self.candidates(problems, predictions), number)


class Vote(Selector):
    """The most frequent answer first; ties by mean log-probability per token, then by first appearance."""

    name = "vote"

    def order(self, problem: Problem, test_index: int, predictions: Sequence[Prediction]) -> list[Candidate]:
        return vote(predictions)


class Score(Selector):
    """A product of experts: the answer first that is the most probable under several augmentations of its test.

    The rule is that of the ARChitects, on the log-probabilities kept in `Prediction.scores`; an answer without any
    comes after all that have some.
    """

    name = "score"

    def __init__(self, views: int) -> None:
        """`views`: how many augmentations count, the first of those that were scored."""
        self.views = views

    def order(self, problem: Problem, test_index: int, predictions: Sequence[Prediction]) -> list[Candidate]:
        scores: dict[Hashable, list[float]] = {}
        for prediction in predictions:
            if prediction.answer is not None and prediction.scores is not None:
                scores.setdefault(prediction.answer.key, []).extend(prediction.scores[: self.views])
        return in_order([self._scored(one, scores.get(one.answer.key, ())) for one in vote(predictions)])

    def _scored(self, candidate: Candidate, scores: Sequence[float]) -> Candidate:
        # The mean, for an answer may be scored more than once: under several adapters, or in several files.
        score = math.fsum(scores) / len(scores) if scores else None
        return dataclasses.replace(candidate, score=score, reasons={"views": len(scores)})


class Verify(Selector):
    """The answer first that a verifier judges best."""

    name = "verify"

    def __init__(self, verifier: Verifier) -> None:
        self.verifier = verifier

    def order(self, problem: Problem, test_index: int, predictions: Sequence[Prediction]) -> list[Candidate]:
        return in_order([self._judged(problem, test_index, candidate) for candidate in vote(predictions)])

    def _judged(self, problem: Problem, test_index: int, candidate: Candidate) -> Candidate:
        verdict = self.verifier(problem, test_index, candidate.answer)
        return dataclasses.replace(candidate, score=verdict.score, reasons=verdict.reasons)


def make_selector(config: SelectionConfig, kind: Kind) -> Selector:
    """The rule that a config names; raises ProblemError where `kind` has no verifier and the rule needs one."""
    match config:
        case ScoreConfig():
            return Score(config.num_augmentations)
        case VerifyConfig():
            return Verify(kind.verifier())
    return Vote()


def attempts_of(candidates: Candidates, number: int) -> Attempts:
    """The answers to submit: the first `number` candidates of each test."""
    return {key: [candidate.answer for candidate in ordered[:number]] for key, ordered in candidates.items()}


def with_reasons(predictions: Sequence[Prediction], candidates: Candidates, name: str) -> list[Prediction]:
    """`predictions` with, on the first one of each candidate, why the selection `name` put it where it is.

    Reasons of an earlier selection are dropped.
    """
    records = {
        (*key, candidate.answer.key): _record(name, rank, candidate)
        for key, ordered in candidates.items()
        for rank, candidate in enumerate(ordered, 1)
    }
    explained = []
    for prediction in predictions:
        record = None
        if prediction.answer is not None:
            record = records.pop((prediction.task_id, prediction.test_index, prediction.answer.key), None)
        if record is not None or prediction.selection is not None:
            prediction = dataclasses.replace(prediction, selection=record)
        explained.append(prediction)
    return explained


def _record(name: str, rank: int, candidate: Candidate) -> dict[str, Any]:
    record: dict[str, Any] = {"by": name, "rank": rank}
    if name != Vote.name:
        record["score"] = candidate.score
    return {**record, **candidate.reasons, "votes": candidate.votes, "logprob_per_token": candidate.logprob}
