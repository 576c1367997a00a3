"""What the C library makes of a sequence of allocations.

glibc keeps freed blocks below 32 MiB for later ones, and finds a place for a tensor in them less often than their sizes
suggest: aligned blocks leave splinters, and whatever small is put there keeps neighbours apart. A pass of float32
tensors of a few MiB can so take up four times what is alive at any one time. No formula gives that, so the allocations
are made, of memory that nobody touches, to see how much the library takes for them.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

ALIGNMENT = 64
"""Of torch's tensors on a CPU."""

# Flags of a block in the word before it; see "chunk" in glibc's malloc/malloc.c.
_MAPPED, _OTHER_ARENA = 2, 4


class CHeap:
    """Makes the allocations of a pass on a CPU, without touching them, while the context is open.

    Memory that is never written to takes up addresses only, apart from a page for a block's header. Without glibc, in
    a thread other than the main one, or once `limit` bytes are held, `peak` is None: more than that isn't there,
    however it is cut up.
    """

    def __init__(self, limit: int) -> None:
        self.peak: int | None = 0
        """The most bytes that the library held at any time beyond those at the beginning."""

        self._limit = limit
        self._blocks: dict[int, int] = {}
        self._mapped = 0
        self._library = _glibc()
        self._start = self._library.sbrk(0) if self._library is not None else 0

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
        if failed or block.value is None:
            self._give_up()
            return
        self._blocks[key] = block.value
        header = _header(block.value)
        if header & _MAPPED:
            self._mapped += header & ~7
        # What is not mapped by itself lies below the end of the heap, which grows and shrinks as a whole.
        held = self._mapped + self._library.sbrk(0) - self._start
        if header & _OTHER_ARENA or held > self._limit:
            self._give_up()
        else:
            self.peak = max(self.peak, held)

    def free(self, key: int) -> None:
        """Free what was allocated as `key`, if it was."""
        block = self._blocks.pop(key, None)
        if block is not None and self._library is not None:
            header = _header(block)
            if header & _MAPPED:
                self._mapped -= header & ~7
            self._library.free(block)

    def _give_up(self) -> None:
        self.peak = None
        self._clear()

    def _clear(self) -> None:
        for key in list(self._blocks):
            self.free(key)
        if self._library is not None:
            self._library.malloc_trim(0)


def _header(block: int) -> int:
    """The size of a block with its flags, which glibc keeps in the word before it."""
    return ctypes.c_size_t.from_address(block - ctypes.sizeof(ctypes.c_size_t)).value


@functools.cache
def _glibc() -> Any:
    """The C library; None if it is another."""
    try:
        library = ctypes.CDLL("libc.so.6")
        library.gnu_get_libc_version  # noqa: B018 - others have no such function
        library.sbrk.restype = ctypes.c_size_t
    except (OSError, AttributeError):
        return None
    library.sbrk.argtypes = [ctypes.c_ssize_t]
    library.posix_memalign.argtypes = [ctypes.POINTER(ctypes.c_void_p), ctypes.c_size_t, ctypes.c_size_t]
    library.free.argtypes = [ctypes.c_void_p]
    library.free.restype = None
    return library
