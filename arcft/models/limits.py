"""What a model has room for: tokens in its embedding, positions in its context."""

from __future__ import annotations

from peft import PeftModel
from transformers import PretrainedConfig, PreTrainedModel

from arcft.config.model import ModelConfig
from arcft.models.load import ModelError
from arcft.models.source import load_architecture


def embedding_rows(model: PreTrainedModel | PeftModel) -> int:
    """Token ids from 0 to below this have an embedding; a tokenizer may know more, or fewer."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    return base.get_input_embeddings().weight.shape[0]  # type: ignore[operator]


def position_limit(architecture: PretrainedConfig) -> int | None:
    """The most tokens that a model of this config takes; None where its kind has no such limit, or does not say it."""
    limit = getattr(architecture.get_text_config(), "max_position_embeddings", None)
    # XLNet, which has no limit, says -1.
    return limit if isinstance(limit, int) and limit > 0 else None


def refuse_beyond(limit: int | None, *, key: str, value: int, path: str) -> None:
    """Raise ModelError where `key`, a number of tokens, is above the position limit of the model at `path`.

    Learned positions end there with an error from deep inside; others lead to answers that mean little.
    """
    if limit is not None and value > limit:
        raise ModelError(
            f"{key}={value}: the model at {path} takes {limit} tokens at most (max_position_embeddings in its "
            f"config); set {key}={limit} or less"
        )


def stored_position_limit(config: ModelConfig) -> int | None:
    """`position_limit` of the model at `config.path`, without its weights.

    None also where there is no config to be read: what is missing is told where the model is loaded.
    """
    try:
        return position_limit(load_architecture(config))
    except (OSError, ValueError, KeyError, ImportError, ModelError):
        return None
