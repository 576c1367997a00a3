"""Packed examples: each computed as if it were alone, with the same gradients, and blind to the others."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from arcft.models import packed_attention
from arcft.models.families import known_packing
from arcft.models.folded_attention import use_folded_attention
from arcft.models.packed_attention import NAME, measure_packing, packed, packs, use_packed_attention
from arcft.text.tokens import IGNORED, Example
from arcft.training.batches import Grouping, collate, pack
from arcft.training.evaluation import mean_loss
from arcft.training.loss import summed_cross_entropy
from tests.support.families import WINDOW, family_model
from tests.support.small_training import adapted_model, small_model

ARCHITECTURES = ["llama", "qwen2", "qwen3", "gemma2", "gemma3_text", "mistral", "phi3", "gpt2", "gpt_neox", "mixtral"]
"""Of them qwen2, gemma2, gemma3_text and mistral have windows, shorter than two of the examples."""


def example(seed: int, length: int) -> Example:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 200, (length,), generator=generator).tolist()
    return Example(ids, [IGNORED] * (length // 2) + ids[length // 2 :], length // 2)


EXAMPLES = [example(1, WINDOW + 37), example(2, 20), example(3, WINDOW + 6), example(4, 1)]


def tens(ids: Sequence[int], after: int = -1) -> list[int]:
    """Positions that jump, as grid positions do, and fall nowhere."""
    return [after + 1 + 3 * place + 20 * (place // 5) for place, _ in enumerate(ids)]


def packing_model(kind: str) -> PreTrainedModel:
    model = family_model(kind)
    use_packed_attention(model)
    assert model.config._attn_implementation == NAME
    return model


def losses_of(model: PreTrainedModel, examples: Sequence[Example]) -> list[float]:
    """The summed loss of each example, from one packed pass."""
    batch = pack(examples)
    with torch.no_grad(), packed(model, batch["lengths"]) as more:
        logits = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False, **more).logits
    each = torch.nn.functional.cross_entropy(
        logits[0, :-1], batch["labels"][0, 1:], reduction="none", ignore_index=IGNORED
    )
    starts = torch.tensor([0, *batch["lengths"]]).cumsum(0)
    return [float(each[start : end - 1].sum()) for start, end in itertools.pairwise(starts)]


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_a_change_in_one_example_leaves_the_losses_of_the_others_alone(kind: str) -> None:
    model = packing_model(kind)
    before = losses_of(model, EXAMPLES)
    for number in range(3):
        changed = list(EXAMPLES)
        changed[number] = example(50 + number, len(EXAMPLES[number].input_ids))
        after = losses_of(model, changed)
        for place, (old, new) in enumerate(zip(before, after, strict=True)):
            assert (old == pytest.approx(new, rel=1e-6)) == (place != number or old == 0)


def gradients(model: torch.nn.Module, batch: dict[str, Any]) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss, count = summed_cross_entropy(model, batch)
    (loss / count).backward()
    found = {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}
    return loss.item(), found


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_loss_and_gradient_are_those_of_padded_rows(kind: str, checkpointing: bool) -> None:
    model = packing_model(kind)
    if kind != "mixtral":  # its products for experts know no float64
        model = model.double()
    if checkpointing:
        model.train()
        model.gradient_checkpointing_enable({"use_reentrant": False})
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    loss, expected = 0.0, {}
    for one in EXAMPLES[:3]:
        own, gradient = gradients(model, collate([one], 0))
        loss += own
        counted = sum(label != IGNORED for label in one.labels)
        expected = {name: expected.get(name, 0) + value * counted for name, value in gradient.items()}
    total = sum(label != IGNORED for one in EXAMPLES[:3] for label in one.labels)
    found_loss, found = gradients(model, pack(EXAMPLES[:3]))
    assert found_loss == pytest.approx(loss, rel=1e-5)
    for name, value in found.items():
        # Norms are computed in float32 even in a float64 model.
        assert (value * total - expected[name]).norm() <= 1e-4 * expected[name].norm(), name


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_positions_may_jump_within_an_example(dtype: torch.dtype) -> None:
    model = family_model("llama").to(dtype)
    if dtype == torch.bfloat16:
        use_folded_attention(model)
    examples = [Example(ids := list(range(3, 3 + length)), ids, 0) for length in (17, 9, 23)]
    padded = mean_loss(model, examples, Grouping(pad_id=0, positions=tens), batch_size=1)
    use_packed_attention(model)
    found = mean_loss(model, examples, Grouping(pad_id=0, positions=tens, packing=True), batch_size=8)
    assert found == pytest.approx(padded, rel=1e-6 if dtype == torch.float64 else 1e-2)
    assert padded != pytest.approx(mean_loss(model, examples, Grouping(pad_id=0), batch_size=1), rel=1e-3)


def test_rows_that_are_not_packed_are_computed_as_before() -> None:
    model = small_model()
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    before = model(input_ids=ids, attention_mask=mask).logits
    use_packed_attention(model)
    assert torch.equal(model(input_ids=ids, attention_mask=mask).logits[0], before[0])
    assert torch.equal(model(input_ids=ids, attention_mask=mask).logits[1, :2], before[1, :2])


@pytest.mark.parametrize(
    ("kind", "attention", "expected"),
    [("llama", "sdpa", True), ("llama", "eager", False), ("mamba", "eager", False), ("lfm2", "sdpa", False)],
)
def test_models_in_which_examples_would_see_each_other_are_told_apart(
    kind: str, attention: str, expected: bool
) -> None:
    model = family_model(kind)
    model.set_attn_implementation(attention)
    assert packs(model) is expected
    assert model.config._attn_implementation == attention


@pytest.mark.parametrize("make", [small_model, adapted_model])
def test_a_model_with_code_of_its_own_is_measured(make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []
    monkeypatch.setattr(packed_attention, "measure_packing", measured.append)
    assert packs(make())
    assert not measured
    monkeypatch.setattr(type(small_model()), "__module__", "own_code")
    packs(make())
    assert len(measured) == 1


def test_what_is_measured_is_what_the_table_says() -> None:
    for kind in ("qwen2", "gemma2", "recurrent_gemma", "falcon_h1", "granite"):
        model = family_model(kind)
        assert measure_packing(model) is known_packing(model.config), kind
