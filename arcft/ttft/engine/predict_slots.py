"""Predict units from their slots: with the adapter merged, one at a time, or several side by side."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from arcft.config.inference import InferenceConfig, SearchConfig
from arcft.memory import is_out_of_memory, release_memory
from arcft.models.stacked_lora import Route, StackedLora
from arcft.prediction.predict import predict_places
from arcft.prediction.prompts import AugmentedPrompt, augmented_prompts
from arcft.prediction.score_candidates import score_answers
from arcft.protocols import DealViews, Problem
from arcft.scoring.predictions import Prediction
from arcft.text.builder import ExampleBuilder
from arcft.ttft.engine.memory_ladder import Current, difference, explain
from arcft.ttft.units import Assignment, Event, Failed, Finished, Key, Lowered, Predicted


@dataclasses.dataclass(frozen=True)
class UnitInSlot:
    """A unit, and the slot that holds its adapter."""

    assignment: Assignment
    slot: int


@dataclasses.dataclass(eq=False)
class PendingTest:
    """One test of a unit, still to be predicted."""

    owner: UnitInSlot
    problem: Problem
    test_index: int
    max_seq_length: int
    """Context in tokens, prompt and answer; reduced on out of memory."""


@dataclasses.dataclass(frozen=True)
class _Answers:
    question: PendingTest
    predictions: tuple[Prediction, ...]
    prompts: int
    """Number of prompts that the predictions complete."""

    tokens: int
    """Tokens read and generated."""


def side_by_side(assignments: Sequence[Assignment], *, batch_size: int, together: bool, can_merge: bool) -> bool:
    """Whether the tests of several units are decoded in one batch, each row with its own adapter.

    With a merged adapter, one unit at a time, a pass is cheaper; but on a GPU (`together`) a larger batch costs next
    to nothing, so units are batched together if two tests fit a batch, or if adapters can't be merged.
    """
    if len(assignments) < 2 or not together:
        return False
    return not can_merge or 2 * max(assignment.predictions for assignment in assignments) <= batch_size


class SlotPrediction:
    """Predicts the tests of units, and yields the predictions test by test."""

    def __init__(
        self,
        stacked: StackedLora,
        ask: ExampleBuilder,
        deal_views: DealViews,
        current: Current,
        *,
        inference: InferenceConfig,
        num_views: int | None,
        together: bool,
        clock: Callable[[], float],
    ) -> None:
        """`num_views`: augmentations under which predicted answers are scored; None: they are not scored. `together`:
        tests of several units may share a batch. Predictions then depend, in the last bits of floating-point sums, on
        what else is in it."""
        self.together = together
        self._stacked = stacked
        self._ask = ask
        self._deal_views = deal_views
        self._current = current
        self._inference = inference
        self._num_views = num_views
        self._clock = clock
        self._context = min(ask.max_seq_length, inference.max_seq_length or ask.max_seq_length)

    def answer(self, group: Sequence[UnitInSlot], stopped: Callable[[], bool]) -> Iterator[Event]:
        """Predict all tests that are missing; ends early, between batches, once `stopped`."""
        can_merge = self._stacked.can_merge and self._current.memory.merge
        batch_size = self._current.memory.batch_size
        units = [one.assignment for one in group]
        one_slot = len({one.slot for one in group}) == 1
        if (self.together and one_slot) or side_by_side(
            units, batch_size=batch_size, together=self.together, can_merge=can_merge
        ):
            yield from self._answer_group(group, stopped)
            return
        for one in group:
            yield from self._answer_group([one], stopped)

    def _answer_group(self, group: Sequence[UnitInSlot], stopped: Callable[[], bool]) -> Iterator[Event]:
        with contextlib.ExitStack() as stack:
            route = None
            merged = False
            if self._stacked.can_merge and self._current.memory.merge and len({one.slot for one in group}) == 1:
                try:
                    stack.enter_context(self._stacked.merged(group[0].slot))
                    merged = True
                except (RuntimeError, MemoryError) as error:
                    if not is_out_of_memory(error):
                        raise
                    words = release_memory(error)
                if not merged:
                    yield self._lowered(group[0].assignment, words, merge=False)
            if not merged:
                route = stack.enter_context(self._stacked.routed())
            yield from self._questions(group, route, stopped)

    def _questions(
        self, group: Sequence[UnitInSlot], route: Route | None, stopped: Callable[[], bool]
    ) -> Iterator[Event]:
        open_questions = {one.assignment.key: self._missing(one) for one in group}
        for one in group:
            if not open_questions[one.assignment.key]:
                yield Finished(key=one.assignment.key)
        # Sort by length; a unit's tests stay in order.
        waiting = [question for one in self._by_length(group) for question in open_questions[one.assignment.key]]
        alone = False
        while waiting and not stopped():
            chunk = waiting[:1] if alone else self._chunk(waiting)
            start = time.perf_counter()
            try:
                answers = self._decode(chunk, open_questions, route, stopped)
            except Exception as error:
                failure = error
            else:
                if answers is None:
                    return
                seconds = time.perf_counter() - start
                yield from self._tell(answers, seconds, open_questions)
                waiting = waiting[len(chunk) :]
                alone = False
                continue
            if len(chunk) > 1 and not is_out_of_memory(failure):
                # One of them is the cause; predict each separately to find it.
                alone = True
                continue
            gone, events = self._lower_or_fail(chunk[0], failure)
            yield from events
            waiting = [question for question in waiting if not gone or question.owner != chunk[0].owner]

    def _missing(self, one: UnitInSlot) -> list[PendingTest]:
        return [
            PendingTest(one, problem, index, self._context)
            for problem in one.assignment.unit.problems
            for index in range(len(problem.answers))
            if (problem.id, index) not in one.assignment.done
        ]

    def _by_length(self, group: Sequence[UnitInSlot]) -> list[UnitInSlot]:
        return sorted(group, key=lambda one: one.assignment.unit.length)

    def _chunk(self, waiting: Sequence[PendingTest]) -> list[PendingTest]:
        """The next tests to predict together: as many as fit a batch, at least one."""
        chunk = [waiting[0]]
        if not self.together:
            return chunk
        rows = waiting[0].owner.assignment.predictions
        for question in waiting[1:]:
            rows += question.owner.assignment.predictions
            if rows > self._current.memory.batch_size:
                break
            chunk.append(question)
        return chunk

    def _decode(
        self,
        chunk: Sequence[PendingTest],
        open_questions: dict[Key, list[PendingTest]],
        route: Route | None,
        stopped: Callable[[], bool],
    ) -> list[_Answers] | None:
        """The predictions; None if it was stopped before all were made."""
        deadlines = [self._deadline(question, open_questions) for question in chunk]
        until = min((deadline for deadline in deadlines if deadline is not None), default=None)
        asked: list[AugmentedPrompt] = []
        owners: list[PendingTest] = []
        for question in chunk:
            prompts = self._prompts(question)
            if until is not None and self._clock() >= until:
                prompts = prompts[:1]
            asked += prompts
            owners += [question] * len(prompts)

        def ended() -> bool:
            return stopped() or (until is not None and self._clock() >= until)

        found = predict_places(
            self._stacked.model,
            self._ask,
            asked,
            dataclasses.replace(self._inference, batch_size=self._current.memory.batch_size),
            on_rows_changed=None if route is None else _by_place(route, owners),
            adapters=[owner.owner.slot for owner in owners],
            until=ended,
        )
        # A search that ended early does not report it.
        if stopped() and (len(found) < len(asked) or isinstance(self._inference, SearchConfig)):
            return None
        answers = [_answers(question, owners, asked, found) for question in chunk]
        if self._num_views is None:
            return answers
        scored = [self._scored(answer, self._num_views, route, ended) for answer in answers]
        return None if stopped() else scored

    def _scored(self, answers: _Answers, num_views: int, route: Route | None, ended: Callable[[], bool]) -> _Answers:
        """The predictions with scores of their answers, by the adapter that predicted them."""
        question = answers.question
        config = dataclasses.replace(
            self._inference,
            batch_size=self._current.memory.batch_size,
            max_seq_length=question.max_seq_length,
        )
        predictions = score_answers(
            self._stacked.model,
            self._ask,
            self._deal_views,
            question.problem,
            answers.predictions,
            config,
            num_views,
            on_rows_changed=None if route is None else lambda rows: route([question.owner.slot] * len(rows)),
            until=ended,
        )
        return dataclasses.replace(answers, predictions=tuple(predictions))

    def _deadline(self, question: PendingTest, open_questions: dict[Key, list[PendingTest]]) -> float | None:
        """The deadline of a test: the remaining time is divided equally among the unit's tests."""
        assignment = question.owner.assignment
        if assignment.deadline is None:
            return None
        now = self._clock()
        return now + max(0.0, assignment.deadline - now) / len(open_questions[assignment.key])

    def _prompts(self, question: PendingTest) -> list[AugmentedPrompt]:
        assignment = question.owner.assignment
        config = dataclasses.replace(
            self._inference,
            predictions_per_test=assignment.first_prediction + assignment.predictions,
            max_seq_length=question.max_seq_length,
        )
        return augmented_prompts(
            self._ask,
            self._deal_views,
            question.problem,
            question.test_index,
            config,
            first=assignment.first_prediction,
        )

    def _tell(
        self,
        answers: Sequence[_Answers],
        seconds: float,
        open_questions: dict[Key, list[PendingTest]],
    ) -> Iterator[Event]:
        total = sum(answer.tokens for answer in answers)
        for answer in answers:
            key = answer.question.owner.assignment.key
            share = answer.tokens / total if total else 1 / len(answers)
            yield Predicted(
                key=key,
                predictions=answer.predictions,
                prompts=answer.prompts,
                tokens=answer.tokens,
                seconds=seconds * share,
            )
            open_questions[key].remove(answer.question)
            if not open_questions[key]:
                yield Finished(key=key)

    def _lower_or_fail(self, question: PendingTest, error: Exception) -> tuple[bool, list[Event]]:
        """Handle an error: whether the question's unit is given up, and the event to report."""
        assignment = question.owner.assignment
        if not is_out_of_memory(error):
            return True, [Failed(key=assignment.key, reason=explain(error), retry=True)]
        words = release_memory(error)
        batch_size = self._current.memory.batch_size
        if batch_size > 1:
            return False, [self._lowered(assignment, words, batch_size=batch_size // 2)]
        needed = max(len(prompt.token_ids) + prompt.max_new_tokens for prompt in self._prompts(question))
        shorter = min(question.max_seq_length, needed) * 3 // 4
        if shorter >= self._context // 4:
            old, question.max_seq_length = question.max_seq_length, shorter
            reason = f"out of memory: prompts of {question.problem.id} {old} -> {shorter} tokens ({words})"
            memory = dataclasses.asdict(self._current.memory)
            return False, [Lowered(key=assignment.key, recipe=memory, reason=reason)]
        reason = f"out of memory, and no setting is left to reduce: {words}"
        return True, [Failed(key=assignment.key, reason=reason, retry=False)]

    def _lowered(self, assignment: Assignment, words: str, **changes: Any) -> Lowered:
        old = self._current.memory
        self._current.memory = dataclasses.replace(old, **changes)
        reason = f"out of memory: {difference(old, self._current.memory)} ({words})"
        return Lowered(key=assignment.key, recipe=dataclasses.asdict(self._current.memory), reason=reason)


def _by_place(route: Route, owners: Sequence[PendingTest]) -> Callable[[Sequence[int]], None]:
    return lambda places: route([owners[place].owner.slot for place in places])


def _answers(
    question: PendingTest,
    owners: Sequence[PendingTest],
    asked: Sequence[AugmentedPrompt],
    found: dict[int, list[Prediction]],
) -> _Answers:
    places = [place for place in sorted(found) if owners[place] is question]
    predictions = tuple(prediction for place in places for prediction in found[place])
    tokens = sum(len(asked[place].token_ids) for place in places) + sum(one.num_tokens or 0 for one in predictions)
    return _Answers(question, predictions, len(places), tokens)
