"""How much memory there is, and errors that mean there is none left."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

from arcft import ranks
from arcft.errors import ArcftError

CGROUPS = Path("/sys/fs/cgroup")


class OutOfMemoryError(ArcftError):
    """Memory ran out where nothing is left to reduce."""


def gib(size: float) -> str:
    """`size` in GiB, or in MiB below 0.1 GiB."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 / 10 else f"{size / 2**20:.1f} MiB"


def used_memory() -> int:
    """Resident memory of this process, in bytes."""
    return int(psutil.Process().memory_info().rss)


def available_memory(device: torch.device) -> int:
    """Bytes that this process may occupy on `device`, with what it occupies already.

    On a GPU, what is free there and what torch has reserved. On a CPU, the least of what the machine has available and
    what the limits of the process (RLIMIT_AS, as set by `ulimit -v`) and of its control groups leave.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device))
    return used_memory() + max(0, min(_left()))


def _left() -> Iterator[int]:
    """Bytes left under each limit."""
    address_space, _ = resource.getrlimit(resource.RLIMIT_AS)
    if address_space != resource.RLIM_INFINITY:
        yield address_space - int(psutil.Process().memory_info().vms)
    # The ranks of a node share these.
    shared = [int(psutil.virtual_memory().available), *left_by_cgroups(Path("/proc/self/cgroup"), CGROUPS)]
    yield min(shared) // ranks.local_count()


def left_by_cgroups(membership: Path, root: Path) -> Iterator[int]:
    """Bytes left by the memory limits of this process's control groups, of version 1 or 2, and those above them.

    `membership` lists the groups (/proc/self/cgroup), which lie below `root`. Cached files count as free.
    """
    if not membership.is_file():
        return
    for line in membership.read_text(encoding="utf-8").splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            top, limit, usage = root, "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            top, limit, usage = root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        folder = top / group.lstrip("/")
        # In a container, the path may be the host's, and the container's own group is mounted at the top.
        for place in {top, *(each for each in (folder, *folder.parents) if each.is_relative_to(top))}:
            maximum, current = _number(place / limit), _number(place / usage)
            if maximum is not None and current is not None:
                yield maximum - current + _cached_files(place / "memory.stat")


def _number(file: Path) -> int | None:
    """The number in `file`; None if there is no such file, or no limit."""
    try:
        return int(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _cached_files(stat: Path) -> int:
    try:
        entries = dict(line.split() for line in stat.read_text(encoding="utf-8").splitlines())
    except (OSError, ValueError):
        return 0
    return int(entries.get("total_inactive_file", entries.get("inactive_file", 0)))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` means that a device or the machine is out of memory; PyTorch's CPU allocator raises a plain
    RuntimeError, and so does oneDNN; a file that can't be mapped is an OSError."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    words = (
        "can't allocate memory",
        "Cannot allocate memory",
        "out of memory",
        "CUBLAS_STATUS_ALLOC_FAILED",
        "bad_alloc",
    )
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def release_memory(error: BaseException) -> str:
    """Free the memory that an out-of-memory error holds on to; return the error's first line, or its name."""
    # The traceback references the frames of the failed pass, and through them its tensors.
    error.__traceback__ = error.__context__ = error.__cause__ = None
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return str(error).partition("\n")[0] or type(error).__name__


def reset_peak(device: torch.device) -> None:
    """Let `peak_bytes` count from now on; on a CPU that only Linux can."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        # What loading has freed, and the C library still holds, would be counted.
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_bytes(device: torch.device) -> int:
    """The most memory since `reset_peak`: on a GPU what torch allocated there, otherwise what the process had resident;
    where that can't be reset, since the start of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])
    kilo = 1 if sys.platform == "darwin" else 1024
    return kilo * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
