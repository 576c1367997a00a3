"""The memory that a dry run estimates against the peak that the run then has, setting by setting.

    python benchmarks/memory.py --quick
    python benchmarks/memory.py model=smollm2_135m model.path=SmolLM2-135M-Instruct.Q4_1.gguf

Each setting is two processes: train.py with dry_run=true, whose table is read, and train.py with two steps. On a CPU
the peak is the process's largest resident set, on a GPU torch.cuda.max_memory_allocated. Overrides of train.py after
the options go to both. The exit code is 1 if a run failed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
JOB = [
    "tracking=none",
    "showcase=none",
    "preview=false",
    "data=arc1",
    "data.limit=60",
    "data.held_out=2",
    "data.max_tokens=1024",
    "training.max_steps=2",
    "training.generation_tasks=0",
    "training.per_device_train_batch_size=8",
]
MEASURED = """
import atexit, runpy, sys
import torch
if torch.cuda.is_available():
    atexit.register(lambda: print("allocated on the GPU:", torch.cuda.max_memory_allocated(), flush=True))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
UNITS = {"GiB": 2**30, "MiB": 2**20}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="bfloat16 without checkpointing only")
    parser.add_argument("overrides", nargs="*", help="of train.py, e.g. model=tiny, the default")
    arguments = parser.parse_args()
    overrides = arguments.overrides or ["model=tiny"]
    rows = []
    for setting in settings(quick=arguments.quick):
        estimated, measured = estimate(overrides, setting), peak(overrides, setting)
        rows.append({"setting": " ".join(setting), "estimated": estimated, "measured": measured})
        ratio = f"{estimated / measured:.2f}" if measured else "failed"
        print(f"{estimated / 2**20:7.0f} MiB {measured / 2**20:7.0f} MiB {ratio:>7}  {' '.join(setting)}", flush=True)
    print(json.dumps({"benchmark": "memory", "quick": arguments.quick, "overrides": overrides, "settings": rows}))
    sys.exit(int(any(not row["measured"] for row in rows)))


def settings(*, quick: bool) -> list[list[str]]:
    """Overrides of each setting."""
    plain = [
        [f"training.dtype={dtype}", f"training.gradient_checkpointing={checkpointing}"]
        for dtype, checkpointing in itertools.product(("float32", "bfloat16"), ("false", "true"))
    ]
    if quick:
        return plain[2:3]
    base = plain[2]
    others = ["model.quantization=int8", "model.quantization=nf4", "model.quantization=fp4", "training.packing=true"]
    return [*plain, *([*base, other] for other in [*others, "training.max_batch_tokens=2048", "lora=none"])]


def command(overrides: list[str], setting: list[str], folder: str) -> list[str]:
    return [sys.executable, str(ROOT / "train.py"), *JOB, *overrides, *setting, f"hydra.run.dir={folder}/run"]


def estimate(overrides: list[str], setting: list[str]) -> float:
    """Bytes, as the dry run says."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [*command(overrides, setting, folder), "dry_run=true"], cwd=folder, env=environment(), capture_output=True,
            text=True, check=False,
        )  # fmt: skip
    found = re.search(r"memory, about\s+([\d.]+) (GiB|MiB)", done.stdout)
    if found is None:
        raise SystemExit(f"no estimate for {' '.join(setting)}: {done.stdout[-500:]}{done.stderr[-2000:]}")
    return float(found[1]) * UNITS[found[2]]


def peak(overrides: list[str], setting: list[str]) -> int:
    """Bytes at the peak of the run; 0 if it failed, and its last words are printed."""
    with tempfile.TemporaryDirectory() as folder:
        _, script, *arguments = command(overrides, setting, folder)
        with open(Path(folder) / "log", "w+") as log:
            process = subprocess.Popen(
                [sys.executable, "-c", MEASURED, script, *arguments],
                cwd=folder, env=environment(), stdout=log, stderr=log,
            )  # fmt: skip
            _, status, usage = os.wait4(process.pid, 0)
            log.seek(0)
            said = log.read()
    if status != 0:
        print(said[-2000:], file=sys.stderr)
        return 0
    on_gpu = re.search(r"^allocated on the GPU: (\d+)$", said, re.MULTILINE)
    return int(on_gpu[1]) if on_gpu else usage.ru_maxrss * 1024


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


if __name__ == "__main__":
    main()
