"""Setups in processes of their own that take turns, step by step, and what each of them measures."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

OPTIONS = ("rank", "batch", "length", "steps", "warm_up")
"""What a setup's process is told of the command line."""


class SetupProcess:
    """The process of a setup, which takes a step when told to."""

    def __init__(self, setup: str, name: str, dtype: str, base: Path, arguments: argparse.Namespace) -> None:
        self.row: dict[str, Any] = {"setup": setup}
        python = arguments.trl_python if setup.startswith("trl") and arguments.trl_python else sys.executable
        command = [python, sys.argv[0], "--only", setup, "--model", name, "--base", str(base), "--dtype", dtype]
        for option in OPTIONS:
            command += [f"--{option.replace('_', '-')}", str(getattr(arguments, option))]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.alive = True

    def step(self) -> None:
        """Take a step; after the last one, `row` has the figures, or why there are none."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write("step\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass
        answer = self._process.stdout.readline()
        if answer.startswith("{"):
            self.row |= json.loads(answer)
        elif not answer:
            self.row |= {"failure": f"its process ended with {self._process.wait()}"}
        else:
            return
        self.alive = False
        self._process.communicate()


def run_setups(
    setups: Sequence[str], name: str, dtype: str, base: Path, arguments: argparse.Namespace, *, together: bool
) -> Iterator[dict[str, Any]]:
    """The figures of each setup as it ends, or why it failed; `together` they take turns, else one follows another."""
    for group in [setups] if together else [[setup] for setup in setups]:
        processes = [SetupProcess(setup, name, dtype, base, arguments) for setup in group]
        while any(process.alive for process in processes):
            for process in processes:
                if process.alive:
                    process.step()
                    if not process.alive:
                        yield process.row


def measure(arguments: argparse.Namespace) -> None:
    """In a setup's process: train, a step for each line read; the last line printed has the figures."""
    # What libraries print must not be taken for an answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            row = _figures(arguments, answers, Path(folder))
    except Exception as error:
        traceback.print_exc()
        row = {"failure": f"{type(error).__name__}: {error}"[:500]}
    print(json.dumps(row), file=answers, flush=True)


def _figures(arguments: argparse.Namespace, answers: IO[str], folder: Path) -> dict[str, Any]:
    # unsloth must be imported before transformers, which everything below imports.
    unsloth = importlib.import_module("unsloth") if "unsloth" in arguments.only else None
    import torch

    from throughput.inputs import read_examples
    from throughput.setups import train_setup

    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    torch.manual_seed(0)
    clock = make_clock(arguments.warm_up, arguments.warm_up + arguments.steps, answers)
    examples = read_examples(arguments.base)
    losses = train_setup(arguments.only, unsloth, arguments, examples, clock, folder)
    lengths = [len(ids) for ids, _, _ in examples[arguments.warm_up * arguments.batch :]]
    return {
        "tokens_per_second": sum(lengths) / clock.seconds,
        "step_seconds": clock.seconds / arguments.steps,
        "tokens": sum(lengths),
        "longest": max(lengths),
        "peak_gib": clock.peak_bytes / 2**30,
        "loss": sum(losses) / len(losses),
    }


def make_clock(warm_up: int, steps: int, answers: IO[str]) -> Any:
    """A callback that waits for its turn before each step, and takes the time from the end of step `warm_up` to that of
    step `steps`, with fetching and collating the examples in between: the processor's on a CPU, which does not count
    waiting, else the wall's."""
    import torch
    from transformers import TrainerCallback

    from arcft.memory import peak_bytes, reset_peak

    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    now = time.perf_counter if on_gpu else time.process_time

    class Clock(TrainerCallback):
        seconds = 0.0
        peak_bytes = 0
        _begun = 0.0

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            sys.stdin.readline()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if on_gpu:
                torch.cuda.synchronize()
            if state.global_step == steps:
                self.seconds = now() - self._begun
                self.peak_bytes = peak_bytes(device)
                return
            print("done", file=answers, flush=True)
            if state.global_step == warm_up:
                reset_peak(device)
                self._begun = now()

    return Clock()
