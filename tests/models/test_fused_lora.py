"""Fused LoRA layers compute what PEFT's do, with the same gradients; PEFT still saves, merges and switches them off."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
from torch.nn.functional import cross_entropy

from arcft.models.fused_lora import fuse_lora
from tests.support.families import family_model

IDS = torch.randint(3, 200, (2, 30), generator=torch.Generator().manual_seed(0))


def adapted(kind: str = "qwen2", dtype: torch.dtype = torch.float64, **options: Any) -> peft.PeftModel:
    settings = {"r": 4, "lora_alpha": 12, "target_modules": "all-linear", "init_lora_weights": False}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = peft.get_peft_model(family_model(kind).to(dtype), peft.LoraConfig(**(settings | options)))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.mul(0.2).to(torch.float64 if dtype == torch.float64 else torch.float32)
    return model


def gradients(model: peft.PeftModel) -> tuple[float, dict[str, torch.Tensor]]:
    loss = cross_entropy(model(input_ids=IDS).logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())
    loss.backward()
    return loss.item(), {name: one.grad for name, one in model.named_parameters() if one.grad is not None}


@pytest.mark.parametrize("kind", ["qwen2", "llama", "gemma2", "phi3", "gpt_neox"])
def test_loss_and_gradients_are_those_of_peft(kind: str) -> None:
    plain, fused = adapted(kind), adapted(kind)
    assert fuse_lora(fused) == sum(name.endswith("lora_A") for name, _ in plain.named_modules()) > 5
    (expected_loss, expected), (loss, found) = gradients(plain), gradients(fused)
    assert loss == pytest.approx(expected_loss, rel=1e-9)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        assert (gradient - expected[name]).norm() <= 1e-6 * expected[name].norm(), name


def test_under_autocast_they_agree_up_to_rounding_and_train_float32_weights() -> None:
    plain, fused = adapted(dtype=torch.bfloat16), adapted(dtype=torch.bfloat16)
    fuse_lora(fused)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (expected_loss, expected), (loss, found) = gradients(plain), gradients(fused)
    assert loss == pytest.approx(expected_loss, rel=0.02)
    for name, gradient in found.items():
        assert gradient.dtype == torch.float32
        assert torch.cosine_similarity(gradient.flatten(), expected[name].flatten(), dim=0) > 0.9, name


def test_checkpointing_recomputes_the_same() -> None:
    plain, checkpointed = adapted(), adapted()
    for model in (plain, checkpointed):
        fuse_lora(model)
    checkpointed.train()
    checkpointed.gradient_checkpointing_enable({"use_reentrant": False})
    expected, found = gradients(plain)[1], gradients(checkpointed)[1]
    for name, gradient in found.items():
        assert torch.allclose(gradient, expected[name], rtol=1e-6, atol=1e-12), name


@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_dropout": 0.1}, {"lora_bias": True}])
def test_other_forms_are_left_to_peft(options: dict[str, Any]) -> None:
    assert fuse_lora(adapted(**options)) == 0


def test_it_can_be_switched_off_merged_and_saved() -> None:
    plain, fused = adapted(), adapted()
    fuse_lora(fused)
    with torch.no_grad():
        together = fused(input_ids=IDS).logits
        with fused.disable_adapter(), plain.disable_adapter():
            assert torch.equal(fused(input_ids=IDS).logits, plain(input_ids=IDS).logits)
            assert not torch.allclose(fused(input_ids=IDS).logits, together, atol=0.1)
        fused.merge_adapter()
        assert torch.allclose(fused(input_ids=IDS).logits, together, atol=1e-5)
        fused.unmerge_adapter()
        assert torch.allclose(fused(input_ids=IDS).logits, together, atol=1e-5)
    assert fused.state_dict().keys() == plain.state_dict().keys()


def test_what_a_young_adapter_adds_survives_bfloat16() -> None:
    base = torch.nn.Linear(256, 512, bias=False)
    model = peft.get_peft_model(torch.nn.Sequential(base), peft.LoraConfig(r=16, target_modules=["0"]))  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        size = 1e-4 if "lora_B" in name else 0.05
        parameter.data = torch.randn(parameter.shape, generator=generator).mul_(size).bfloat16()
    x = torch.randn(512, 256, generator=generator).bfloat16()

    def added(dtype: torch.dtype) -> torch.Tensor:
        layer = model.to(dtype)
        with torch.no_grad(), layer.disable_adapter():
            plain = layer(x.to(dtype))
        with torch.no_grad():
            return (layer(x.to(dtype)) - plain).float()

    def share(change: torch.Tensor) -> float:
        """How much of the change in float32 there is in `change`."""
        return float((change * exact).sum() / exact.square().sum())

    lost = added(torch.bfloat16)
    exact = added(torch.float32)
    assert fuse_lora(model) == 1
    assert added(torch.float32) == pytest.approx(exact, abs=1e-6)
    assert share(added(torch.bfloat16)) == pytest.approx(1, abs=0.02)
    assert share(lost) < 0.6
