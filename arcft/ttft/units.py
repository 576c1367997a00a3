"""What is asked of an engine, and what it tells: plain data that travels between processes. Knows no torch."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from arcft.protocols import Problem, TestKey
from arcft.scoring.predictions import Prediction

BASELINE_ROUND = 0
ADAPT_ROUND = 1
"""Rounds: BEFORE predicts with the model as it was, MAIN adapts and predicts; later ones adapt again, with another
seed, and add predictions."""

Key = tuple[int, str]
"""What names a piece of work: the round, and the unit's name."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Unit:
    """Problems that share an adapter: one (ttft=per_task), a group of them, or all."""

    name: str
    """The problem's id, `split-NUMBER` or `whole_set`; unique in a run."""

    problems: tuple[Problem, ...]
    length: int
    """Tokens of its longest test, prompt and answer, by which units of similar length are put together."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Assignment:
    """A unit with all that decides its outcome."""

    unit: Unit
    round: int
    steps: int
    """Optimizer steps; 0 predicts with the adapter that all units start from."""

    first_prediction: int
    predictions: int
    """Which of a test's augmented prompts are asked: so many, from that number on."""

    seed: int
    """Of the examples; the unit's name is mixed in by the engine."""

    attempt: int = 0
    """0, or 1 for the second try of a unit that failed: alone, at half the learning rate, and with examples that take
    three quarters of its length."""

    deadline: float | None = None
    """When to hand in what there is, in seconds since the epoch."""

    done: frozenset[TestKey] = frozenset()
    """Tests whose predictions are known already."""

    adapter: str | None = None
    """Folder of its finished adapter, if an earlier process saved it: only predictions are missing."""

    @property
    def key(self) -> Key:
        return self.round, self.unit.name


@dataclasses.dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened to one piece of work."""

    key: Key


@dataclasses.dataclass(frozen=True, kw_only=True)
class Started(Event):
    """The engine has taken the unit into a slot."""

    recipe: dict[str, Any]
    """What of the engine's settings could differ from unit to unit, see arcft/ttft/engine/memory_ladder.py."""

    notes: tuple[str, ...] = ()
    """What the user should know, e.g. that the task has one demonstration only."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stepped(Event):
    """An optimizer step; for the progress line and the budget, not kept in the ledger."""

    step: int
    steps: int
    loss: float
    """Nats per supervised token."""

    tokens: int
    seconds: float
    """Tokens of this unit's examples (padding left out), and its share of the time of the pass."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adapted(Event):
    steps: int
    tokens: int
    seconds: float
    losses: tuple[float, ...]
    """Of every step, nats per supervised token."""

    ended: Literal["steps", "patience", "deadline"]
    adapter: str | None
    """Where it was saved, if it was."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Predicted(Event):
    """The predictions of one test, all that were asked for, or fewer if the deadline came."""

    predictions: tuple[Prediction, ...]
    prompts: int
    """That they answer: as many, or fewer where a search found several for one."""

    tokens: int
    """Tokens read and produced."""

    seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finished(Event):
    """All tests of the unit are predicted."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Failed(Event):
    reason: str
    retry: bool
    """Whether a second try, at a lower setting, may help."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lowered(Event):
    """Memory ran out, and the engine goes on with a smaller recipe; or slots=auto has chosen."""

    recipe: dict[str, Any]
    reason: str
