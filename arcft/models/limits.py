"""The limits of a model: number of embeddings, and positions in its context."""

from __future__ import annotations

from peft import PeftModel
from transformers import PretrainedConfig, PreTrainedModel

from arcft.config.model import ModelConfig
from arcft.models.load import ModelError
from arcft.models.source import load_architecture


def embedding_rows(model: PreTrainedModel | PeftModel) -> int:
    """The number of token embeddings; the tokenizer may have more or fewer tokens."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    return base.get_input_embeddings().weight.shape[0]  # type: ignore[operator]


def position_limit(architecture: PretrainedConfig) -> int | None:
    """The longest input, in tokens, of a model with this config; None if it is unlimited or unknown."""
    limit = getattr(architecture.get_text_config(), "max_position_embeddings", None)
    # XLNet has no limit and sets -1.
    return limit if isinstance(limit, int) and limit > 0 else None


def refuse_beyond(limit: int | None, *, key: str, value: int, path: str) -> None:
    """Raise ModelError if `value`, a number of tokens set by `key`, exceeds the position limit of the model at `path`.

    Beyond it, learned positions fail with an obscure error, and others give meaningless answers.
    """
    if limit is not None and value > limit:
        raise ModelError(
            f"{key}={value}: the model at {path} takes {limit} tokens at most (max_position_embeddings in its "
            f"config); set {key}={limit} or less"
        )


def stored_position_limit(config: ModelConfig) -> int | None:
    """`position_limit` of the model at `config.path`, without its weights.

    None also if there is no readable config: loading the model reports what is missing.
    """
    try:
        return position_limit(load_architecture(config))
    except (OSError, ValueError, KeyError, ImportError, ModelError):
        return None
