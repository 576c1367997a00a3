"""What a checkpoint of training holds: weights, tokenizer, the run's config, its origin, the state of the loop."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, load_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerState

from arcft import checkpoints
from arcft.checkpoints import Checkpoint, CheckpointError, Origin
from arcft.memory import is_out_of_memory
from arcft.models.lora import load_adapter_weights, save_adapter
from arcft.models.sharding import is_sharded, load_sharded
from arcft.models.vocabulary import PrunedVocabulary, full_vocabulary_size, pruned_vocabulary
from arcft.training.checkpoint_states import CheckpointStates

MODEL_FILE = "model.safetensors"
STATE_FILE = "trainer_state.json"
_LOOP_FILE = "loop_state.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Saving:
    """What goes into every checkpoint of a run, and how many checkpoints are kept."""

    tokenizer: PreTrainedTokenizerBase
    run_config: Mapping[str, Any]
    """The resolved config as nested plain data, written to run.yaml."""

    origin: Origin
    save_total_limit: int
    """Checkpoints kept beside the best one."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopState:
    """State of our training loop that transformers' trainer state lacks, for exact resume."""

    loss_since_log: float
    """Summed loss of the steps since the last log, so that the next log covers the same steps as without a stop."""

    loss_before: float
    """Summed loss of all steps before that, nats."""

    logged_step: int
    """The step of the last log."""

    tokens: int
    """Trained tokens so far, without padding."""

    best_rank: tuple[float, float] | None
    """(best metric, -eval_loss) of the best checkpoint; None before the first evaluation."""

    evaluation_due: bool
    """Whether the run stopped before an evaluation that this step should have had."""

    def write(self, folder: Path) -> None:
        """Write the state into a checkpoint's folder."""
        (folder / _LOOP_FILE).write_text(json.dumps(dataclasses.asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> LoopState:
        """Read what `write` wrote."""
        values = json.loads((folder / _LOOP_FILE).read_text(encoding="utf-8"))
        if values["best_rank"] is not None:
            values["best_rank"] = tuple(values["best_rank"])
        return cls(**values)


def write_checkpoint(
    run: Path,
    saving: Saving,
    model: PreTrainedModel | peft.PeftModel,
    states: CheckpointStates,
    trainer_state: TrainerState,
    loop_state: LoopState,
    save_scaler: Callable[[str], None],
) -> None:
    """Write the checkpoint of `trainer_state`'s step into the run's folder, and remove those that are not kept.

    `save_scaler` writes the state of loss scaling into a folder. Raise CheckpointError, where OSError does not say what
    could not be written.
    """
    step = trainer_state.global_step
    in_words = _failing_in_words(run / f"{checkpoints.PREFIX}{step}")
    with in_words, checkpoints.write_checkpoint(run, step, saving.origin) as folder:
        save_weights(model, folder, states.weights)
        saving.tokenizer.save_pretrained(folder)
        checkpoints.write_run_yaml(folder, saving.run_config)
        states.write(folder)
        save_scaler(str(folder))
        trainer_state.save_to_json(str(folder / STATE_FILE))
        loop_state.write(folder)
    checkpoints.prune(run, saving.save_total_limit, trainer_state.best_global_step)


@contextlib.contextmanager
def _failing_in_words(checkpoint: Path) -> Iterator[None]:
    """Say what could not be written, where libraries raise errors of their own rather than OSError."""
    try:
        yield
    except (SafetensorError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(
            f"{checkpoint}: can't be written ({reason}); what was saved before is complete. Free "
            f"some space, then resume with resume={checkpoint.parent}"
        ) from error


def check_origin(checkpoint: Checkpoint, origin: Origin) -> None:
    """Raise CheckpointError unless a run of `origin` can resume from `checkpoint` as if it had never stopped."""
    for what, key in {"base model": "base_fingerprint", "tasks": "data_fingerprint"}.items():
        theirs, ours = checkpoint.manifest[key], getattr(origin, key)
        if theirs != ours:
            raise CheckpointError(
                f"{checkpoint.path}: was trained with another {what} than this run has now ({key} {theirs[:12]}, here "
                f"{ours[:12]}); resume with what the run was started with, or start a new run from it with lora.start"
            )


def save_weights(
    model: PreTrainedModel | peft.PeftModel, folder: Path, weights: dict[str, torch.Tensor] | None = None
) -> None:
    """Write the adapter in PEFT's format, or without one the whole model, as safetensors in one file.

    `weights` stand in for those of a model that is sharded.
    """
    if isinstance(model, peft.PeftModel):
        save_adapter(model, folder, weights)
        return
    vocabulary = pruned_vocabulary(model)
    if vocabulary is not None:
        weights = vocabulary.widen(model.state_dict() if weights is None else weights)
    with full_vocabulary_size(model):
        model.save_pretrained(folder, max_shard_size="10TB", state_dict=weights)


def load_weights(model: PreTrainedModel | peft.PeftModel, folder: Path) -> None:
    """Load what `save_weights` wrote into a model of the same kind. Raise ArcftError if it does not fit."""
    if isinstance(model, peft.PeftModel):
        load_adapter_weights(model, folder)
        return
    vocabulary = pruned_vocabulary(model)
    try:
        if is_sharded(model):
            state = load_file(folder / MODEL_FILE)
            load_sharded(model, state if vocabulary is None else vocabulary.narrow(state))
        elif vocabulary is None:
            load_model(model, folder / MODEL_FILE, device=str(model.device))
        else:
            _load_narrow(model, vocabulary, folder / MODEL_FILE)
    except (OSError, RuntimeError, SafetensorError) as error:
        if is_out_of_memory(error):
            raise
        raise CheckpointError(f"{folder / MODEL_FILE}: does not fit this model: {error}") from error


def _load_narrow(model: PreTrainedModel, vocabulary: PrunedVocabulary, path: Path) -> None:
    """Load a whole model's weights without the rows that are pruned. Raise RuntimeError if they do not fit."""
    state = vocabulary.narrow(load_file(path))
    # Tied weights have one name among the parameters, and are in the file once.
    lacking = sorted({name for name, _ in model.named_parameters()} - state.keys())
    unexpected = model.load_state_dict(state, strict=False).unexpected_keys
    if lacking or unexpected:
        raise RuntimeError(f"lacks {lacking}, has the extra weights {unexpected}")
