"""The model of transformers inside a PEFT model."""

from __future__ import annotations

from peft import PeftModel
from transformers import PreTrainedModel


def base_model(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """`model` without the wrapper of its adapter; the adapter's layers stay in place."""
    return model.get_base_model() if isinstance(model, PeftModel) else model  # type: ignore[return-value]
