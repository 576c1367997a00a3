"""Logits at selected places are those of a whole forward pass, whatever the model does with its head."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from arcft.models.selected_logits import HeadTap, selected_logits
from tests.decoding.test_decoder import make_model
from tests.decoding.test_decoder_grammar import unusual_model

IDS = torch.tensor([[5, 6, 7, 8, 9], [20, 21, 22, 23, 24], [3, 1, 4, 1, 5]])
PLACES = torch.tensor([[0, 4], [6, 6], [14, 9]])


class OwnHead(nn.Module):
    """Multiplies by the weight of its output layer, which it never calls, as some fast kernels do."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.inner = model

    def get_output_embeddings(self) -> nn.Module:
        return self.inner.lm_head

    def forward(self, **inputs: Any) -> Any:
        hidden = self.inner.model(**inputs).last_hidden_state
        return type("Output", (), {"logits": hidden @ self.inner.lm_head.weight.T})


class Headless(OwnHead):
    def get_output_embeddings(self) -> None:  # type: ignore[override]
        return None


def models() -> dict[str, Any]:
    adapter = LoraConfig(r=4, target_modules=["q_proj", "lm_head"], init_lora_weights=False)
    return {
        "plain": make_model("qwen2_untied"),
        "tied": make_model("qwen2_tied"),
        "scaled": unusual_model("scaled"),
        "soft_cap": unusual_model("soft_cap"),
        "adapted head": get_peft_model(make_model("qwen2_untied"), adapter).eval(),
        "own head": OwnHead(make_model("qwen2_untied")),
        "headless": Headless(make_model("qwen2_untied")),
    }


@pytest.mark.parametrize("kind", models())
def test_they_are_those_of_a_whole_pass(kind: str) -> None:
    model = models()[kind]
    with torch.no_grad():
        whole = model(input_ids=IDS).logits.flatten(0, 1)
        found = selected_logits(model, {"input_ids": IDS}, PLACES)
    assert found.shape == (3, 2, 61)
    assert torch.allclose(found, whole[PLACES], atol=1e-5)
    # Nothing is left on the model.
    with torch.no_grad():
        assert torch.equal(model(input_ids=IDS).logits.flatten(0, 1), whole)


def test_gradients_flow_through_the_selection() -> None:
    gradients = []
    for chosen in (True, False):
        model = make_model("qwen2_untied")
        if chosen:
            logits = selected_logits(model, {"input_ids": IDS}, PLACES)
        else:
            logits = model(input_ids=IDS).logits.flatten(0, 1)[PLACES]
        logits.square().sum().backward()
        gradients.append(model.get_input_embeddings().weight.grad)
    assert gradients[0] is not None
    assert gradients[0].abs().max() > 0
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-4, atol=1e-5)


def test_the_head_may_be_skipped() -> None:
    model = make_model("qwen2_untied")
    with torch.no_grad(), HeadTap(model.get_output_embeddings(), PLACES, skip=True) as tap:
        model(input_ids=IDS)
        expected = model.model(input_ids=IDS).last_hidden_state.flatten(0, 1)[PLACES]
    assert tap.output is not None
    assert tap.output.shape == (3, 0, 61)
    assert tap.hidden is not None
    assert torch.equal(tap.hidden, expected)
