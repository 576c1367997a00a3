"""Limits of a model: the size of its embedding, and the length of its context."""

from __future__ import annotations

from typing import cast

import torch
from peft import PeftModel
from transformers import PretrainedConfig, PreTrainedModel

from arcft.config.model import ModelConfig
from arcft.models.base_model import base_model
from arcft.models.load import ModelError
from arcft.models.source import load_architecture


def embedding_rows(model: PreTrainedModel | PeftModel) -> int:
    """Number of rows of the input embedding. The tokenizer's vocabulary may be smaller or larger."""
    return cast(torch.Tensor, base_model(model).get_input_embeddings().weight).shape[0]


def position_limit(architecture: PretrainedConfig) -> int | None:
    """The maximum number of tokens in the context; None if the architecture has no limit, or does not state it."""
    limit = getattr(architecture.get_text_config(), "max_position_embeddings", None)
    # XLNet has no limit and says -1.
    return limit if isinstance(limit, int) and limit > 0 else None


def refuse_beyond(limit: int | None, *, key: str, value: int, path: str) -> None:
    """Raise ModelError if `value`, the number of tokens that the config sets by `key`, exceeds the model's `limit`.

    Beyond it, models with learned positions fail with an obscure error, and others produce nonsense.
    """
    if limit is not None and value > limit:
        raise ModelError(
            f"{key}={value}: the model at {path} takes at most {limit} tokens (max_position_embeddings in its "
            f"config); set {key}={limit} or less"
        )


def stored_position_limit(config: ModelConfig) -> int | None:
    """`position_limit` of the model at `config.path`, without loading its weights.

    None also if its config can't be read; that is reported when the model is loaded.
    """
    try:
        return position_limit(load_architecture(config))
    except (OSError, ValueError, KeyError, ImportError, ModelError):
        return None
