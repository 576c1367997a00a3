"""Which unit is next, with how many steps and predictions, and what becomes of it. All of it is in the ledger."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence

from arcft.scoring.predictions import Prediction
from arcft.ttft.budget import Budget
from arcft.ttft.ledger import Ledger
from arcft.ttft.units import Assignment, Event, Unit


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progress:
    """For the progress line: units of the main round."""

    done: int
    failed: int
    total: int
    predicted_before: int
    """Units that have predictions of the model as it was."""

    extra: int
    """Units of further rounds that are done."""

    tokens_per_second: float
    """Read, trained and produced, over the last minute."""

    seconds_left: float | None
    """Till the end of the main round; None before anything is known."""


class Queue:
    """Hands out units and takes in events, from any thread. One a run, in the process that holds the run's lock."""

    changed: bool
    """Whether there are predictions that no submission has yet; set to False by who writes one."""

    def __init__(
        self,
        ledger: Ledger,
        units: Sequence[Unit],
        *,
        steps: int,
        predictions: int,
        predict_before: int,
        seed: int,
        budget: Budget | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`steps`: ttft.max_steps; `predictions`: inference.predictions_per_test; `seed`: ttft.seed."""

    def pull(self, worker: str, near: int | None = None) -> Assignment | None:
        """The next unit for `worker`, of a length like `near`; None if there is none for now."""
        raise NotImplementedError

    def record(self, event: Event, worker: str) -> None: ...

    def give_back(self, worker: str) -> None:
        """Queue again what `worker`, which is no more, had in hand. After `stop` that is no death."""

    def stop(self) -> None:
        """Hand out nothing more, in this process."""

    @property
    def done(self) -> bool:
        """Nothing is in hand, and nothing will be handed out: all done, stopped, or out of time."""
        raise NotImplementedError

    @property
    def out_of_time(self) -> bool:
        """Whether units are left that the budget has no time for."""
        raise NotImplementedError

    def progress(self) -> Progress:
        raise NotImplementedError

    def predictions(self) -> list[Prediction]:
        """What counts now: of each test those after adapting, or else those before; in the order of tasks."""
        raise NotImplementedError

    def before(self) -> list[Prediction]:
        """Those of the model as it was."""
        raise NotImplementedError
