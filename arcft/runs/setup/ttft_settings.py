"""The settings of test-time fine-tuning, resolved and checked before any model library is loaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arcft.config import version_0_1
from arcft.config.lora import LoraConfig
from arcft.config.run import EvaluateConfig
from arcft.config.schema import ConfigError
from arcft.config.ttft import TtftConfig
from arcft.runs.setup.checkpoint_config import OWN_FORMAT, TrainedRun, contradictions, is_pattern, open_checkpoint

if TYPE_CHECKING:
    from arcft.runs.setup.arithmetic import Arithmetic

GROUPS = ("ttft", "lora", "augmentation")
"""Groups of the config that only ttft reads."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TtftSettings:
    """An evaluation's config, completed with what its checkpoint decides."""

    config: EvaluateConfig
    """Its checkpoint is one checkpoint's folder; `ttft` and `lora` are those below."""

    ttft: TtftConfig
    lora: LoraConfig
    """Of the adapters: the checkpoint's own unless they are fresh."""

    max_steps: int
    """Steps of an adapter at most."""

    run: TrainedRun | None
    """None with model=."""

    notes: tuple[str, ...]
    """Where the run deviates from the request."""

    arithmetic: Arithmetic | None = None
    """Of the forward passes; None where each worker finds out."""

    @property
    def identity(self) -> str:
        """sha256 of the checkpoint; empty with model=."""
        return self.run.checkpoint.digest if self.run else ""


def refuse_without_effect(config: EvaluateConfig, explicit: Sequence[str]) -> None:
    """Raise ConfigError for every key set by hand (`explicit`) that nothing would read."""
    problems = []
    if not isinstance(config.ttft, TtftConfig):
        mine = [key for key in explicit if key.partition(".")[0] in GROUPS and key != "ttft"]
        problems = [f"{key}= has no effect with ttft=none; use ttft=per_task, or drop it" for key in mine]
    elif "lora.start" in explicit:
        problems = ["lora.start= has no effect with ttft: checkpoint= names what the adapters start from; drop it"]
    if isinstance(config.ttft, TtftConfig) and config.checkpoint is not None and is_pattern(config.checkpoint):
        problems.append(
            f"checkpoint={config.checkpoint}: ttft={config.ttft.name} starts from one checkpoint; "
            "for several, list them: -m checkpoint=A,B"
        )
    if config.model is None and config.checkpoint is None:
        mine = [key for key in explicit if key.partition(".")[0] in OWN_FORMAT]
        problems += [f"{key}= has no effect without model=; a checkpoint brings its own" for key in mine]
    if problems:
        raise ConfigError(problems)


def resolve_ttft(config: EvaluateConfig, explicit: Sequence[str]) -> TtftSettings:
    """Read the checkpoint, and write into `config`, its paths absolute, what it decides.

    Raises ConfigError where keys set by hand (`explicit`) contradict it, CheckpointError where it can't be read.
    """
    notes = []
    run = None
    if config.checkpoint is not None:
        run = open_checkpoint(Path(config.checkpoint), config.base_model, config.prune_vocabulary)
    model = run.config.model if run else config.model
    assert model is not None  # EvaluateConfig.problems: there is a checkpoint or a model
    assert isinstance(config.ttft, TtftConfig)  # nothing is resolved with ttft=none
    lora, start = config.lora, config.ttft.start
    if not isinstance(lora, LoraConfig):
        raise ConfigError(["lora=none with ttft: an adapter is what is trained for a task; drop it"])
    if run is not None and isinstance(run.config.lora, LoraConfig) and start == "trained":
        problems = contradictions(explicit, config, run.config, ("lora",))
        if problems:
            raise ConfigError([f"{problem}, or start a new adapter with ttft.start=fresh" for problem in problems])
        lora = dataclasses.replace(run.config.lora, start=None)
    elif start == "trained":
        what = f"{run.checkpoint.path} is a whole model with" if run else f"model={model.name} has"
        notes.append(f"{what} no adapter to continue: each starts as a fresh one")
        start = "fresh"
    if model.backend == "unsloth":
        notes.append("model.backend=unsloth: ttft stacks adapters itself, so the model is loaded through transformers")
    max_steps = config.ttft.max_steps or model.recommended.ttft.max_steps
    ttft = dataclasses.replace(config.ttft, start=start, max_steps=max_steps)
    config = dataclasses.replace(config, checkpoint=str(run.checkpoint.path) if run else None, lora=lora, ttft=ttft)
    return TtftSettings(config=config, ttft=ttft, lora=lora, max_steps=max_steps, run=run, notes=tuple(notes))


def ttft_identity(config: EvaluateConfig) -> dict[str, Any]:
    """The keys of ttft that decide the outcome: not where it runs, nor its time budget."""
    written = version_0_1.evaluation_written(config)
    ttft = written["ttft"]
    for name in ("budget", "workers", "num_workers"):
        del ttft[name]
    return {"ttft": ttft, "lora": written["lora"], "augmentation": written["augmentation"]}
