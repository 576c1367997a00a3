"""Every form of LoRA: saved and loaded, on dense weights, merged, and as a plain adapter, all with the same logits."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedModel

from arcft.config.lora import DENSE_ONLY
from arcft.config.model import ModelConfig
from arcft.models.adapter_config import LoraError
from arcft.models.load import load_model
from arcft.models.lora import apply_lora, load_adapter, save_adapter
from arcft.models.merging import adapter_for_original_base, apply_saved_adapter, dense_base, merged, save_plain_adapter
from tests.support.small_training import CPU, TRAIN_MODULES, lora_config, small_model

IDS = torch.arange(2, 12).unsqueeze(0)
FORMS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "pissa": {"init_lora_weights": "pissa"},
    "olora": {"init_lora_weights": "olora"},
    "pissa above a layer's smaller side": {"init_lora_weights": "pissa", "r": 48},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "rank-stabilised pissa by name": {
        "init_lora_weights": "pissa",
        "use_rslora": True,
        "target_modules": ["q_proj", "v_proj"],
    },
    "decomposed olora": {"init_lora_weights": "olora", "use_dora": True},
}


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def shaken(model: peft.PeftModel) -> peft.PeftModel:
    """With every trainable weight moved, as training would."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    small_model(hidden_size=64, intermediate_size=128).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("train_modules", [[], TRAIN_MODULES], ids=["adapter", "and modules"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("quantization", ["none", "int8", "nf4", "fp4"])
def test_every_form_is_the_trained_model(
    folder: Path, tmp_path: Path, quantization: Any, form: str, train_modules: list[str]
) -> None:
    config = ModelConfig(name="m", path=str(folder), quantization=quantization)
    changes = FORMS[form]

    def base() -> PreTrainedModel:
        return load_model(config, dtype=torch.float32, device=CPU)

    if quantization != "none" and changes.get("init_lora_weights") in DENSE_ONLY:
        with pytest.raises(LoraError, match=f"lora.init_lora_weights={changes['init_lora_weights']}"):
            apply_lora(base(), lora_config(**changes), [], seed=0)
        return
    model = shaken(apply_lora(base(), lora_config(**changes), train_modules, seed=0))
    expected = logits(model)
    save_adapter(model, tmp_path / "saved")
    assert (expected - logits(base())).abs().max() > 0.1
    for trainable in (False, True):
        assert torch.equal(logits(load_adapter(base(), tmp_path / "saved", trainable=trainable)), expected)

    trained, plain = apply_saved_adapter(base(), tmp_path / "saved")
    dense = dense_base(trained)
    assert "quantization_config" not in dense.config.to_dict()
    assert torch.allclose(logits(plain.apply_to(copy.deepcopy(dense))), expected, atol=1e-5)
    whole = merged(dense, plain)
    assert whole.get_output_embeddings().weight is whole.get_input_embeddings().weight
    whole.save_pretrained(tmp_path / "merged")
    assert torch.allclose(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged")), expected, atol=1e-5)

    if quantization == "none":
        again = adapter_for_original_base(base(), tmp_path / "saved").apply_to(base())
        save_plain_adapter(again, tmp_path / "plain", str(folder))
        read = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "plain")
        assert torch.allclose(logits(read), expected, atol=1e-5)
        assert read.peft_config["default"].init_lora_weights is True


@pytest.mark.parametrize("quantization", ["none", "int8", "nf4"])
def test_layers_that_store_their_weights_transposed(tmp_path: Path, quantization: Any) -> None:
    GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=64, n_layer=1, n_head=2, n_positions=32)).save_pretrained(tmp_path)
    config = ModelConfig(name="m", path=str(tmp_path), quantization=quantization)

    def base() -> PreTrainedModel:
        return load_model(config, dtype=torch.float32, device=CPU)

    model = shaken(apply_lora(base(), lora_config(), [], seed=0))
    expected = logits(model)
    save_adapter(model, tmp_path / "saved")
    trained, plain = apply_saved_adapter(base(), tmp_path / "saved")
    merged(dense_base(trained), plain).save_pretrained(tmp_path / "merged")
    assert torch.allclose(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged")), expected, atol=1e-4)
