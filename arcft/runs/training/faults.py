"""Faults of a training run outside its steps, as errors in words: memory that runs out, processes that die."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from arcft import ranks
from arcft.checkpoints import RUN_FILE
from arcft.config.lora import LoraConfig
from arcft.config.run import TrainConfig
from arcft.memory import OutOfMemoryError, is_out_of_memory, release_memory
from arcft.runs.common.command import command
from arcft.runs.common.paths import override
from arcft.training import collectives


@contextlib.contextmanager
def faults_in_words(config: TrainConfig, folder: Path) -> Iterator[None]:
    """Raise OutOfMemoryError where memory runs out, and LostRankError where another rank dies."""
    try:
        with collectives.lost_ranks_in_words(lambda: _lost(folder)):
            yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        words = release_memory(error)
        raise OutOfMemoryError(
            f"out of memory outside the training steps ({words}); use {' or '.join(_less_memory(config))}, or train "
            "where there is more memory"
        ) from None


def _less_memory(config: TrainConfig) -> Iterator[str]:
    if config.model.quantization == "none" and isinstance(config.lora, LoraConfig):
        yield "model.quantization=nf4"
    yield "a smaller model"
    if ranks.local_count() > 1:
        yield f"fewer than {ranks.local_count()} processes on a machine"


def _lost(folder: Path) -> str:
    died = f"another of the {ranks.launched()} processes died"
    if not (folder / RUN_FILE).is_file():
        return f"{died} before the first step, for example because the machine ran out of memory; start the run again"
    return (
        f"{died}, so the run stops; its checkpoints are complete. Resume with: {command('train')} "
        f"{override('resume', folder)}"
    )
