"""Several processes as one program: what torchrun, accelerate or submitit started once per GPU or CPU process.

Rank 0 composes the config and chooses the run's folder, whose name holds the time, and tells the others. These write
nothing and print nothing but an error of their own.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

from arcft import ranks
from arcft.console import complain
from arcft.errors import ArcftError
from arcft.ranks import LostRankError, RankError

PATIENCE = timedelta(hours=2)
"""How long ranks wait for each other: one may predict or save while the others have nothing to do."""

LAST_WORDS_SECONDS = 2.0
"""How long a failing rank waits for another one to report the same error."""

QUIET = ("hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=none", "hydra/hydra_logging=none")
"""Overrides with which Hydra writes nothing."""

_FOLDER, _END = "arcft/folder", "arcft/end"
_told: list[Path] = []
_ended: list[str] = []


class LaunchError(ArcftError):
    """Processes that were started in a way that can't work."""


def refuse_launch(job: str, arguments: Sequence[str]) -> None:
    """Raise LaunchError for what can't be done by several processes, or was meant to be and isn't."""
    if os.environ.get("ACCELERATE_USE_CPU") == "True" and "MASTER_PORT" in os.environ and ranks.count() == 1:
        raise LaunchError(
            "accelerate launch --cpu starts a single process unless it is given --mpirun_hostfile; for several on one "
            "machine use torchrun --nproc-per-node N, or accelerate launch --multi_gpu --num_processes N, which also "
            "works without GPUs"
        )
    if ranks.count() == 1:
        return
    if job != "train":
        raise LaunchError(
            f"{job} is one program, and was started as {ranks.count()} processes; start it without torchrun. "
            "ttft.workers and a multirun (-m) use several GPUs"
        )
    if {"-m", "--multirun"} & set(arguments):
        raise LaunchError(
            f"-m under a launcher of {ranks.count()} processes: a multirun starts its jobs itself; start the jobs one "
            "by one, or let hydra/launcher=submitit_slurm with hydra.launcher.tasks_per_node start several processes"
        )


def join() -> None:
    """Connect this process with the other ranks, and silence it if it is not the first. Does nothing without others."""
    _export_submitit()
    if ranks.count() == 1:
        return
    import torch
    import torch.distributed as dist

    if dist.is_initialized():
        return
    if ranks.rank() > 0:
        _be_silent()
    backend = "cpu:gloo"
    if torch.cuda.is_available():
        if ranks.local_rank() >= torch.cuda.device_count():
            raise LaunchError(
                f"{ranks.local_count()} processes on a machine with {torch.cuda.device_count()} GPUs: each needs one "
                "of its own; start fewer (--nproc-per-node), or set CUDA_VISIBLE_DEVICES= to use the CPU"
            )
        torch.cuda.set_device(ranks.local_rank())
        backend += ",cuda:nccl"
    dist.init_process_group(backend, timeout=PATIENCE)


def tell_folder(folder: Path) -> None:
    """On rank 0, tell the others which folder the run has."""
    if ranks.count() > 1 and ranks.rank() == 0:
        _store().set(_FOLDER, str(folder.absolute()))


def await_folder() -> None:
    """On other ranks, wait for what rank 0 tells. Exits where rank 0 ends before it."""
    store = _store()
    while not store.check([_FOLDER]):
        if store.check([_END]):
            sys.exit(0 if store.get(_END) == b"" else 1)
        time.sleep(0.05)
    _told[:] = [Path(store.get(_FOLDER).decode())]


def output_folder() -> Path:
    """The folder of the run."""
    from hydra.core.hydra_config import HydraConfig

    return _told[0] if _told else Path(HydraConfig.get().runtime.output_dir)


def end(message: str = "") -> None:
    """Leave a word for the other ranks: how this one ends, with an error or, if `message` is empty, well.

    Only the first call counts.
    """
    if _connected() and not _ended:
        _ended.append(message)
        try:
            _store().set(_key(ranks.rank()), message)
        except RuntimeError:  # whoever kept the words has gone
            return


def report(message: str, error: BaseException | None = None) -> None:
    """Print an error of this rank to standard error, unless another rank does that: it has failed in the same way, or
    has brought this one down."""
    if not _connected():
        _say(f"error: {message}")
        return
    if isinstance(error, RankError) or _is_said(message, by_any=isinstance(error, LostRankError)):
        end(message)
        return
    end(message)
    _say(f"error: {message}")


def _is_said(message: str, *, by_any: bool) -> bool:
    """Whether an earlier rank has the same last words; with `by_any`, whether any other rank has last words."""
    others = [number for number in range(ranks.count()) if number != ranks.rank()]
    if not by_any:
        others = [number for number in others if number < ranks.rank()][:1]
    deadline = time.monotonic() + LAST_WORDS_SECONDS
    try:
        while others and time.monotonic() < deadline:
            found = [_store().get(_key(number)).decode() for number in others if _store().check([_key(number)])]
            if any(words and (by_any or words == message) for words in found):
                return True
            if found and not by_any:
                return False
            time.sleep(0.05)
    except RuntimeError:
        return False
    return False


def _key(rank: int) -> str:
    return _END if rank == 0 else f"{_END}/{rank}"


def _store() -> Any:
    from torch.distributed.distributed_c10d import _get_default_store

    return _get_default_store()


def _connected() -> bool:
    if ranks.count() == 1:
        return False
    import torch.distributed as dist

    return dist.is_initialized()


_own_errors: list[int] = []
"""The file descriptor of standard error as it was before this rank was silenced."""


def _be_silent() -> None:
    """Send all that this process and its libraries print nowhere."""
    sys.stdout.flush()
    sys.stderr.flush()
    _own_errors[:] = [os.dup(2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    sys.excepthook = _show_traceback


def _say(text: str) -> None:
    if not _own_errors:
        complain(text)
        return
    from arcft.names import visible

    lines = visible(text).splitlines()
    os.write(_own_errors[0], "".join(f"rank {ranks.rank()}: {line}\n" for line in lines).encode())


def _show_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        return
    words = f"{kind.__name__}: {error}"
    if not _is_said(words, by_any=False):
        _say("".join(traceback.format_exception(kind, error, trace)))
    end(words)


def _export_submitit() -> None:
    """Where submitit runs this job as several tasks, tell torch so in the environment, as torchrun does."""
    if "SUBMITIT_EXECUTOR" not in os.environ or "RANK" in os.environ:
        return
    import submitit

    if submitit.JobEnvironment().num_tasks > 1:
        submitit.helpers.TorchDistributedEnvironment().export(overwrite=True, set_cuda_visible_devices=False)
