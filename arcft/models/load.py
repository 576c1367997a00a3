"""Loading a base model and its tokenizer from a hub id, a folder, a GGUF file or the package's assets.

Weights are read from safetensors or GGUF only, never from pickles. Random weights are drawn on the CPU in float32 from
the config's own seed, so that they are the same base model on every device and in every dtype.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import struct
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from arcft.config.model import ModelConfig
from arcft.errors import ModelError
from arcft.memory import OutOfMemoryError, is_out_of_memory, release_memory
from arcft.models.backend import import_backend
from arcft.models.bundled import BUNDLED, check_tokenizer, check_weights
from arcft.models.families import choose_attention
from arcft.models.folded_attention import use_folded_attention
from arcft.models.gguf_tokenizer import load_gguf_tokenizer
from arcft.models.positional_kernels import set_positional_kernels
from arcft.models.quantization import (
    FOUR_BITS,
    bitsandbytes_config,
    no_progress_bar,
    prepare_quantised,
    quantise,
)
from arcft.models.source import hub_options, load_architecture, model_path, not_loaded, resolve_path, trusts_code


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of the arithmetic: `auto` is float32 on a CPU, and on a GPU bfloat16 if it is fast, else float16."""
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]
    if device.type != "cuda":
        return torch.float32
    # Below compute capability 8, bfloat16 is emulated and slow.
    return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16


def fast_bfloat16() -> bool:
    """Whether the CPU has instructions for products in bfloat16: AVX512-BF16, or AMX."""
    # torch has no public functions for these.
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """The tokenizer at `config.tokenizer`, by default at `config.path`. Raise ModelError if it can't be loaded."""
    key, path = ("model.tokenizer", config.tokenizer) if config.tokenizer else ("model.path", model_path(config))
    source = resolve_path(path)
    # Random weights go with any tokenizer.
    if path.startswith(BUNDLED) and config.init == "pretrained":
        check_tokenizer(path)
    if source.endswith(".gguf"):
        return load_gguf_tokenizer(Path(source))
    trust = trusts_code(config)
    loader = PreTrainedTokenizerFast if _is_generic(Path(source)) else AutoTokenizer
    try:
        tokenizer = loader.from_pretrained(source, trust_remote_code=trust, **hub_options(source))
    # The tokenizers library raises plain Exception.
    except Exception as error:
        raise ModelError(not_loaded(key, path, "a tokenizer", error)) from error
    # It would remove spaces before punctuation, which are part of the text here.
    tokenizer.clean_up_tokenization_spaces = False
    return tokenizer


def _is_generic(folder: Path) -> bool:
    """Whether the tokenizer in `folder` is of a generic class, with all its rules in tokenizer.json.

    Next to a config.json of some types (Qwen2), AutoTokenizer would replace its rules by the type's.
    """
    settings = folder / "tokenizer_config.json"
    if not settings.is_file() or not (folder / "tokenizer.json").is_file():
        return False
    try:
        name = json.loads(settings.read_text(encoding="utf-8")).get("tokenizer_class")
    except (ValueError, AttributeError):
        return False  # loading it will report the error
    return name in ("PreTrainedTokenizerFast", "TokenizersBackend")


