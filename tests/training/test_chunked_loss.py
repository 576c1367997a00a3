"""The loss in chunks is that of all logits at once, with the same gradients, whatever the model does with its head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import CohereConfig, CohereForCausalLM, PreTrainedModel

from arcft.models.fused_lora import fuse_lora
from arcft.text.tokens import IGNORED
from arcft.training import chunked_loss
from arcft.training.chunked_loss import cross_entropy_sums
from tests.decoding.test_decoder import SIZES, make_model
from tests.decoding.test_decoder_grammar import biased_model, unusual_model
from tests.models.test_selected_logits import Headless, OwnHead

IDS = torch.tensor([[5, 6, 7, 8, 9], [20, 21, 22, 23, 24], [3, 1, 4, 1, 5]])
PLACES = torch.tensor([[0, 1, 4, 6, 8, 10, 13]])
TARGETS = torch.tensor([[6, 7, 40, IGNORED, 60, 4, 5]])
TWO_ROWS = PLACES[:, :6].view(2, 3)


def adapted(model: PreTrainedModel, *, targets: list[str], **options: Any) -> peft.PeftModel:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return peft.get_peft_model(
            model, peft.LoraConfig(r=4, target_modules=targets, init_lora_weights=False, **options)
        )


def cohere() -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(8)
        return CohereForCausalLM(CohereConfig(**SIZES, logit_scale=0.3))


class Shifted(OwnHead):
    """Does something to its logits that no config tells."""

    def forward(self, **inputs: Any) -> Any:
        output = self.inner(**inputs)
        return type("Output", (), {"logits": output.logits + output.logits.roll(1, dims=-1)})


CHUNKED: dict[str, Callable[[], Any]] = {
    "tied": lambda: make_model("qwen2_tied"),
    "untied": lambda: make_model("qwen2_untied"),
    "bias": biased_model,
    "soft cap": lambda: unusual_model("soft_cap"),
    "divided": lambda: unusual_model("scaled"),
    "scaled": cohere,
    "LoRA": lambda: adapted(make_model("qwen2_tied"), targets=["q_proj"]),
    "LoRA on the head": lambda: adapted(make_model("qwen2_untied"), targets=["q_proj", "lm_head"]),
    "DoRA on the head": lambda: adapted(make_model("qwen2_untied"), targets=["q_proj", "lm_head"], use_dora=True),
    "trained head": lambda: adapted(make_model("qwen2_untied"), targets=["q_proj"], modules_to_save=["lm_head"]),
    "trained tied head": lambda: adapted(
        make_model("qwen2_tied"),
        targets=["q_proj"],
        modules_to_save=["embed_tokens", "lm_head"],
        ensure_weight_tying=True,
    ),
}


def wrapped(code: type[OwnHead]) -> OwnHead:
    model = code(make_model("qwen2_untied"))
    model.config = model.inner.config
    return model


WHOLE: dict[str, Callable[[], Any]] = {
    "own head": lambda: wrapped(OwnHead),
    "headless": lambda: wrapped(Headless),
    "unknown transform": lambda: wrapped(Shifted),
}


def plain_sums(model: Any, places: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    logits = model(input_ids=IDS).logits.flatten(0, 1)[places]
    return nn.functional.cross_entropy(logits.mT, targets, reduction="none", ignore_index=IGNORED).sum(dim=1)


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    found = {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}
    model.zero_grad()
    return found


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Chunks of two tokens; the sizes of those that were computed."""
    monkeypatch.setitem(chunked_loss.CHUNK_LOGITS, "cpu", 2 * 61)
    sizes: list[int] = []
    one_chunk = chunked_loss._chunk

    def counted(hidden: torch.Tensor, *others: Any) -> Any:
        sizes.append(len(hidden))
        return one_chunk(hidden, *others)

    monkeypatch.setattr(chunked_loss, "_chunk", counted)
    return sizes


