"""Writing a model and its tokenizer as a GGUF file, for llama.cpp and what is built on it.

Keys and tensor layouts are those of llama.cpp's convert_hf_to_gguf.py; names come from the gguf package's table.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from arcft.errors import ModelError
from arcft.models.gguf_tokenizer import write_gguf_tokenizer

GGUF_TYPES = {
    "float32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "float16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "bfloat16": (gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}
"""By export's dtype: the type of the weight matrices, and what the file says of itself."""

_ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "mistral": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
}
_BLOCK = 32
_QWEN_3_HEAD = 128


def check_architecture(config: PretrainedConfig, *, path: str, positions: str) -> None:
    """Raise ModelError where a model of `config`, found at `path`, can't be written as GGUF, or would compute something
    else there."""
    kind = config.model_type
    if kind not in _ARCHITECTURES:
        raise ModelError(
            f"format=gguf: {path} is of type {kind}, and only {', '.join(_ARCHITECTURES)} are written; use "
            "format=merged"
        )
    if positions != "none":
        raise ModelError(
            f"format=gguf: the model was trained with model.positions={positions}, and llama.cpp only counts "
            "positions; use format=merged"
        )
    rope = config.rope_parameters["rope_type"]
    if rope != "default":
        raise ModelError(
            f"format=gguf: {path} has rotary positions of type {rope}, and only the default type is written; use "
            "format=merged"
        )
    values = config.to_dict()
    window = values.get("sliding_window")
    if window is not None and window < config.max_position_embeddings and values.get("use_sliding_window", True):
        raise ModelError(
            f"format=gguf: {path} has an attention window of {window} tokens, which llama.cpp does not apply to models "
            f"of type {kind}; use format=merged"
        )
    # transformers, which reads the file back here, knows neither.
    if kind != "qwen2" and (values.get("attention_bias") or values.get("mlp_bias")):
        raise ModelError(f"format=gguf: {path} has biases, which are only written for qwen2; use format=merged")
    if kind == "qwen3" and values["head_dim"] != _QWEN_3_HEAD:
        raise ModelError(
            f"format=gguf: {path} has heads of {values['head_dim']}, and transformers reads all qwen3 files with heads "
            f"of {_QWEN_3_HEAD}; use format=merged"
        )


@torch.no_grad()
def write_gguf(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pieces: str,
    path: Path,
    dtype: str,
    name: str,
    end_id: int | None = None,
) -> None:
    """Write `model`, with dense float32 weights on the CPU, and its tokenizer.

    Args:
        model: Of an architecture that `check_architecture` lets pass.
        tokenizer: Byte-level, cut as `pieces` says (`pretokenizer_of`).
        pieces: The name of the pre-tokenizer in llama.cpp.
        path: The file.
        dtype: A key of GGUF_TYPES. Vectors stay in float32; under q8_0, rows whose length is no multiple of 32 are
            float16.
        name: What the file calls the model.
        end_id: The token that ends an answer, where programs shall stop, beside the tokenizer's own end.
    """
    config: Any = model.config
    architecture = _ARCHITECTURES[config.model_type]
    _, file_type = GGUF_TYPES[dtype]
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture])
    # transformers 5.17 takes files of that name for an architecture that the gguf package does not know.
    writer.add_name("Mistral" if name == "mistral" else name)
    _add_shape(writer, config)
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    write_gguf_tokenizer(writer, tokenizer, pieces, config.vocab_size, end_id)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    for key, weight in tensors_of(model).items():
        values = weight.numpy()
        own = _stored_type(values.shape, dtype)
        new_name = names.get_name(key, try_suffixes=(".weight", ".bias"))
        if new_name is None:
            raise ModelError(f"format=gguf: llama.cpp has no place for the weight {key}; use format=merged")
        if architecture == gguf.MODEL_ARCH.LLAMA and ("q_proj" in key or "k_proj" in key):
            heads = config.num_attention_heads if "q_proj" in key else config.num_key_value_heads
            values = _interleaved(values, heads)
        writer.add_tensor(new_name, gguf.quants.quantize(values, own), raw_dtype=own)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tensors_of(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The weights that a file holds: a head that is tied to the embedding is left out."""
    weights = {name: weight.float().contiguous() for name, weight in model.state_dict().items()}
    if model.config.get_text_config().tie_word_embeddings:
        weights.pop("lm_head.weight", None)
    return weights


def rounded(weight: torch.Tensor, dtype: str) -> torch.Tensor:
    """`weight`, float32, as a file of `dtype` gives it back."""
    kind = _stored_type(weight.shape, dtype)
    stored = gguf.quants.quantize(weight.numpy(), kind)
    return torch.from_numpy(np.array(gguf.quants.dequantize(stored, kind))).reshape(weight.shape)


def _stored_type(shape: Sequence[int], dtype: str) -> gguf.GGMLQuantizationType:
    """The type of a weight of `shape` in a file of `dtype`."""
    kind = GGUF_TYPES[dtype][0] if len(shape) > 1 else gguf.GGMLQuantizationType.F32
    in_blocks = kind == gguf.GGMLQuantizationType.Q8_0
    return gguf.GGMLQuantizationType.F16 if in_blocks and shape[-1] % _BLOCK else kind


def _add_shape(writer: gguf.GGUFWriter, config: Any) -> None:
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def _interleaved(values: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key projection [heads * head_dim, ...] in the order of Meta's Llama, which rotates neighbours
    where transformers rotates halves."""
    halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(values.shape))
