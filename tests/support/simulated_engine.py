"""Engines of a given speed on a clock of their own, for the tests of budgets: seconds pass only where work is done."""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Iterator

from arcft.ttft.scheduling.queue import Queue
from arcft.ttft.units import Adapted, Assignment, Finished, Predicted, Started, Stepped
from tests.support.small_units import Clock, make_prediction

BATCH = 4
"""Prompts in a decoded batch, between which predicting can stop."""


@dataclasses.dataclass(frozen=True)
class Speed:
    """Tokens per second, and seconds that each unit takes besides."""

    train: float
    predict: float
    overhead: float = 0.0
    loading: float = 0.0
    """Seconds before the first unit."""

    step: float = 0.0
    """Seconds of a training pass, whatever it holds."""


@dataclasses.dataclass(eq=False)
class _Training:
    assignment: Assignment
    train_until: float
    step: int = 0


class SimulatedEngine:
    """`slots` units side by side; half of the time to a deadline may go into training."""

    def __init__(self, name: str, queue: Queue, clock: Clock, speed: Speed, slots: int) -> None:
        self.name, self.queue, self.clock, self.speed, self.slots = name, queue, clock, speed, slots

    def work(self) -> Iterator[float]:
        """Yield the seconds that each thing takes; what comes of it is recorded when they have passed."""
        yield self.speed.loading
        in_training: list[_Training] = []
        asks = True
        while True:
            while asks and len(in_training) < self.slots:
                near = in_training[0].assignment.unit.length if in_training else None
                assignment = self.queue.pull(self.name, near)
                if assignment is None:
                    # As the engine does: asked again after the next pass.
                    asks = False
                    break
                self.queue.record(Started(key=assignment.key, recipe={}), self.name)
                yield self.speed.overhead
                if assignment.steps == 0:
                    yield from self._answer(assignment)
                    continue
                deadline = float("inf") if assignment.deadline is None else assignment.deadline
                in_training.append(_Training(assignment, (self.clock.now + deadline) / 2))
            if not in_training:
                if self.queue.done:
                    return
                asks = True
                yield 0.5
                continue
            yield from self._pass(in_training)
            asks = True
            for state in list(in_training):
                if state.step >= state.assignment.steps or self.clock.now >= state.train_until:
                    yield from self._finish(state)
                    in_training.remove(state)

    def _pass(self, in_training: list[_Training]) -> Iterator[float]:
        yield self.speed.step + sum(state.assignment.unit.length for state in in_training) / self.speed.train
        for state in in_training:
            state.step += 1
            tokens = state.assignment.unit.length
            event = Stepped(
                key=state.assignment.key,
                step=state.step,
                steps=state.assignment.steps,
                loss=1.0,
                tokens=tokens,
                seconds=self.speed.step / len(in_training) + tokens / self.speed.train,
            )
            self.queue.record(event, self.name)

    def _finish(self, state: _Training) -> Iterator[float]:
        key, steps = state.assignment.key, state.step
        ended = "steps" if steps >= state.assignment.steps else "deadline"
        event = Adapted(key=key, steps=steps, tokens=0, seconds=0.0, losses=(1.0,) * steps, ended=ended, adapter=None)
        self.queue.record(event, self.name)
        yield from self._answer(state.assignment)

    def _answer(self, assignment: Assignment) -> Iterator[float]:
        deadline = float("inf") if assignment.deadline is None else assignment.deadline
        for task in assignment.unit.problems:
            for test_index in range(len(task.test)):
                made, seconds = 0, 0.0
                while made < assignment.predictions and (made == 0 or self.clock.now < deadline):
                    batch = min(BATCH, assignment.predictions - made)
                    duration = batch * assignment.unit.length / self.speed.predict
                    yield duration
                    made, seconds = made + batch, seconds + duration
                # Votes are close for every other task.
                values = range(1, made + 1) if int(task.id, 36) % 2 else [1] * made
                predictions = tuple(make_prediction(task.id, test_index, value % 10) for value in values)
                event = Predicted(key=assignment.key, predictions=predictions, prompts=made, tokens=0, seconds=seconds)
                self.queue.record(event, self.name)
        self.queue.record(Finished(key=assignment.key), self.name)


def simulate(queue: Queue, clock: Clock, speed: Speed, *, workers: int = 1, slots: int = 1) -> float:
    """Let engines work until none has anything to do; return the seconds that have passed."""
    begun = clock.now
    engines = [SimulatedEngine(f"worker-{number}", queue, clock, speed, slots).work() for number in range(workers)]
    waiting = [(clock.now, number) for number in range(workers)]
    while waiting:
        clock.now, number = heapq.heappop(waiting)
        seconds = next(engines[number], None)
        if seconds is not None:
            heapq.heappush(waiting, (clock.now + seconds, number))
    return clock.now - begun