@pytest.mark.parametrize("kind", [*CHUNKED, *WHOLE])
def test_losses_and_gradients_are_those_of_all_logits(kind: str, small_chunks: list[int]) -> None:
    model = (CHUNKED | WHOLE)[kind]().double()
    expected = plain_sums(model, PLACES, TARGETS)
    (expected.sum() / 7).backward()
    expected_gradients = gradients(model)
    fuse_lora(model)  # as trainers do
    found = cross_entropy_sums(model, {"input_ids": IDS, "use_cache": False}, PLACES, TARGETS)
    assert found.dtype == torch.float64
    assert torch.allclose(found, expected, rtol=1e-12)
    (found.sum() / 7).backward()
    found_gradients = gradients(model)
    assert found_gradients.keys() == expected_gradients.keys()
    for name, gradient in found_gradients.items():
        assert torch.allclose(gradient, expected_gradients[name], rtol=1e-9, atol=1e-12), name
    assert small_chunks == ([2, 2, 2, 1] if kind in CHUNKED else [])
    with torch.no_grad():
        again = cross_entropy_sums(model, {"input_ids": IDS, "use_cache": False}, PLACES, TARGETS)
        assert torch.allclose(again, expected, rtol=1e-12)


def test_each_row_has_its_own_gradient(small_chunks: list[int]) -> None:
    model = adapted(make_model("qwen2_untied"), targets=["q_proj"]).double()
    targets = TARGETS[:, :6].view(2, 3)
    weights = torch.tensor([2.0, -0.5], dtype=torch.float64)
    (plain_sums(model, TWO_ROWS, targets) * weights).sum().backward()
    expected = gradients(model)
    (cross_entropy_sums(model, {"input_ids": IDS}, TWO_ROWS, targets) * weights).sum().backward()
    for name, gradient in gradients(model).items():
        assert torch.allclose(gradient, expected[name], rtol=1e-9, atol=1e-12), name
    assert small_chunks == [2, 2, 2]


def test_rows_that_share_a_trained_head_are_not_split(small_chunks: list[int]) -> None:
    model = make_model("qwen2_untied").double()
    targets = TARGETS[:, :6].view(2, 3)
    found = cross_entropy_sums(model, {"input_ids": IDS}, TWO_ROWS, targets)
    assert torch.allclose(found, plain_sums(model, TWO_ROWS, targets), rtol=1e-12)
    assert not small_chunks


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_they_agree_up_to_rounding_under_autocast(dtype: torch.dtype, small_chunks: list[int]) -> None:
    model = adapted(make_model("qwen2_untied").to(dtype), targets=["q_proj", "lm_head"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = cross_entropy_sums(model, {"input_ids": IDS, "use_cache": False}, PLACES, TARGETS)
        logits = model(input_ids=IDS).logits.flatten(0, 1)[PLACES].float()
        expected = nn.functional.cross_entropy(logits[0], TARGETS[0], reduction="sum")
    assert found.dtype == torch.float32
    assert torch.allclose(found, expected[None], rtol=1e-4)
    expected.backward()
    wanted = gradients(model)
    found.sum().backward()
    for name, gradient in gradients(model).items():
        assert (gradient - wanted[name]).norm() <= 0.02 * wanted[name].norm(), name


def test_trying_the_model_leaves_random_numbers_alone(small_chunks: list[int]) -> None:
    model = adapted(make_model("qwen2_untied"), targets=["q_proj"], lora_dropout=0.5).train()
    losses = []
    for _ in range(2):
        torch.manual_seed(3)
        losses.append(cross_entropy_sums(model, {"input_ids": IDS, "use_cache": False}, PLACES, TARGETS).item())
    assert losses[0] == losses[1]


class Widest(TorchDispatchMode):
    """The most rows that any computed tensor over the vocabulary has, but the head's weight."""

    rows = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if isinstance(output, torch.Tensor) and output.shape[-1:] == (61,) and output.numel() != 61 * 32:
            self.rows = max(self.rows, output.numel() // 61)
        return output


def test_no_tensor_holds_the_logits_of_all_tokens(small_chunks: list[int]) -> None:
    model = adapted(make_model("qwen2_untied"), targets=["q_proj"])
    with Widest() as widest:
        cross_entropy_sums(model, {"input_ids": IDS, "use_cache": False}, PLACES, TARGETS).sum().backward()
    # The first tokens of each row, on which the model is tried.
    assert widest.rows == 5
    with Widest() as widest:
        cross_entropy_sums(model, {"input_ids": IDS, "use_cache": False}, PLACES, TARGETS).sum().backward()
    assert widest.rows == 2
