"""GGUF files that are written here: read back by transformers, to the bit and with the same logits and tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from transformers import (
    LlamaForCausalLM,
    MistralForCausalLM,
    MixtralConfig,
    PreTrainedModel,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
)

from arcft.config.model import ModelConfig
from arcft.errors import ModelError
from arcft.models.gguf_file import GGUF_TYPES, check_architecture, rounded, tensors_of, write_gguf
from arcft.models.gguf_tokenizer import GgufTokenizerError, pretokenizer_of
from arcft.models.load import load_model, load_tokenizer
from tests.support.byte_level import byte_level_tokenizer
from tests.support.small_training import CPU, small_tokenizer

IDS = torch.arange(3, 60).unsqueeze(0)
VOCABULARY = 320
MODELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "llama": (LlamaForCausalLM, {"rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}}),
    "llama, tied": (LlamaForCausalLM, {"tie_word_embeddings": True, "head_dim": 32}),
    "mistral": (MistralForCausalLM, {"sliding_window": None}),
    "qwen2": (Qwen2ForCausalLM, {}),
    "qwen2, tied": (Qwen2ForCausalLM, {"tie_word_embeddings": True, "rms_norm_eps": 1e-5}),
    "qwen3": (Qwen3ForCausalLM, {"head_dim": 128}),
}


def model_of(kind: str) -> PreTrainedModel:
    model_class, changes = MODELS[kind]
    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.2,
        "max_position_embeddings": 512,
    }
    torch.manual_seed(0)
    model = model_class(model_class.config_class(**(settings | changes))).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return model


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.mark.parametrize("dtype", GGUF_TYPES)
@pytest.mark.parametrize("kind", MODELS)
def test_what_is_written_is_read_back(tmp_path: Path, kind: str, dtype: str) -> None:
    model, file = model_of(kind), tmp_path / "model.gguf"
    check_architecture(model.config, path="m", positions="none")
    write_gguf(model, byte_level_tokenizer(), "smollm", file, dtype, "small")
    back = load_model(ModelConfig(name="m", path=str(file)), dtype=torch.float32, device=CPU)
    stored = tensors_of(back)
    assert stored.keys() == tensors_of(model).keys()
    for name, weight in tensors_of(model).items():
        assert torch.equal(stored[name], rounded(weight, dtype)), name
    expected = logits(model)
    spread = float((logits(back) - expected).std() / expected.std())
    assert spread <= {"float32": 1e-6, "float16": 0.005, "bfloat16": 0.04, "q8_0": 0.1}[dtype]
    assert (spread == 0) == (dtype == "float32")


@pytest.mark.parametrize("quantization", ["int8", "nf4", "fp4"])
def test_a_file_is_quantised(tmp_path: Path, quantization: Any) -> None:
    file = tmp_path / "model.gguf"
    model = model_of("llama, tied")
    write_gguf(model, byte_level_tokenizer(), "smollm", file, "float32", "small")
    back = load_model(ModelConfig(name="m", path=str(file), quantization=quantization), dtype=torch.float32, device=CPU)
    expected = logits(model)
    assert 0 < float((logits(back) - expected).std() / expected.std()) < (0.1 if quantization == "int8" else 0.9)
    assert back.lm_head.weight is back.get_input_embeddings().weight


@pytest.mark.parametrize("pieces", ["smollm", "gpt-2", "qwen2", "llama-bpe"])
def test_a_tokenizer_is_read_back(tmp_path: Path, pieces: str) -> None:
    tokenizer, file = byte_level_tokenizer(pieces), tmp_path / "model.gguf"
    assert pretokenizer_of(tokenizer, ["00 12\n345"]) == pieces
    write_gguf(model_of("llama"), tokenizer, pieces, file, "q8_0", "small")
    back = load_tokenizer(ModelConfig(name="m", path=str(file)))
    for text in ("<|begin|>user\n0123 45 don't", "### Output\n\n```grid\n12\n<|end|>", "é☃  x"):
        assert back(text)["input_ids"] == tokenizer(text)["input_ids"]
        assert back.decode(back(text)["input_ids"]) == text
    assert (back.bos_token, back.eos_token, back.pad_token) == ("<|begin|>", "<|end|>", "<|pad|>")
    assert back.chat_template == tokenizer.chat_template
    # One for each row of the embedding; those without a token are marked as unused.
    assert len(back) == VOCABULARY


def test_a_file_has_as_many_tokens_as_the_embedding_has_rows(tmp_path: Path) -> None:
    tokenizer, file = byte_level_tokenizer(), tmp_path / "model.gguf"
    rows = len(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "<beyond>"})
    model = LlamaForCausalLM(
        LlamaForCausalLM.config_class(
            vocab_size=rows, hidden_size=64, intermediate_size=80, num_hidden_layers=1, num_attention_heads=4
        )
    )
    write_gguf(model, tokenizer, "smollm", file, "float32", "mistral", end_id=5)
    fields = gguf.GGUFReader(file).fields
    assert len(fields["tokenizer.ggml.tokens"].contents()) == rows
    assert fields["tokenizer.ggml.eot_token_id"].contents() == 5
    assert "tokenizer.ggml.padding_token_id" not in fields
    assert (
        load_tokenizer(ModelConfig(name="m", path=str(file)))("00 12")["input_ids"] == tokenizer("00 12")["input_ids"]
    )
    # A name under which transformers would look for another architecture.
    load_model(ModelConfig(name="m", path=str(file)), dtype=torch.float32, device=CPU)


def test_other_tokenizers_are_refused() -> None:
    with pytest.raises(GgufTokenizerError, match=r"format=gguf: the tokenizer, .*; use format=merged"):
        pretokenizer_of(small_tokenizer(), [])


@pytest.mark.parametrize(
    ("changes", "positions", "message"),
    [
        ({}, "grid", "trained with model.positions=grid, and llama.cpp only counts positions"),
        ({"attention_bias": True}, "none", "has biases, which are only written for qwen2"),
        (
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
            "none",
            "rotary positions of type linear",
        ),
    ],
)
def test_what_a_file_can_not_hold_is_refused(changes: dict[str, Any], positions: str, message: str) -> None:
    config = LlamaForCausalLM.config_class(**changes)
    with pytest.raises(ModelError, match=rf"format=gguf: .*{message}.*use format=merged"):
        check_architecture(config, path="m", positions=positions)


def test_other_architectures_are_refused() -> None:
    for config, message in (
        (MixtralConfig(), "m is of type mixtral, and only llama, mistral, qwen2, qwen3 are written"),
        (Qwen3ForCausalLM.config_class(head_dim=64), "heads of 64"),
        (MistralForCausalLM.config_class(sliding_window=4096), "an attention window of 4096 tokens"),
    ):
        with pytest.raises(ModelError, match=message):
            check_architecture(config, path="m", positions="none")
