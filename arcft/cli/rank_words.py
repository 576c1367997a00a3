"""What ranks tell each other outside of training: the run's folder, and how each of them ended.

Rank 0 composes the config and chooses the run's folder, whose name holds the time.
"""

from __future__ import annotations

import dataclasses
import sys
import time
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any

from arcft import ranks
from arcft.cli.silence import say_error
from arcft.ranks import LostRankError, RankError

LAST_WORDS_SECONDS = 2.0
"""How long a failing rank waits for another one to report the same error."""

_FOLDER, _END = "arcft/folder", "arcft/end"


@dataclasses.dataclass
class _State:
    folder: Path | None = None
    """The run's folder, as rank 0 told it."""

    ended: bool = False
    """Whether this rank has told the others how it ended."""


_state = _State()


def tell_folder(folder: Path) -> None:
    """On rank 0, tell the others which folder the run has."""
    if ranks.launched() > 1 and ranks.rank() == 0:
        _store().set(_FOLDER, str(folder.absolute()))


def await_folder() -> None:
    """On other ranks, wait for what rank 0 tells. Exits where rank 0 ends before it."""
    store = _store()
    while not store.check([_FOLDER]):
        if store.check([_END]):
            sys.exit(0 if store.get(_END) == b"" else 1)
        time.sleep(0.05)
    _state.folder = Path(store.get(_FOLDER).decode())


def output_folder() -> Path:
    """The folder of the run."""
    from hydra.core.hydra_config import HydraConfig

    return _state.folder or Path(HydraConfig.get().runtime.output_dir)


def end(message: str = "") -> None:
    """Tell the other ranks that this one has ended, with `message` as its error or empty on success.

    Only the first call counts.
    """
    if _connected() and not _state.ended:
        _state.ended = True
        try:
            _store().set(_key(ranks.rank()), message)
        except RuntimeError:  # the rank that hosts the store has exited
            return


def report(message: str, error: BaseException | None = None) -> None:
    """Print an error of this rank to standard error, unless another rank does that: it has failed in the same way, or
    has brought this one down."""
    if not _connected():
        say_error(f"error: {message}")
        return
    if isinstance(error, RankError) or _is_said(message, by_any=isinstance(error, LostRankError)):
        end(message)
        return
    end(message)
    say_error(f"error: {message}")


def with_cause(message: str, error: BaseException) -> str:
    """`message`, or where the rank that brought this one down has told its own error, that."""
    if not isinstance(error, LostRankError) or not _connected():
        return message
    told = _told([number for number in range(ranks.launched()) if number != ranks.rank()])
    return next((f"rank {number}: {words}" for number, words in told.items() if words), message)


def show_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A sys.excepthook: print the traceback unless an earlier rank has the same."""
    if issubclass(kind, KeyboardInterrupt):
        return
    words = f"{kind.__name__}: {error}"
    if not _is_said(words, by_any=False):
        say_error("".join(traceback.format_exception(kind, error, trace)))
    end(words)


def _is_said(message: str, *, by_any: bool) -> bool:
    """Whether an earlier rank has the same last words; with `by_any`, whether any other rank has last words."""
    others = [number for number in range(ranks.launched()) if number != ranks.rank()]
    if not by_any:
        others = [number for number in others if number < ranks.rank()][:1]
    deadline = time.monotonic() + LAST_WORDS_SECONDS
    while others and time.monotonic() < deadline:
        found = _told(others).values()
        if any(words and (by_any or words == message) for words in found):
            return True
        if found and not by_any:
            return False
        time.sleep(0.05)
    return False


def _told(numbers: list[int]) -> dict[int, str]:
    """The last words of those of the ranks that have ended."""
    store = _store()
    try:
        return {number: store.get(_key(number)).decode() for number in numbers if store.check([_key(number)])}
    except RuntimeError:  # the rank that hosts the store has exited
        return {}


def _key(rank: int) -> str:
    return _END if rank == 0 else f"{_END}/{rank}"


def _store() -> Any:
    from torch.distributed.distributed_c10d import _get_default_store

    return _get_default_store()


def _connected() -> bool:
    if ranks.launched() == 1:
        return False
    import torch.distributed as dist

    return dist.is_initialized()
