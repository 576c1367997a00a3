"""The assignments and events of an engine: plain data that travels between processes. Does not import torch."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from arcft.protocols import Problem, TestKey
from arcft.scoring.predictions import Prediction

BASELINE_ROUND = 0
ADAPT_ROUND = 1
"""Rounds: BASELINE_ROUND predicts with the unadapted model, ADAPT_ROUND adapts and predicts; extra rounds after it
adapt again with another seed, and add predictions."""

Key = tuple[int, str]
"""Identifies a piece of work: the round, and the unit's name."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Unit:
    """Problems that share an adapter: one (ttft=per_task), a group of them, or all."""

    name: str
    """The problem's id, `split-NUMBER` or `whole_set`; unique in a run."""

    problems: tuple[Problem, ...]
    length: int
    """Tokens of its longest test, prompt and answer; units of similar length are trained together."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Assignment:
    """A unit with everything that determines its result."""

    unit: Unit
    round: int
    steps: int
    """Optimizer steps; 0 predicts with the adapter that all units start from."""

    first_prediction: int
    predictions: int
    """The test's augmented prompts to complete: `predictions` of them, starting at number `first_prediction`."""

    seed: int
    """Seed of the examples; the engine combines it with the unit's name."""

    attempt: int = 0
    """0, or 1 for the retry of a failed unit: alone, at half the learning rate, and with examples of at most three
    quarters of its length."""

    deadline: float | None = None
    """When to stop and return what is finished, in seconds since the epoch."""

    done: frozenset[TestKey] = frozenset()
    """Tests that already have their predictions."""

    adapter: str | None = None
    """Folder of its finished adapter, if an earlier process saved it, so that only predictions are missing."""

    @property
    def key(self) -> Key:
        return self.round, self.unit.name


@dataclasses.dataclass(frozen=True, kw_only=True)
class Event:
    """An event of one piece of work."""

    key: Key


@dataclasses.dataclass(frozen=True, kw_only=True)
class Started(Event):
    """The engine has put the unit into a slot."""

    recipe: dict[str, Any]
    """The engine settings that can differ between units, see arcft/ttft/engine/memory_ladder.py."""

    notes: tuple[str, ...] = ()
    """Remarks for the user, such as that the task has a single demonstration."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stepped(Event):
    """An optimizer step, for the progress line and the budget; not stored in the ledger."""

    step: int
    steps: int
    loss: float
    """Mean loss, in nats per supervised token."""

    tokens: int
    seconds: float
    """This unit's share of the time of the pass; `tokens` are those of its examples, without padding."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adapted(Event):
    steps: int
    tokens: int
    seconds: float
    losses: tuple[float, ...]
    """Loss of every step, in nats per supervised token."""

    ended: Literal["steps", "patience", "deadline"]
    adapter: str | None
    """Folder of the adapter, if it was saved."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Predicted(Event):
    """The predictions of one test; fewer than assigned if the deadline passed."""

    predictions: tuple[Prediction, ...]
    prompts: int
    """Number of prompts that they complete: fewer than predictions if a search found several for one prompt."""

    tokens: int
    """Tokens read and generated."""

    seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finished(Event):
    """All tests of the unit have their predictions."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Failed(Event):
    reason: str
    retry: bool
    """Whether a retry with reduced settings may help."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lowered(Event):
    """The engine continues with reduced settings after running out of memory; or ttft.slots=auto has chosen."""

    recipe: dict[str, Any]
    reason: str
