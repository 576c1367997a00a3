"""How models of each architecture can be decoded, as measured by tests/models/test_families.py.

arcft's decoder places rows of different lengths side by side, with masks and positions of its own. An architecture that
works out masks, windows, positions or states by itself would compute something else, often without an error. Such
models go through transformers' `generate`, prompts of equal length together and so without padding, or are refused.
What is not listed here is measured when it is loaded (arcft/decoding/probe.py).
"""

from __future__ import annotations

import enum
from typing import Any

import torch
import transformers
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PretrainedConfig
from transformers.utils import is_flash_attn_2_available, is_kernels_available

from arcft.config.model import ModelConfig
from arcft.errors import ModelError
from arcft.models.source import load_architecture, model_path


class Decoder(enum.Enum):
    """What completes the prompts of a model."""

    OWN = "arcft's decoder"
    GENERATE = "transformers' generate"


CANNOT_SEARCH = (
    "inference=search needs arcft's own decoder, and a model of this architecture goes through transformers' generate; "
    "use inference=greedy or inference=sample"
)
"""Why inference=search is refused for Decoder.GENERATE."""


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


MEASURED_WITH = (5, 17)
"""The transformers release (major, minor) that the lists were measured with; in another, every model is measured."""

_OWN = _names(
    """
    afmoe apertus arcee aria_text axk1 biogpt bitnet codegen cohere cohere2 cohere2_moe ctrl cwm deepseek_v2
    deepseek_v3 diffllama dots1 ernie4_5 ernie4_5_moe exaone4 exaone_moe falcon flex_olmo gemma gemma2 gemma3_text
    gemma3n_text gemma4_text gemma4_unified_text glm glm4 glm4_moe glm4_moe_lite gpt-sw3 gpt2 gpt_bigcode gpt_neox
    gpt_neox_japanese gpt_oss gptj granite granite_swa granitemoe granitemoe_swa granitemoeshared helium hrm_text
    hunyuan_v1_dense hunyuan_v1_moe hy_v3 hyperclovax jais2 jetmoe laguna llama mellum mimo_v2_flash minicpm3
    minimax_m2 minimax_m3_vl_text ministral ministral3 mistral mixtral modernbert-decoder mpt nanochat nemotron olmo
    olmo2 olmo3 olmoe opt persimmon phi phi3 phimoe qwen2 qwen2_moe qwen3 qwen3_moe seed_oss smollm3 solar_open
    stablelm starcoder2 vaultgemma whisper xglm youtu
    """
)
_GENERATE = _names(
    """
    axk2 bamba bart bigbird_pegasus blenderbot blenderbot-small bloom deepseek_v32 deepseek_v4 falcon_h1
    falcon_mamba glm_moe_dsa gpt_neo granitemoehybrid hy_v4 inkling_text jamba lfm2 lfm2_moe llama4_text mamba
    mamba2 marian mbart mvp nemotron_h olmo_hybrid openai-gpt pegasus plbart qwen3_5_moe_text qwen3_5_text
    qwen3_next recurrent_gemma rwkv trocr zamba2 zaya
    """
)
_ENCODERS = frozenset(["bert", "bert-generation", "electra", "ernie", "roc_bert"])
"""Read in both directions unless their config says is_decoder."""

_NOT_CAUSAL = _names(
    """
    big_bird cpmant megatron-bert prophetnet reformer rembert roformer xlm xlnet
    """
)
_UNLIKE_ITSELF = _names(
    """
    camembert data2vec-text doge minimax moshi roberta roberta-prelayernorm xlm-roberta xlm-roberta-xl xmod
    """
)


_PACKS = _names(
    """
    afmoe apertus arcee aria_text axk1 bert bert-generation biogpt bitnet cohere cohere2 cohere2_moe ctrl cwm
    deepseek_v2 deepseek_v3 diffllama dots1 electra ernie ernie4_5 ernie4_5_moe exaone4 exaone_moe flex_olmo gemma
    gemma2 gemma3_text gemma3n_text gemma4_text gemma4_unified_text glm glm4 glm4_moe glm4_moe_lite gpt-sw3 gpt2
    gpt_bigcode gpt_neox granite granitemoe granitemoeshared helium hrm_text hunyuan_v1_dense hunyuan_v1_moe hy_v3
    hyperclovax jais2 jetmoe laguna llama mellum minicpm3 minimax_m2 minimax_m3_vl_text ministral ministral3 mistral
    mixtral modernbert-decoder nanochat nemotron olmo olmo2 olmo3 olmoe opt persimmon phi phi3 phimoe qwen2 qwen2_moe
    qwen3 qwen3_moe roc_bert seed_oss smollm3 solar_open stablelm starcoder2 vaultgemma whisper youtu
    """
)
"""Packed examples have the logits of each alone (arcft/models/packed_attention.py). Other architectures carry a state
from one to the next, add biases to masks of their own, or have eager attention only."""


