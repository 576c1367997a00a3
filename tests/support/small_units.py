"""Units, events and predictions without any model, for the tests of ledger, budget and queue."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from arcft.problems.arc.task import Pair, Task
from arcft.scoring.predictions import Prediction
from arcft.ttft.units import Adapted, Event, Finished, Key, Predicted, Started, Unit
from tests.support.arc import prediction


def make_unit(name: str, length: int = 100, tests: int = 1, tasks: Sequence[str] = ()) -> Unit:
    """A unit of one task of its own name, or of several."""
    grid = np.zeros((1, 1), dtype=np.int8)
    pair = Pair(grid, grid)
    made = tuple(Task(id, (pair,), (pair,) * tests) for id in tasks or [name])
    return Unit(name=name, problems=made, length=length)


def make_prediction(task_id: str, test_index: int = 0, value: int = 1, **outcome: object) -> Prediction:
    """A grid of one cell, `value`."""
    return prediction(np.full((1, 1), value, dtype=np.int8), task_id, test_index, **outcome)


def adapted(key: Key, steps: int = 2, adapter: str | None = None) -> Adapted:
    return Adapted(
        key=key, steps=steps, tokens=50 * steps, seconds=0.5, losses=(1.0, 0.25), ended="steps", adapter=adapter
    )


def predicted(key: Key, task_id: str, test_index: int = 0, values: Sequence[int] = (1,)) -> Predicted:
    predictions = tuple(make_prediction(task_id, test_index, value) for value in values)
    return Predicted(key=key, predictions=predictions, prompts=len(predictions), tokens=30, seconds=0.25)


def whole(key: Key, values: Sequence[int] = (1,)) -> list[Event]:
    """All that becomes of a unit of one task with one test."""
    return [Started(key=key, recipe={}), adapted(key), predicted(key, key[1], 0, values), Finished(key=key)]


class Clock:
    """Stands still until it is moved."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now
