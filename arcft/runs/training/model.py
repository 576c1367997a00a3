"""The model of a training run: loaded, pruned and adapted; its dtype, and what it allows."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from arcft import ranks
from arcft.config.lora import LoraConfig
from arcft.config.run import TrainConfig
from arcft.config.training import TrainingConfig
from arcft.console import note
from arcft.models.base_model import base_model
from arcft.models.fingerprint import base_fingerprint
from arcft.models.fused_lora import fuse_lora
from arcft.models.limits import embedding_rows
from arcft.models.load import ModelError, load_model, resolve_dtype
from arcft.models.lora import apply_lora, load_adapter
from arcft.models.packed_attention import packs
from arcft.models.sharding import Strategy
from arcft.models.vocabulary import prune_vocabulary
from arcft.runs.setup.arithmetic import auto_dtype, auto_in_words, dtype_name
from arcft.runs.setup.build import settle_decoder
from arcft.runs.setup.checkpoint_config import check_base, open_checkpoint
from arcft.runs.training.preparation import Prepared


def with_dtype(config: TrainConfig, device: torch.device) -> TrainConfig:
    """`config` with the dtype that training.dtype=auto stands for here, so that the run's files keep it."""
    if config.training.dtype != "auto":
        return config
    dtype = auto_dtype(config.model, device, frozen=isinstance(config.lora, LoraConfig))
    if dtype != resolve_dtype("auto", device):
        note(auto_in_words("training.dtype", dtype, device))
    name: Any = dtype_name(dtype)
    return dataclasses.replace(config, training=dataclasses.replace(config.training, dtype=name))


def build_model(
    config: TrainConfig, device: torch.device, kept: Sequence[int] | None = None
) -> tuple[PreTrainedModel | PeftModel, str]:
    """The model to train, and the fingerprint of its base weights. `kept` are the tokens of a pruned vocabulary."""
    # Trained weights are float32; frozen ones have the dtype of the arithmetic.
    arithmetic = resolve_dtype(config.training.dtype, device)
    base = load_model(
        config.model,
        dtype=arithmetic if isinstance(config.lora, LoraConfig) else torch.float32,
        device=device,
        autocast=arithmetic,
        max_seq_length=config.training.max_seq_length,
    )
    settle_decoder(base, config.inference, config.model, context=config.training.max_seq_length)
    fingerprint = base_fingerprint(config.model, base)
    if kept is not None:
        trains_rows = bool(config.model.train_modules) or not isinstance(config.lora, LoraConfig)
        prune_vocabulary(base, kept, trains_rows=trains_rows)
    if not isinstance(config.lora, LoraConfig):
        return base, fingerprint
    if config.lora.start is not None:
        start = open_checkpoint(Path(config.lora.start).expanduser())
        check_base(start, fingerprint, str(config.model.path))
        adapted = load_adapter(base, start.checkpoint.path, trainable=True)
    else:
        adapted = apply_lora(
            base, config.lora, config.model.train_modules, seed=config.training.seed, backend=config.model.backend
        )
    if config.model.backend == "transformers":
        fuse_lora(adapted)
    return adapted, fingerprint


def with_packing(config: TrainConfig, model: PreTrainedModel | PeftModel) -> TrainConfig:
    """`config` with training.packing=false where the model does not allow it; a note says why."""
    if not config.training.packing:
        return config
    reason = _why_padded(config, model)
    if reason is None:
        return config
    note(f"training.packing=true: examples are padded instead, because {reason}")
    return dataclasses.replace(config, training=dataclasses.replace(config.training, packing=False))


def _why_padded(config: TrainConfig, model: PreTrainedModel | PeftModel) -> str | None:
    base = base_model(model)
    if base.config._attn_implementation == "flex_attention" and config.model.positions != "none":
        return "flex attention would cut packed ones where positions jump"
    if packs(model):
        return None
    if base.config._attn_implementation == "eager":
        return "packed ones need an attention other than eager"
    return f"packed ones would see each other in a model of type {base.config.model_type}"


def check_vocabulary(config: TrainConfig, prepared: Prepared, model: PreTrainedModel | PeftModel) -> None:
    """Raise ModelError where the tokenizer belongs to another model: it writes tokens without an embedding.

    Checks only the tokens in use: some tokenizers have more tokens, for images, than their model has embeddings.
    """
    rows = embedding_rows(model)
    highest = max(*prepared.stream[0].input_ids, *prepared.builder.tokenization.end_ids)
    if highest >= rows:
        raise ModelError(
            f"model.tokenizer={config.model.tokenizer or config.model.path}: writes token {highest}, but the model at "
            f"{config.model.path} has embeddings for {rows} tokens only; give the tokenizer that belongs to it"
        )


def chosen_sharding(training: TrainingConfig) -> Strategy | None:
    """How the model is sharded; a single process keeps it whole."""
    if training.fsdp is not None and ranks.launched() == 1:
        note(f"training.fsdp={training.fsdp}: a single process keeps the whole model; start several with torchrun")
        return None
    return training.fsdp
