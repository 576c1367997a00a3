"""Quantised base weights: which layers, how many parameters, and the same product in training and evaluation."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM

from arcft.config.model import ModelConfig
from arcft.errors import ModelError
from arcft.models.load import load_model
from arcft.models.lora import apply_lora, trainable_parameters
from arcft.models.merging import without_quantisation
from arcft.models.quantization import is_quantised, num_parameters
from tests.support.families import family_model
from tests.support.small_training import CPU, lora_config, small_model

FORMATS = ["int8", "nf4", "fp4"]
IDS = torch.arange(2, 12).unsqueeze(0)


def config_of(path: Any, **changes: Any) -> ModelConfig:
    return ModelConfig(name="m", path=str(path), **changes)


def load(path: Any, **changes: Any) -> Any:
    return load_model(config_of(path, **changes), dtype=torch.float32, device=CPU)


def logits(model: torch.nn.Module, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids).logits


def quantised_layers(model: torch.nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if is_quantised(module)}


@pytest.mark.parametrize("quantization", FORMATS)
@pytest.mark.parametrize("init", ["pretrained", "random"])
def test_parameters_are_counted_unpacked(quantization: str, init: str) -> None:
    model = load("bundled:tiny", quantization=quantization, init=init)
    assert num_parameters(model) == 1_663_840
    adapted = apply_lora(model, lora_config(), [], seed=0)
    assert num_parameters(adapted) == 1_663_840 + trainable_parameters(adapted)


@pytest.mark.parametrize("quantization", ["nf4", "fp4"])
def test_packed_parameters_outside_of_layers_are_counted_too(quantization: Any) -> None:
    from bitsandbytes.nn.parametrize import replace_parameter_4bit

    model = MixtralForCausalLM(
        MixtralConfig(
            vocab_size=32,
            hidden_size=64,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            num_local_experts=2,
        )
    )
    count = num_parameters(model)
    assert count == sum(parameter.numel() for parameter in model.parameters())
    replace_parameter_4bit(model.model.layers[0].mlp.experts, "down_proj", quant_type=quantization)
    assert num_parameters(model) == count


@pytest.mark.parametrize("quantization", FORMATS)
def test_what_is_skipped(tmp_path: Path, quantization: str) -> None:
    small_model(tie_word_embeddings=False).save_pretrained(tmp_path)
    usual = quantised_layers(load(tmp_path, quantization=quantization))
    assert len(usual) == 2 * 7
    assert quantised_layers(load(tmp_path, quantization=quantization, quantization_skip=[])) == usual | {"lm_head"}
    kept = quantised_layers(load(tmp_path, quantization=quantization, quantization_skip=["proj", "layers.1", "q_proj"]))
    assert kept == {"lm_head"} | {name for name in usual if "layers.0" in name and "q_proj" not in name}


def test_fused_experts_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experts = {"num_local_experts": 2, "hidden_size": 64, "intermediate_size": 64}
    heads = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    MixtralForCausalLM(MixtralConfig(vocab_size=32, **experts, **heads)).save_pretrained(tmp_path)
    model = load(tmp_path, quantization="nf4")
    assert model.model.layers[0].mlp.experts.down_proj.dtype == torch.float32
    assert "% of the weights are in fused experts, which bitsandbytes does not quantise" in capsys.readouterr().out


@pytest.mark.parametrize("quantization", ["nf4", "fp4"])
def test_rows_of_any_width_are_rounded_alike(tmp_path: Path, quantization: str) -> None:
    base = small_model(hidden_size=64, intermediate_size=96)
    base.save_pretrained(tmp_path)
    dense = without_quantisation(load(tmp_path, quantization=quantization))
    layers = [name for name, _ in dense.named_parameters() if "_proj" in name]
    errors = {
        name: float((dense.get_parameter(name) - base.get_parameter(name)).norm() / base.get_parameter(name).norm())
        for name in layers
    }
    # The inputs of down_proj are 96, a block and a half.
    assert max(errors.values()) < 1.2 * min(errors.values()) < 0.2


@pytest.mark.parametrize("kind", ["whisper", "bert"])
def test_a_head_of_another_name_is_skipped_too(tmp_path: Path, kind: str) -> None:
    family_model(kind).save_pretrained(tmp_path)
    model = load(tmp_path, quantization="nf4")
    assert type(model.get_output_embeddings()) is torch.nn.Linear
    assert quantised_layers(model)


def test_a_model_without_plain_linear_layers_is_refused(tmp_path: Path) -> None:
    family_model("falcon").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"model\.quantization=nf4: nothing in this model of type falcon"):
        load(tmp_path, quantization="nf4")


def test_a_skip_list_without_quantisation_is_refused() -> None:
    (problem,) = config_of("m", quantization_skip=["q_proj"]).problems()
    assert problem.startswith("model.quantization_skip=['q_proj'] has no effect with model.quantization=none")


@pytest.mark.parametrize("quantization", FORMATS)
def test_evaluation_computes_what_training_does(
    tmp_path: Path, quantization: str, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    """And a row what it does alone: bitsandbytes' own int8 product has another path for columns with outliers."""
    caplog.set_level(logging.WARNING)
    base = small_model(tie_word_embeddings=False)
    with torch.no_grad():
        base.get_input_embeddings().weight[11] *= 1000
    base.save_pretrained(tmp_path)
    model = load(tmp_path, quantization=quantization)
    evaluated = logits(model)
    assert torch.equal(logits(model.train()), evaluated)
    both = logits(model.eval(), torch.cat([IDS, IDS.flip(1)]))
    assert torch.allclose(both[:1], evaluated, atol=1e-5)
    assert torch.allclose(evaluated, logits(base), atol={"int8": 0.02}.get(quantization, 0.3))
    assert not [record for record in caplog.records if "bitsandbytes" in record.name]
    assert not [warning for warning in recwarn if "bitsandbytes" in str(warning.filename)]


@pytest.mark.slow
def test_a_gguf_file_is_dequantised_then_quantised(smollm2_gguf: Path) -> None:
    model = load(smollm2_gguf, quantization="nf4")
    assert num_parameters(model) == 134_515_008
    assert len(quantised_layers(model)) == 30 * 7
    assert model.lm_head.weight is model.get_input_embeddings().weight
    weight = model.model.layers[3].mlp.up_proj.weight
    assert weight.numel() * weight.element_size() == 576 * 1536 // 2
