"""Restore the model and the text format from a checkpoint."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from arcft.checkpoints import CheckpointError
from arcft.config.inference import InferenceConfig
from arcft.config.lora import LoraConfig
from arcft.config.model import ModelConfig
from arcft.config.schema import to_dict
from arcft.models.adapter_config import CONFIG_FILE as ADAPTER_CONFIG
from arcft.models.fingerprint import base_fingerprint
from arcft.models.fused_lora import fuse_lora
from arcft.models.load import ModelError, load_model, load_tokenizer, resolve_dtype
from arcft.models.lora import load_adapter, load_adapter_weights
from arcft.models.vocabulary import prune_vocabulary
from arcft.runs.setup.build import choose_device, example_builder, settle_decoder
from arcft.runs.setup.checkpoint_config import TrainedRun, check_base
from arcft.runs.setup.kinds import kind_of
from arcft.text.builder import ExampleBuilder

Kept = tuple[int, ...] | None
"""Ids that a pruned vocabulary keeps; None for all."""


def restored_tokenizer(run: TrainedRun) -> PreTrainedTokenizerBase:
    """The tokenizer stored in the checkpoint."""
    return load_tokenizer(ModelConfig(name=run.config.model.name, path=str(run.checkpoint.path)))


def restored_builder(run: TrainedRun, tokenizer: PreTrainedTokenizerBase, max_seq_length: int) -> ExampleBuilder:
    """The run's own encoder and prompt, for prompts of up to `max_seq_length` tokens, demonstrations dropped to fit."""
    return example_builder(
        kind_of(run.config.data),
        run.config.encoder,
        run.config.prompt,
        tokenizer,
        positions=run.config.model.positions,
        max_seq_length=max_seq_length,
        drop_demonstrations=True,
    )


def base_model(run: TrainedRun) -> ModelConfig:
    """The model to load for restoring `run`: its base model, or the checkpoint itself if it holds a whole model."""
    if isinstance(run.config.lora, LoraConfig):
        return run.config.model
    return ModelConfig(
        name=run.config.model.name,
        path=str(run.checkpoint.path),
        prune_vocabulary=run.config.model.prune_vocabulary,
    )


def base_of_adapters(run: TrainedRun) -> ModelConfig:
    """The model that adapters started from `run` belong to: its base model, or `run` itself if it holds a whole model.

    Unlike `base_model`, with everything that the run knows about its model.
    """
    if isinstance(run.config.lora, LoraConfig):
        return run.config.model
    path = str(run.checkpoint.path)
    return dataclasses.replace(run.config.model, path=path, tokenizer=None, init="pretrained", seed=0)


def base_not_loaded(run: TrainedRun, error: ModelError) -> CheckpointError:
    """The error for a run whose base model can't be loaded."""
    return CheckpointError(
        f"{run.checkpoint.path}: its base model can't be loaded: {error}. If it lies elsewhere now: base_model=DIR"
    )


class ModelHost:
    """Holds one base model and applies a checkpoint's adapter to it; reloads the base only if it differs."""

    def __init__(self, inference: InferenceConfig) -> None:
        self._inference = inference
        self._base: tuple[dict[str, Any], Kept, str] | None = None
        self._fingerprint = ""
        self._adapter = b""
        self._model: PreTrainedModel | PeftModel | None = None

    def plain(self, config: ModelConfig, kept: Kept = None, dtype: str | None = None) -> PreTrainedModel:
        """The model of `config` without an adapter, in place of the one that is held: a large model does not fit
        twice. With `kept`, of a PrunedTokenizer, it has these tokens only; `dtype` replaces inference.dtype."""
        self._forget()
        return self._load(config, kept, dtype)

    def _load(self, config: ModelConfig, kept: Kept, dtype: str | None) -> PreTrainedModel:
        # Only now, because a process that delegates the work must not occupy a GPU.
        device = choose_device()
        model = load_model(config, dtype=resolve_dtype(dtype or self._inference.dtype, device), device=device)
        settle_decoder(model, self._inference, config, context=self._inference.max_seq_length)
        self._fingerprint = base_fingerprint(config, model)
        if kept is not None:
            prune_vocabulary(model, kept, trains_rows=False)
        return model

    def restored(self, run: TrainedRun, kept: Kept = None, dtype: str | None = None) -> PreTrainedModel | PeftModel:
        """The trained model of `run`, for inference; `kept` and `dtype` as in `plain`. Raises CheckpointError if its
        base model has changed."""
        folder = run.checkpoint.path
        if not isinstance(run.config.lora, LoraConfig):
            self._forget()
            return self._load(base_model(run), kept, dtype)
        identity = to_dict(run.config.model), kept, dtype or ""
        if self._model is None or self._base != identity:
            self._forget()
            try:
                self._model = self._load(run.config.model, kept, dtype)
            except ModelError as error:
                raise base_not_loaded(run, error) from error
            self._base = identity
        check_base(run, self._fingerprint, str(run.config.model.path))
        adapter = (folder / ADAPTER_CONFIG).read_bytes()
        if isinstance(self._model, PeftModel) and adapter == self._adapter:
            load_adapter_weights(self._model, folder)
            return self._model
        if isinstance(self._model, PeftModel):
            # An adapter of another shape: its wrappers can't be removed exactly, so the base is reloaded. The old
            # one is freed first, because a large model does not fit twice.
            self._forget()
            self._model, self._base = self._load(run.config.model, kept, dtype), identity
        self._model = load_adapter(self._model, folder, trainable=False)
        if self._model.dtype in (torch.bfloat16, torch.float16):
            fuse_lora(self._model)  # as in training: PEFT rounds the base's product first
        self._adapter = adapter
        return self._model

    def _forget(self) -> None:
        self._model = None
        self._base = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
