"""Models without weights, on torch's meta device: architecture, adapter and sizes at no cost of memory."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from huggingface_hub import try_to_load_from_cache
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedModel

from arcft import checkpoints
from arcft.config.lora import LoraChoice, LoraConfig
from arcft.config.model import ModelConfig
from arcft.errors import ModelError
from arcft.models.adapter_config import read_adapter_config
from arcft.models.families import choose_attention
from arcft.models.fingerprint import weight_files
from arcft.models.folded_attention import use_folded_attention
from arcft.models.fused_lora import fuse_lora
from arcft.models.lora import add_adapter, apply_lora
from arcft.models.quantization import bitsandbytes_config
from arcft.models.source import load_architecture, model_path, resolve_path, trusts_code


def outline(
    config: ModelConfig,
    lora: LoraChoice,
    *,
    dtype: torch.dtype,
    device: torch.device,
    autocast: torch.dtype,
    vocabulary: int | None = None,
) -> PreTrainedModel | PeftModel:
    """The model that load_model and apply_lora make, on the meta device.

    The arguments are theirs; `device` is where the model would be, and `vocabulary` the number of tokens that a pruned
    one keeps. Raises whatever transformers, PEFT and torch raise
    for a config that can't be read, or an architecture that can't be built without memory.
    """
    architecture = load_architecture(config)
    if vocabulary is not None:
        architecture.get_text_config(decoder=True).vocab_size = vocabulary
        architecture.pad_token_id = None
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            architecture,
            attn_implementation=choose_attention(config, dtype, device),
            dtype=dtype,
            trust_remote_code=trusts_code(config),
        )
        if config.quantization != "none":
            _quantise(model, config, dtype)
        if device.type == "cpu" and torch.bfloat16 in (dtype, autocast):
            use_folded_attention(model)
        if not isinstance(lora, LoraConfig):
            return model
        if lora.start is not None:
            folder = checkpoints.last_checkpoint(Path(lora.start).expanduser())
            adapted = add_adapter(model, read_adapter_config(folder), trainable=True)
        else:
            # What the weights start from makes no difference, and some ways need the values of the base's.
            plain = dataclasses.replace(lora, init_lora_weights=True)
            adapted = apply_lora(model, plain, config.train_modules, seed=0)
        if config.backend == "transformers":
            fuse_lora(adapted)
        return adapted


def _quantise(model: PreTrainedModel, config: ModelConfig, dtype: torch.dtype) -> None:
    from transformers.integrations.bitsandbytes import replace_with_bnb_linear

    settings = bitsandbytes_config(config, dtype, model)
    replace_with_bnb_linear(model, settings.llm_int8_skip_modules, settings)
    # As transformers does; PEFT chooses its layers by it.
    setattr(model, "is_loaded_in_8bit" if config.quantization == "int8" else "is_loaded_in_4bit", True)


def stored_bytes(config: ModelConfig) -> int:
    """Bytes of the weight files at `config.path` that are on this machine."""
    source = resolve_path(model_path(config))
    if Path(source).is_file():
        return Path(source).stat().st_size
    folder = Path(source)
    if not folder.is_dir():
        found = try_to_load_from_cache(source, "config.json")
        if not isinstance(found, str):
            return 0
        folder = Path(found).parent
    try:
        return sum(file.stat().st_size for file in weight_files(str(folder)))
    # None there, or not all of them.
    except (OSError, ValueError, KeyError, ModelError):
        return 0
