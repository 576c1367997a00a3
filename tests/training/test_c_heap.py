"""What the C library keeps of freed memory, asked without touching any."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from arcft.training.c_heap import CHeap
from tests.support.paths import ROOT

MEBIBYTE = 2**20


BLOCKS = """
from arcft.memory import used_memory
from arcft.training.c_heap import CHeap

before = used_memory()
with CHeap(2**40) as heap:
    for key in range(1, 65):
        heap.allocate(key, 40 * 2**20)
    touched = used_memory() - before
    for key in range(1, 65):
        heap.free(key)
    heap.allocate(65, 40 * 2**20)
print(heap.peak, touched)
"""

HOLES = """
from arcft.training.c_heap import CHeap

with CHeap(2**40) as heap:
    # A block above the limit for mappings of their own, freed, raises it; see mallopt(3), M_MMAP_THRESHOLD.
    heap.allocate(1, 30 * 2**20)
    heap.free(1)
    for key in range(2, 102):
        heap.allocate(key, 2 * 2**20)
    for key in range(2, 102, 2):
        heap.free(key)
    for key in range(102, 152):
        heap.allocate(key, 3 * 2**20)
print(heap.peak)
"""


def printed(program: str) -> list[int]:
    """What a program prints in a process of its own, where no memory is left that other tests have freed."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=True)
    return [int(word) for word in process.stdout.split()]


def test_blocks_count_while_they_are_held_and_take_no_memory() -> None:
    peak, touched = printed(BLOCKS)
    assert touched < 20 * MEBIBYTE
    # Blocks above 32 MiB are given back at once.
    assert 64 * 40 * MEBIBYTE <= peak < 64 * 41 * MEBIBYTE


def test_what_is_freed_between_others_is_kept() -> None:
    (peak,) = printed(HOLES)
    # 100 and 150 MiB are alive, and 100 MiB lie in holes that are too small.
    assert 340 * MEBIBYTE < peak < 370 * MEBIBYTE


def test_beyond_the_limit_nothing_is_known() -> None:
    with CHeap(100 * MEBIBYTE) as heap:
        heap.allocate(1, 50 * MEBIBYTE)
        assert heap.peak is not None
        heap.allocate(2, 60 * MEBIBYTE)
        assert heap.peak is None
        heap.allocate(3, 2**60)
        heap.free(1)


def test_in_another_thread_nothing_is_known() -> None:
    def allocated() -> int | None:
        with CHeap(2**40) as heap:
            heap.allocate(1, 1000)
        return heap.peak

    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(allocated).result() is None
