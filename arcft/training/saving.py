"""What a checkpoint holds beside the trainer's own state: weights, tokenizer, the run's config, where it comes from."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
from safetensors import SafetensorError
from safetensors.torch import load_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from arcft.checkpoints import Checkpoint, CheckpointError, Origin
from arcft.models.lora import load_adapter_weights, save_adapter

MODEL_FILE = "model.safetensors"
STATE_FILE = "trainer_state.json"
LOOP_FILE = "loop_state.json"
"""What our trainer knows beside transformers' own state."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Saving:
    """What goes into every checkpoint of a run, and how many are kept."""

    tokenizer: PreTrainedTokenizerBase
    run_config: Mapping[str, Any]
    """Nested plain data, written to run.yaml."""

    origin: Origin
    save_total_limit: int
    """Checkpoints kept beside the best one."""


def check_origin(checkpoint: Checkpoint, origin: Origin) -> None:
    """Raise CheckpointError unless a run of `origin` can go on from `checkpoint` as if it had never stopped."""
    for what, key in {"base model": "base_fingerprint", "tasks": "data_fingerprint"}.items():
        theirs, ours = checkpoint.manifest[key], getattr(origin, key)
        if theirs != ours:
            raise CheckpointError(
                f"{checkpoint.path}: was trained with another {what} than this run has now ({key} {theirs[:12]}, here "
                f"{ours[:12]}); resume with what the run was started with, or start a new run from it with lora.start"
            )


def save_weights(model: PreTrainedModel | peft.PeftModel, folder: Path) -> None:
    """Write an adapter in PEFT's format, or the whole model, as safetensors in one file."""
    if isinstance(model, peft.PeftModel):
        save_adapter(model, folder)
    else:
        model.save_pretrained(folder, max_shard_size="10TB")


def load_weights(model: PreTrainedModel | peft.PeftModel, folder: Path) -> None:
    """The inverse of save_weights, into a model of the same kind; raises ArcftError where it does not fit."""
    if isinstance(model, peft.PeftModel):
        load_adapter_weights(model, folder)
        return
    try:
        load_model(model, folder / MODEL_FILE, device=str(model.device))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{folder / MODEL_FILE}: does not fit this model: {error}") from error


def read_loop_state(checkpoint: Path) -> dict[str, Any]:
    """What a trainer wrote to LOOP_FILE."""
    return json.loads((checkpoint / LOOP_FILE).read_text(encoding="utf-8"))
