"""What became of every unit of a run, on disk before the next thing is done: SQLite, which no kill leaves half-written."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from arcft.errors import ArcftError
from arcft.scoring.predictions import Prediction, TestKey
from arcft.ttft.units import Event, Key

State = Literal["queued", "adapting", "predicting", "done", "failed"]
UnitRow = tuple[int, str, Sequence[str], int]
"""Round, unit's name, ids of its tasks, length in tokens."""


class LedgerError(ArcftError):
    """A ledger of another run, a file that is none, or a disk that takes nothing more."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """One unit in one round."""

    round: int
    name: str
    task_ids: tuple[str, ...]
    length: int
    state: State
    attempts: int
    """Tries that failed."""

    starts: int
    """How often it was taken, also by processes that died."""

    deaths: int
    """Processes that died with it in their hands, since it last failed."""

    reason: str | None
    """Of the last failure."""

    notes: tuple[str, ...]
    planned_steps: int | None
    """What was asked for when it was taken last; None before."""

    first_prediction: int
    num_predictions: int
    seed: int | None
    recipe: dict[str, Any]
    worker: str | None
    started_at: float | None
    """Seconds since the epoch, like `finished_at`; of the last start."""

    finished_at: float | None
    steps: int
    """Optimizer steps done; with `tokens`, `losses` and `adapt_seconds` of the last try that ended its training."""

    tokens: int
    losses: tuple[float, ...]
    adapt_seconds: float
    ended: str | None
    """What ended the training: steps, patience or deadline."""

    predict_seconds: float
    predict_tokens: int
    adapter: str | None
    """Folder of the finished adapter, if it was saved."""

    @property
    def key(self) -> Key:
        return self.round, self.name


@dataclasses.dataclass(frozen=True, kw_only=True)
class Note:
    """Something that concerns the run and no unit alone."""

    at: float
    kind: str
    text: str
    data: dict[str, Any]


class Ledger:
    """One file. A process that works on the run holds the run's lock, and has one Ledger, used from any thread."""

    path: Path
    config: dict[str, Any]

    @classmethod
    def create(cls, path: Path | str, config: Mapping[str, Any], *, clock: Callable[[], float] = time.time) -> Ledger:
        """Begin a ledger, or open the one that is there; LedgerError if that one is of another config."""
        raise NotImplementedError

    @classmethod
    def open(
        cls, path: Path | str, config: Mapping[str, Any] | None = None, *, clock: Callable[[], float] = time.time
    ) -> Ledger:
        """Open a ledger; LedgerError if there is none, or it is of another config (None: whatever it is of)."""
        raise NotImplementedError

    def close(self) -> None: ...

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fill(self, units: Sequence[UnitRow]) -> None:
        """Add the units that are not there yet; LedgerError where what is there differs."""

    def recover(self) -> None:
        """Queue again what dead processes had in hand. Only for the process that holds the run's lock."""

    def claim(self, key: Key, worker: str, *, steps: int, first_prediction: int, predictions: int, seed: int) -> bool:
        """Take a queued unit, in one transaction; False if it is not queued (any more)."""
        raise NotImplementedError

    def record(self, event: Event, worker: str, *, again: bool = False) -> bool:
        """Write down an event of a unit that `worker` has in hand; False, and nothing written, if it has not."""
        raise NotImplementedError

    def give_back(self, worker: str | None, *, died: bool) -> None: ...

    def note(self, kind: str, text: str, data: Mapping[str, Any] | None = None) -> None: ...

    def notes(self) -> list[Note]:
        raise NotImplementedError

    def records(self, round: int | None = None) -> list[Record]:
        """In the order of filling."""
        raise NotImplementedError

    def predictions(self, round: int | None = None, task_id: str | None = None) -> list[Prediction]:
        """In the order of tasks, tests, rounds and prompts."""
        raise NotImplementedError

    def predicted(self, key: Key) -> frozenset[TestKey]:
        """Tests that have predictions of this unit."""
        raise NotImplementedError

    def elapsed(self) -> float:
        """Seconds that this run has taken, over all its processes."""
        raise NotImplementedError

    def heartbeat(self) -> None:
        """Note that this process is still at it; every write does the same."""