READ_BY_WEIGHT = {
    "falcon_h1": ["out_proj"],
    "falcon_mamba": ["out_proj", "dt_proj"],
    "jamba": ["dt_proj"],
    "mamba": ["out_proj", "dt_proj"],
    "mamba2": ["out_proj"],
    "nemotron_h": ["out_proj"],
}
"""By model type, layers whose weights the model reads without calling them: no adapter acts there, and quantised
weights would be taken for numbers."""


def known_packing(config: PretrainedConfig) -> bool | None:
    """Whether examples of a model of this config can share a row; None if it has to be measured."""
    kind = config.get_text_config(decoder=True).model_type
    if _release() != MEASURED_WITH or kind not in _PACKS | _OWN | _GENERATE | _ENCODERS:
        return None
    return kind in _PACKS


def known_decoder(config: PretrainedConfig) -> Decoder | None:
    """The decoder for a model of this config; None if it has to be measured. Raise ModelError if there is none."""
    config = config.get_text_config(decoder=True)
    kind = config.model_type
    if kind in _NOT_CAUSAL or (kind in _ENCODERS and not getattr(config, "is_decoder", False)):
        raise not_causal(kind, can_be_decoder=kind in _ENCODERS)
    if kind in _UNLIKE_ITSELF:
        raise unlike_itself(kind)
    if _release() != MEASURED_WITH:
        return None
    # Biases that depend on distances are added to masks in shapes of their own.
    if kind in _GENERATE or (kind == "falcon" and config.alibi):
        return Decoder.GENERATE
    return Decoder.OWN if kind in _OWN or kind in _ENCODERS else None


def stored_decoder(config: ModelConfig) -> Decoder | None:
    """`known_decoder` of the model at `config.path`, without loading its weights.

    None also if its config can't be read; that is reported when the model is loaded. Raise ModelError if the model
    can't be decoded, or has no such attention as `config` asks for.
    """
    try:
        architecture = load_architecture(config)
    except (OSError, ValueError, KeyError, ImportError, ModelError):
        return None
    if config.backend == "transformers":
        _check_attention(architecture, config)
    try:
        return known_decoder(architecture)
    except ModelError as error:
        raise ModelError(f"model.path={model_path(config)}: {error}") from error


def choose_attention(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> str:
    """`config.attn_implementation`, or what `auto` stands for. Raise whatever reading the model's config raises."""
    name = config.attn_implementation
    if name != "auto":
        return name
    code = _model_class(load_architecture(config))
    if code is None:
        return "sdpa"
    # Positions that jump would be taken for packed sequences there.
    can_flash = device.type == "cuda" and dtype in (torch.float16, torch.bfloat16) and config.positions == "none"
    if can_flash and code._supports_flash_attn and is_flash_attn_2_available():
        return "flash_attention_2"
    return "sdpa" if code._supports_sdpa else "eager"


def _model_class(architecture: PretrainedConfig) -> Any:
    """transformers' class for models of this config; None for models that bring their own code."""
    if type(architecture) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return None
    code: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(architecture)]
    return code[0] if isinstance(code, tuple) else code


def _check_attention(architecture: PretrainedConfig, config: ModelConfig) -> None:
    """Raise ModelError unless the architecture has the attention of model.attn_implementation, and it is installed."""
    name = config.attn_implementation
    code = _model_class(architecture)
    if code is None:
        return  # remote code checks this when it is loaded
    works = [own for own, has in (("sdpa", code._supports_sdpa), ("eager", True)) if has]
    if (name == "sdpa" and not code._supports_sdpa) or (name == "flash_attention_2" and not code._supports_flash_attn):
        reason = f"models of type {architecture.model_type} have no such attention in transformers"
    elif name == "flash_attention_2" and not (is_flash_attn_2_available() or is_kernels_available()):
        reason = "it needs a GPU and the package flash-attn, which is not installed here"
    else:
        return
    raise ModelError(f"model.attn_implementation={name}: {reason}; use model.attn_implementation={works[0]}")


def not_causal(kind: str, *, can_be_decoder: bool = False) -> ModelError:
    """The error for a model whose predictions depend on tokens that come after."""
    remedy = 'set "is_decoder": true in its config.json if it was trained as a decoder, or ' if can_be_decoder else ""
    return ModelError(
        f"a model of type {kind} reads text in both directions, so it can't write an answer from left to right; "
        f"{remedy}use a causal language model"
    )


def unlike_itself(kind: str) -> ModelError:
    """The error for a model that computes something else token by token than it does for a whole text."""
    return ModelError(
        f"in transformers {transformers.__version__}, a model of type {kind} computes other probabilities while it "
        "writes than for the same text in training, so its answers would be wrong; use another model"
    )


def _release() -> tuple[int, int]:
    major, minor = transformers.__version__.split(".")[:2]
    return int(major), int(minor)
