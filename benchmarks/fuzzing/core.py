"""Cases with seeds of their own, a limit of time for each, and a count of how they end."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import random
import signal
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Protocol


class WrongError(Exception):
    """What the program did and should not have done."""


class Part(Protocol):
    """One kind of input."""

    seconds_per_case: float
    """CPU seconds that a case may take."""

    def case(self, rng: random.Random) -> str:
        """Make an input from `rng`, give it to the program, and name how that ended; raise WrongError, or whatever the
        program raised and should not have."""


@dataclasses.dataclass
class Tally:
    """How the cases of a part ended."""

    name: str
    outcomes: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    failures: int = 0
    slowest: float = 0.0
    """CPU seconds of the slowest case."""

    seconds: float = 0.0

    @property
    def cases(self) -> int:
        return sum(self.outcomes.values()) + self.failures


def run_cases(
    name: str, part: Part, numbers: Iterable[int], seed: int, on_failure: Callable[[int, str], None]
) -> Tally:
    """Run the cases of these numbers. A case depends on `seed`, `name` and its number, and on no other case.

    `on_failure` is called with the number of each case that fails, and with what was wrong.
    """
    tally = Tally(name)
    begun = time.perf_counter()
    for number in numbers:
        rng = random.Random(f"{seed} {name} {number}")
        started = time.process_time()
        try:
            with _time_limit(part.seconds_per_case):
                tally.outcomes[part.case(rng)] += 1
        except Exception as error:
            tally.failures += 1
            on_failure(number, str(error) if isinstance(error, WrongError) else _raised(error))
        tally.slowest = max(tally.slowest, time.process_time() - started)
    tally.seconds = time.perf_counter() - begun
    return tally


def listing(folder: Path) -> dict[str, int]:
    """Every file and folder below `folder`, with the sizes of files (-1 for folders)."""
    return {str(path.relative_to(folder)): path.stat().st_size if path.is_file() else -1 for path in folder.rglob("*")}


def check_unchanged(folder: Path, before: dict[str, int]) -> None:
    """Raise WrongError where `folder` has gained, lost or changed a file since `before`."""
    after = listing(folder)
    if after != before:
        changed = [name for name in before.keys() | after.keys() if before.get(name) != after.get(name)]
        raise WrongError(f"left its folder changed: {', '.join(sorted(changed)[:5])}")


def check_message(message: str, named: str) -> None:
    """Raise WrongError where an error's message can't be printed, is empty, or does not name what is wrong."""
    try:
        message.encode()
    except UnicodeEncodeError:
        raise WrongError(f"the message can't be printed: {message!r}") from None
    if named not in message:
        raise WrongError(f"the message does not name {named}: {message!r}")


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise WrongError in the block once it has used `seconds` of CPU time."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise WrongError(f"took more than {seconds:g} s of CPU time")

    earlier = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, earlier)


def _raised(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
    ours = next((frame for frame in reversed(frames) if "/arcft/" in frame.filename), None)
    from_ours = f", from {Path(ours.filename).name}:{ours.lineno}" if ours else ""
    notes = "".join(f", {note}" for note in getattr(error, "__notes__", ()))
    return f"traceback: {type(error).__name__}: {str(error)[:300]} ({place}{from_ours}{notes})"
