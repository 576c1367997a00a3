"""The examples, learning rate and context of a unit, for its first attempt and for the retry."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from arcft.config.ttft import TtftConfig
from arcft.prediction.prompts import derived_seed
from arcft.protocols import OwnExamples, QuestionSampler
from arcft.text.builder import ExampleBuilder
from arcft.text.stream import LengthError
from arcft.text.tokens import Example
from arcft.ttft.engine.memory_ladder import Current
from arcft.ttft.engine.slot import SlotState
from arcft.ttft.engine.unit_examples import UnitExamples, prepare_examples, shortened
from arcft.ttft.units import Assignment

SECOND_TRY_RATE = 0.5
SECOND_TRY_CONTEXT = 0.75
"""Context of a retry, relative to the unit's longest test or the engine's context, whichever is shorter."""


class UnitSettings:
    """Settings that depend only on the assignment, the config and the current memory settings."""

    def __init__(
        self,
        learn: ExampleBuilder,
        current: Current,
        *,
        config: TtftConfig,
        own: OwnExamples,
        questions: QuestionSampler,
        learning_rate: float,
    ) -> None:
        self.shortest_context = learn.max_seq_length // 4
        self._learn = learn
        self._current = current
        self._config = config
        self._own = own
        self._questions = questions
        self._learning_rate = learning_rate

    def unit_examples(self, assignment: Assignment) -> UnitExamples:
        """The unit's examples; raises LengthError if none fits."""
        context = self._current.memory.max_seq_length
        if not assignment.attempt:
            return self._examples(assignment, context)
        try:
            return self._examples(assignment, int(min(context, assignment.unit.length) * SECOND_TRY_CONTEXT))
        except LengthError:
            # No demonstration could be dropped.
            return self._examples(assignment, context)

    def _examples(self, assignment: Assignment, context: int) -> UnitExamples:
        return prepare_examples(
            assignment.unit.problems,
            shortened(self._learn, context),
            self._own,
            self._questions,
            seed=derived_seed(assignment.seed, assignment.unit.name),
            length=assignment.steps * self._config.batch_size,
            hold_back=self._config.patience is not None,
        )

    def next_examples(self, state: SlotState) -> list[Example]:
        """The examples of its next step; none after the last step."""
        size, stream = self._config.batch_size, state.examples.stream
        return [stream[k] for k in range(state.step * size, min((state.step + 1) * size, len(stream)))]

    def rate(self, assignment: Assignment) -> float:
        """The peak learning rate."""
        return self._learning_rate * (SECOND_TRY_RATE if assignment.attempt else 1.0)

    def factor(self, assignment: Assignment) -> Callable[[int], float]:
        """The learning-rate schedule, as a factor of the peak by step."""
        return self._config.schedule().factors(assignment.steps)

    def as_recorded(self, assignment: Assignment, examples: UnitExamples) -> dict[str, Any]:
        """The settings that this unit is trained with, as recorded in the ledger."""
        memory = dataclasses.replace(self._current.memory, max_seq_length=examples.max_seq_length)
        if assignment.attempt:
            memory = dataclasses.replace(memory, slots=1)
        return {**dataclasses.asdict(memory), "learning_rate": self.rate(assignment)}
