"""Measure how fast a loaded model completes prompts, as evaluate.py does it: with arcft's decoder, or generate."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from arcft.config.speed import Setting
from arcft.decoding.decode import decode
from arcft.decoding.options import DecodingOptions
from arcft.memory import peak_bytes, reset_peak
from arcft.models.limits import embedding_rows
from arcft.protocols import Positions
from arcft.reporting.speed.rows import Run

Clock = Callable[[], float]

_WARM_UP_TOKENS = 4
_LOW = 100
"""Smallest token id in prompts; lower ids are often special tokens."""


def measure(
    model: PreTrainedModel,
    setting: Setting,
    positions: Positions | None,
    *,
    repeats: int,
    max_seconds: float,
    is_warm: bool = False,
    clock: Clock = time.perf_counter,
) -> Iterator[tuple[Run, int]]:
    """Complete random prompts as `setting` says, `repeats` times; yield each run with the peak memory so far, in bytes.

    Only `batch`, `input` and `output` of the setting count here. No token ends an answer, so each has exactly `output`
    tokens. Before that the prompts are completed by a few tokens, which is not counted, unless `is_warm` says that
    this process has done so already. Stops after fewer runs where another one would go beyond `max_seconds`, but not
    before the first.
    """
    begun = time.perf_counter()
    prompts = random_prompts(setting, embedding_rows(model))
    reset_peak(model.device)
    if not is_warm:
        complete(model, prompts, min(setting.output, _WARM_UP_TOKENS), positions)
    for _ in range(repeats):
        last = time.perf_counter()
        run = complete(model, prompts, setting.output, positions, clock)
        now = time.perf_counter()
        yield run, peak_bytes(model.device)
        if now - begun + (now - last) > max_seconds:
            return


def random_prompts(setting: Setting, vocabulary: int) -> list[list[int]]:
    """Token ids, the same for the same lengths."""
    generator = np.random.default_rng((setting.batch, setting.input))
    low = min(_LOW, vocabulary // 2)
    return generator.integers(low, vocabulary, (setting.batch, setting.input)).tolist()


def complete(
    model: PreTrainedModel,
    prompts: list[list[int]],
    output: int,
    positions: Positions | None,
    clock: Clock = time.perf_counter,
) -> Run:
    """Complete the prompts greedily by exactly `output` tokens each; `clock` gives seconds."""
    options = DecodingOptions(pad_id=0, positions=positions)
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    with _starts_after(model, sum(map(len, prompts)), clock) as starts:
        begun = clock()
        # The ids of the tokens are on the CPU at the end, so a GPU has nothing left to do.
        decode(model, prompts, options, max_new_tokens=output)
        ended = clock()
    first = starts[0] if starts else ended
    return Run(first_token_seconds=first - begun, seconds=ended - begun)


@contextlib.contextmanager
def _starts_after(model: nn.Module, prompt_tokens: int, clock: Clock) -> Iterator[list[float]]:
    """Collects the starts of the passes that begin when all `prompt_tokens` have been fed: at the first of them, the
    first token of every answer is chosen, and on the CPU."""
    fed = 0
    starts: list[float] = []

    def note_start(module: nn.Module, args: tuple[object, ...], arguments: dict[str, torch.Tensor]) -> None:
        nonlocal fed
        if fed >= prompt_tokens:
            starts.append(clock())
        fed += arguments["input_ids"].numel()

    handle = model.register_forward_pre_hook(note_start, with_kwargs=True)
    try:
        yield starts
    finally:
        handle.remove()