def load_model(
    config: ModelConfig,
    *,
    dtype: torch.dtype,
    device: torch.device,
    autocast: torch.dtype | None = None,
    max_seq_length: int | None = None,
) -> PreTrainedModel:
    """Load a base model, in evaluation mode.

    Args:
        config: Which model, and how.
        dtype: Dtype of the weights. To train all weights use float32 under autocast; weights that are frozen under an
            adapter may have the dtype of the arithmetic.
        device: Where the weights go.
        autocast: The dtype of autocast, if the model will run under it.
        max_seq_length: Maximum context in tokens; only unsloth needs it.

    On a CPU, sdpa attention in bfloat16 is replaced by models/folded_attention.py. Raise ModelError, or
    OutOfMemoryError.
    """
    try:
        if config.backend == "unsloth":
            return _load_unsloth(config, dtype, max_seq_length)
        config = dataclasses.replace(config, attn_implementation=choose_attention(config, dtype, device))
        if config.init == "random":
            model = draw_random_model(config)
            if config.quantization != "none":
                model = quantise(model, config, dtype, device)
            else:
                model = model.to(device=device, dtype=dtype)  # type: ignore[call-arg]
        else:
            model = _load_pretrained(config, dtype, device)
        if config.quantization != "none":
            prepare_quantised(model, config)
    except (
        OSError,
        ValueError,
        KeyError,
        ImportError,
        RuntimeError,
        MemoryError,
        SafetensorError,
        struct.error,
    ) as error:
        if is_out_of_memory(error):
            raise OutOfMemoryError(_too_large(config, device, release_memory(error))) from None
        raise ModelError(not_loaded("model.path", model_path(config), "a causal language model", error)) from error
    if device.type == "cpu" and torch.bfloat16 in (dtype, autocast):
        use_folded_attention(model)
    return model.eval()


def _too_large(config: ModelConfig, device: torch.device, words: str) -> str:
    where = "GPU memory" if device.type == "cuda" else "memory"
    # What is quantised after it was loaded whole takes no less.
    dense_first = config.init == "random" or model_path(config).endswith(".gguf")
    remedy = "" if dense_first or config.quantization != "none" else "model.quantization=nf4, "
    return (
        f"model.path={config.path}: the model does not fit into {where} ({words}); use {remedy}a smaller model, or a "
        "machine with more memory"
    )


def draw_random_model(config: ModelConfig) -> PreTrainedModel:
    """A model of the architecture at `config.path` with weights drawn from `config.seed`, in float32 on the CPU.

    Positional kernels are set if its config has them. The global random state is unchanged."""
    architecture = load_architecture(config)
    trust = trusts_code(config)
    attention = choose_attention(config, torch.float32, torch.device("cpu"))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        model = AutoModelForCausalLM.from_config(
            architecture, attn_implementation=attention, dtype=torch.float32, trust_remote_code=trust
        )
    set_positional_kernels(model)
    return model


def _load_pretrained(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    source = resolve_path(model_path(config))
    if model_path(config).startswith(BUNDLED):
        check_weights(model_path(config))
    options: dict[str, Any] = {
        "dtype": dtype,
        "attn_implementation": config.attn_implementation,
        "device_map": {"": device},
    }
    if source.endswith(".gguf"):
        if config.quantization == "none":
            return _load_gguf(Path(source), options)
        # bitsandbytes quantises dense weights only; on the CPU, because they may not fit on a GPU.
        dense = _load_gguf(Path(source), options | {"device_map": {"": "cpu"}})
        return quantise(dense, config, dtype, device)
    if config.quantization != "none":
        with torch.device("meta"):
            outline = AutoModelForCausalLM.from_config(
                load_architecture(config), dtype=dtype, trust_remote_code=trusts_code(config)
            )
        options["quantization_config"] = bitsandbytes_config(config, dtype, outline)
    # Bundled models load too fast for a progress bar.
    with no_progress_bar() if model_path(config).startswith(BUNDLED) else contextlib.nullcontext():
        return AutoModelForCausalLM.from_pretrained(
            source, use_safetensors=True, trust_remote_code=trusts_code(config), **options, **hub_options(source)
        )


def _load_gguf(path: Path, options: dict[str, Any]) -> PreTrainedModel:
    # Recent transformers keeps quantised blocks if it has a kernel for them; older releases always dequantise, and
    # lack this class. Only a dense model can be saved again.
    if "GgufConfig" in dir(transformers):
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    return AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, **options)


def _load_unsloth(config: ModelConfig, dtype: torch.dtype, max_seq_length: int | None) -> PreTrainedModel:
    unsloth: Any = import_backend(config)
    model, _ = unsloth.FastLanguageModel.from_pretrained(
        model_name=resolve_path(model_path(config)),
        max_seq_length=max_seq_length,
        dtype=dtype,
        load_in_4bit=config.quantization in FOUR_BITS,
        load_in_8bit=config.quantization == "int8",
        trust_remote_code=trusts_code(config),
    )
    return model
