"""What memory there is, by machine, process and control group, and which errors mean that there is none left."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from arcft.memory import available_memory, gib, is_out_of_memory, left_by_cgroups, used_memory

CPU = torch.device("cpu")


def groups(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_the_limits_of_a_group_and_of_those_above_it_count_in_version_2(tmp_path: Path) -> None:
    root = groups(
        tmp_path / "fs",
        {
            "job/memory.max": "5000\n",
            "job/memory.current": "3000\n",
            "job/memory.stat": "anon 1000\ninactive_file 400\n",
            "job/task/memory.max": "max\n",
            "job/task/memory.current": "2000\n",
        },
    )
    member = tmp_path / "cgroup"
    member.write_text("0::/job/task\n")
    assert list(left_by_cgroups(member, root)) == [5000 - 3000 + 400]


def test_version_1_has_files_of_its_own_and_a_container_sees_its_group_at_the_top(tmp_path: Path) -> None:
    root = groups(
        tmp_path / "fs",
        {
            "memory/memory.limit_in_bytes": "9000\n",
            "memory/memory.usage_in_bytes": "8000\n",
            "memory/memory.stat": "cache 900\ntotal_inactive_file 500\n",
        },
    )
    member = tmp_path / "cgroup"
    member.write_text("5:devices:/\n4:memory,hugetlb:/docker/0a1b\n0::/\n")
    assert list(left_by_cgroups(member, root)) == [1500]


def test_without_groups_nothing_is_limited(tmp_path: Path) -> None:
    assert list(left_by_cgroups(tmp_path / "missing", tmp_path)) == []


def test_the_machine_s_memory_is_the_limit_of_a_process_without_others() -> None:
    assert used_memory() < available_memory(CPU) < 2**50


def test_a_limit_on_address_space_counts() -> None:
    script = """
import resource, torch, psutil
from arcft.memory import available_memory, used_memory
resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + 300 * 2**20, resource.RLIM_INFINITY))
print((available_memory(torch.device("cpu")) - used_memory()) / 2**20)
try:
    torch.ones(2**28)
except RuntimeError as error:
    from arcft.memory import is_out_of_memory
    print(is_out_of_memory(error))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    left, caught = done.stdout.split()
    assert float(left) == pytest.approx(300, abs=20)
    assert caught == "True"


def test_pytorch_on_a_cpu_says_in_words_that_memory_has_run_out() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**55, dtype=torch.int8)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_sizes_are_for_people() -> None:
    assert (gib(3 * 2**29), gib(2**20 * 5.25)) == ("1.50 GiB", "5.2 MiB")
