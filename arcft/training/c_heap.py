"""What the C library makes of a sequence of allocations.

glibc keeps freed blocks below 32 MiB for later ones, and finds a place for a tensor in them less often than their sizes
suggest: aligned blocks leave splinters, and whatever small is put there keeps neighbours apart. A pass of float32
tensors of a few MiB can so take up four times what is alive at any one time. No formula gives that, so the allocations
are made, of memory that nobody touches, and the library is asked what it holds.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

ALIGNMENT = 64
"""Of torch's tensors on a CPU."""

LARGE = 2**21
"""Bytes of a block after which the library is asked what it holds."""


class CHeap:
    """Makes the allocations of a pass on a CPU, without touching them, while the context is open.

    Memory that is never written to takes up addresses only, apart from a page for a block's header. Without glibc 2.33
    or later, or once `limit` bytes are held, `peak` is None: more than that isn't there, however it is cut up.
    """

    def __init__(self, limit: int) -> None:
        self.peak: int | None = 0
        """The most bytes that the library held at any time beyond those at the beginning."""

        self._limit = limit
        self._blocks: dict[int, int] = {}
        self._library = _glibc()
        self._before = self._held()

    def __enter__(self) -> CHeap:
        if self._library is None:
            self.peak = None
        return self

    def __exit__(self, *error: object) -> None:
        self._clear()

    def allocate(self, key: int, size: int) -> None:
        """Allocate `size` bytes under the name `key`."""
        if self.peak is None or self._library is None:
            return
        block = ctypes.c_void_p()
        failed = self._library.posix_memalign(ctypes.byref(block), ALIGNMENT, size)
        if not failed and block.value is not None:
            self._blocks[key] = block.value
        # mallinfo2 walks through all free blocks; small ones hardly add to what is held.
        held = self._held() - self._before if size >= LARGE else 0
        if failed or held > self._limit:
            self._give_up()
        else:
            self.peak = max(self.peak, held)

    def free(self, key: int) -> None:
        """Free what was allocated as `key`, if it was."""
        block = self._blocks.pop(key, None)
        if block is not None and self._library is not None:
            self._library.free(block)

    def _give_up(self) -> None:
        self.peak = None
        self._clear()

    def _clear(self) -> None:
        for key in list(self._blocks):
            self.free(key)
        if self._library is not None:
            self._library.malloc_trim(0)

    def _held(self) -> int:
        if self._library is None:
            return 0
        found = self._library.mallinfo2()
        return int(found.arena + found.hblkhd)


class _MallocInfo(ctypes.Structure):
    """struct mallinfo2 of malloc.h."""

    _fields_ = [
        ("arena", ctypes.c_size_t),
        ("ordblks", ctypes.c_size_t),
        ("smblks", ctypes.c_size_t),
        ("hblks", ctypes.c_size_t),
        ("hblkhd", ctypes.c_size_t),
        ("usmblks", ctypes.c_size_t),
        ("fsmblks", ctypes.c_size_t),
        ("uordblks", ctypes.c_size_t),
        ("fordblks", ctypes.c_size_t),
        ("keepcost", ctypes.c_size_t),
    ]


@functools.cache
def _glibc() -> Any:
    """The C library; None if it is another, or older."""
    try:
        library = ctypes.CDLL("libc.so.6")
        library.mallinfo2.restype = _MallocInfo
    except (OSError, AttributeError):
        return None
    library.posix_memalign.argtypes = [ctypes.POINTER(ctypes.c_void_p), ctypes.c_size_t, ctypes.c_size_t]
    library.free.argtypes = [ctypes.c_void_p]
    library.free.restype = None
    return library
