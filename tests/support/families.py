"""A small random model of every causal architecture that the installed transformers builds in seconds."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCABULARY = 200
CONTEXT = 512
WINDOW = 64
"""Tokens of local attention, less than a prompt of the tests."""

# Every name under which some architecture keeps a size; each takes those that it has.
_SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "lru_width"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "n_inner"), 48),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_target_positions"), CONTEXT),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "num_key_value_heads"), 2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("n_shared_experts", "n_group", "topk_group", "first_k_dense_replace"), 1),
    **dict.fromkeys(("head_dim", "rotary_dim", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"), 8),
    **dict.fromkeys(("sliding_window", "local_attention", "attention_window_size", "attention_chunk_size"), WINDOW),
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    # A tied head would mostly repeat the last token.
    "tie_word_embeddings": False,
}
_LATENT = {"head_dim": None, "num_key_value_heads": 4}
_LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
_MAMBA2 = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1}
_DECODER = {"is_decoder": True}

# What an architecture needs beyond the sizes; None leaves a value at the architecture's default.
_OWN: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("deepseek_v2", "deepseek_v3", "deepseek_v32", "axk1", "axk2", "glm4_moe_lite"), _LATENT),
    **dict.fromkeys(("glm_moe_dsa", "minicpm3", "youtu"), _LATENT),
    **dict.fromkeys(("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"), _LINEAR),
    **dict.fromkeys(("bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra"), _DECODER),
    **dict.fromkeys(("ernie", "megatron-bert", "rembert", "roberta", "roberta-prelayernorm"), _DECODER),
    **dict.fromkeys(("roc_bert", "roformer", "xlm-roberta", "xlm-roberta-xl"), _DECODER),
    "bamba": {**_MAMBA2, "attn_layer_indices": [1]},
    "falcon_h1": {
        "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 16,
    },
    "gemma3n_text": {
        "layer_types": ["sliding_attention", "full_attention"], "num_kv_shared_layers": 0,
        "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCABULARY, "laurel_rank": 8,
        "altup_num_inputs": 2, "activation_sparsity_pattern": [0.0, 0.0],
    },
    "gemma4_text": {
        "layer_types": ["sliding_attention", "full_attention"], "num_kv_shared_layers": 0,
        "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCABULARY, "global_head_dim": 8,
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": WINDOW},
    "granitemoehybrid": {**_MAMBA2, "layer_types": ["mamba", "attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8, "expand": 2, "state_size": 8, "n_groups": 1},
    "minimax": {"layer_types": ["linear_attention", "full_attention"], "block_size": 16},
    "nemotron_h": {"mamba_num_heads": 4, "mamba_head_dim": 8, "ssm_state_size": 8, "n_groups": 1, "chunk_size": 16},
    "olmo_hybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "qwen2": {"use_sliding_window": True, "max_window_layers": 1},
    "recurrent_gemma": {"num_hidden_layers": 3, "block_types": ["recurrent", "recurrent", "attention"]},
    "reformer": {
        **_DECODER, "axial_pos_shape": [16, 32], "axial_pos_embds_dim": [16, 16], "feed_forward_size": 48,
        "attn_layers": ["local", "lsh"], "attention_head_size": 8,
    },
    "xmod": {**_DECODER, "default_language": "en_XX"},
    "zamba2": {
        "num_hidden_layers": 3, "layers_block_type": ["mamba", "mamba", "hybrid"], "layer_types": None,
        "mamba_d_state": 8, "mamba_ngroups": 1, "n_mamba_heads": 4, "hybrid_layer_ids": [2],
    },
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert as an encoder": ("bert", {"is_decoder": False}),
    "bigcode, many key heads": ("gpt_bigcode", {"multi_query": False}),
    "falcon with ALiBi": ("falcon", {"alibi": True, "new_decoder_architecture": False}),
    "falcon, new": ("falcon", {"new_decoder_architecture": True}),
    "neox, sequential": ("gpt_neox", {"use_parallel_residual": False}),
}
"""Other shapes of an architecture, by a name of their own."""

NOT_BUILT = {
    "blt": "4 billion parameters at any size of its parts",
    "git": "86 million parameters for its images",
    "phi4_multimodal": "870 million parameters for images and sound",
    **dict.fromkeys(("cohere_compass_text", "dbrx", "qwen4_exp_text", "zamba"), "transformers' defaults are broken"),
    **dict.fromkeys(("kimi_linear", "longcat_flash", "xlstm"), "its sizes depend on each other in undocumented ways"),
    **dict.fromkeys(("gemma4_assistant", "gemma4_unified_assistant", "musicgen", "musicgen_melody"), "no text model"),
}
"""Architectures left out of the tests, and why."""


def family_config(kind: str, **changes: Any) -> PretrainedConfig:
    """A small config of model type `kind`. Raise whatever transformers raises where it can't be made."""
    default = AutoConfig.for_model(kind)
    aliases = getattr(type(default), "attribute_map", {})
    own = default.to_dict().keys() | aliases.keys()
    values = {aliases.get(name, name): value for name, value in _SIZES.items() if name in own}
    values |= _OWN.get(kind, {}) | changes
    return AutoConfig.for_model(kind, **{name: value for name, value in values.items() if value is not None})


def family_model(kind: str, **changes: Any) -> PreTrainedModel:
    """A small random model of type `kind` in float32, in evaluation mode.

    Its weights are large, so that different computations give different tokens.
    """
    config = family_config(kind, **changes)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.2)
    return model


def families() -> list[str]:
    """The model types of text models that are built here, in alphabetical order."""
    kinds = []
    for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        if kind in NOT_BUILT:
            continue
        config = AutoConfig.for_model(kind)
        # A composite of several models has a text model of a type of its own.
        if config.get_text_config() is config:
            kinds.append(kind)
    return sorted(kinds)
