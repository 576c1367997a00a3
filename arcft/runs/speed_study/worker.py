"""The process that loads one model in one precision and measures it. Imports its libraries only when it runs."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from arcft.config.model import ModelConfig
from arcft.config.speed import Setting
from arcft.errors import ArcftError
from arcft.processes import ChildProcess
from arcft.reporting.speed.rows import Loaded, Outcome, Run

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from arcft.protocols import Positions

_ORPHAN_SECONDS = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject:
    """A model with what decides its positions. Here, so that unpickling it loads no library."""

    model: ModelConfig
    kind: str
    """The kind of problem whose positions the model may have."""

    encoder: Any
    prompt: Any


@dataclasses.dataclass(frozen=True)
class Ready:
    """The model is loaded."""

    loaded: Loaded
    machine: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Request:
    """Measure this."""

    setting: Setting
    repeats: int
    max_seconds: float


@dataclasses.dataclass(frozen=True)
class Measured:
    """One run of a setting."""

    run: Run
    peak_bytes: int
    """Of the setting so far."""


@dataclasses.dataclass(frozen=True)
class Done:
    """The setting has all its runs."""


@dataclasses.dataclass(frozen=True)
class Failure:
    """What came in place of an answer."""

    outcome: Outcome
    reason: str


def start(subject: Subject, setting: Setting, clock: str) -> ChildProcess:
    """Start a process that sends Ready, and then for each Request a Measured per run and Done; or a Failure in place of
    any of these.

    Of `setting`, model and precision count; `clock` is that of SpeedConfig.
    """
    arguments = (subject, setting.dtype, setting.quantization, clock, time.time(), os.getpid())
    return ChildProcess(_serve, arguments, name=f"speed-{setting.model}")


def _serve(
    connection: Connection, subject: Subject, dtype: str, quantization: str, clock: str, started: float, parent: int
) -> None:
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    # Silences a hint, logged at every import, that a 4-bit CPU kernel is available.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    try:
        with _answering(connection):
            from arcft.runs.speed_study.measure import measure

            model, positions = _load(subject, dtype, quantization)
            is_wall = clock == "wall"
            seconds = time.time() - started if is_wall else time.process_time()
            connection.send(Ready(_loaded(model, seconds), machine()))
            last: tuple[int, int] | None = None
            while True:
                request: Request = connection.recv()
                prompts = request.setting.batch, request.setting.input
                with _answering(connection):
                    for run, peak_bytes in measure(
                        model,
                        request.setting,
                        positions,
                        repeats=request.repeats,
                        max_seconds=request.max_seconds,
                        is_warm=prompts == last,
                        clock=time.perf_counter if is_wall else time.process_time,
                    ):
                        connection.send(Measured(run, peak_bytes))
                    last = prompts
                    connection.send(Done())
    except (EOFError, OSError):
        # The study has ended.
        return


def _end_with(parent: int) -> None:
    """End this process where the study was killed in the middle of a setting."""
    while os.getppid() == parent:
        time.sleep(_ORPHAN_SECONDS)
    os._exit(1)


@contextlib.contextmanager
def _answering(connection: Connection) -> Iterator[None]:
    """Send a Failure in place of an exception."""
    try:
        yield
    except (EOFError, BrokenPipeError):
        raise
    except Exception as error:
        from arcft.memory import is_out_of_memory

        first_line = (str(error).splitlines() or [""])[0]
        if is_out_of_memory(error):
            connection.send(Failure("out of memory", f"out of memory ({first_line})"))
        elif isinstance(error, ArcftError):
            connection.send(Failure("failed", str(error)))
        else:
            connection.send(Failure("failed", f"{type(error).__name__}: {first_line}"))


def _load(subject: Subject, dtype: str, quantization: Any) -> tuple[PreTrainedModel, Positions | None]:
    from transformers.utils.logging import disable_progress_bar

    from arcft.decoding.probe import decoder_for
    from arcft.models.load import load_model, load_tokenizer, resolve_dtype
    from arcft.runs.setup.build import choose_device, example_builder
    from arcft.runs.setup.kinds import KINDS

    # It would be drawn across the study's own.
    disable_progress_bar()
    config = dataclasses.replace(subject.model, quantization=quantization)
    device = choose_device()
    model = load_model(config, dtype=resolve_dtype(dtype, device), device=device)
    decoder_for(model)
    if config.positions == "none":
        return model, None
    builder = example_builder(
        KINDS[subject.kind](),
        subject.encoder,
        subject.prompt,
        load_tokenizer(config),
        positions=config.positions,
        max_seq_length=config.recommended.training.max_seq_length,
    )
    return model, builder.tokenization.positions


def _loaded(model: PreTrainedModel, seconds: float) -> Loaded:
    from arcft.decoding.probe import decoder_for
    from arcft.models.quantization import num_parameters

    return Loaded(
        seconds=seconds,
        parameters=num_parameters(model),
        dtype=str(model.dtype).removeprefix("torch."),
        decoder=decoder_for(model).value,
    )


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    import platform

    import psutil
    import torch
    import transformers

    from arcft import __version__

    cuda = torch.cuda.is_available()
    return {
        "device": "cuda" if cuda else "cpu",
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "arcft": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def cpu_name() -> str:
    """As the processor calls itself, e.g. `AMD EPYC 9654`."""
    import platform
    from pathlib import Path

    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line for line in lines if line.startswith("model name")).partition(":")[2].strip()
    return platform.processor() or platform.machine()
