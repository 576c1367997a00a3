"""Models with a part of their vocabulary: logits to the bit, the same training, and files with all rows."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel

from arcft.errors import ArcftError, ModelError
from arcft.models.lora import apply_lora, load_adapter, save_adapter
from arcft.models.selected_logits import selected_logits
from arcft.models.stacked_lora import StackedLora
from arcft.models.vocabulary import num_pruned_parameters, prune_vocabulary, pruned_vocabulary
from arcft.training.saving import load_weights, save_weights
from tests.support.families import family_model
from tests.support.small_training import lora_config, small_model

ROWS = 1000
KEPT = sorted(np.random.default_rng(0).permutation(ROWS)[:128].tolist())
IDS = np.random.default_rng(1).integers(len(KEPT), size=(3, 24))
PLAIN = lora_config(dropout=0.0)


def model(seed: int = 0, **changes: Any) -> PreTrainedModel:
    return small_model(seed, vocab_size=ROWS, **changes)


def pruned(base: PreTrainedModel, *, trains_rows: bool = False) -> PreTrainedModel:
    prune_vocabulary(base, KEPT, trains_rows=trains_rows)
    return base


def full_logits(base: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return base(torch.tensor(KEPT)[torch.tensor(IDS)]).logits[..., KEPT]


def own_logits(base: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return base(torch.tensor(IDS)).logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [True, False])
def test_logits_are_unchanged_to_the_bit(tied: bool, dtype: torch.dtype) -> None:
    base: Any = model(tie_word_embeddings=tied)
    base.to(dtype)
    expected = full_logits(base)
    # One token at a time is another kernel.
    one = torch.tensor(IDS[:1, :1])
    alone = base(torch.tensor(KEPT)[one]).logits[..., KEPT]
    total = sum(weight.numel() for weight in base.parameters())
    assert torch.equal(own_logits(pruned(base)), expected)
    assert torch.equal(base(one).logits, alone)
    lost = (ROWS - len(KEPT)) * 32 * (1 if tied else 2)
    assert sum(weight.numel() for weight in base.parameters()) == total - lost
    assert num_pruned_parameters(base) == lost
    assert (base.get_input_embeddings().weight is base.get_output_embeddings().weight) == tied
    assert base.config.vocab_size == len(KEPT)


@pytest.mark.parametrize(
    "kind", ["gemma2", "gpt2", "phi", "cohere", "opt", "granite", "mixtral", "mamba", "bart", "xglm"]
)
def test_families_keep_their_logits(kind: str) -> None:
    """Soft caps and scales of logits, biases of heads, scaled embeddings, padding ids, states."""
    kept = sorted({0, 1, 2, *range(3, 200, 2)})
    ids = torch.randint(3, len(kept), (2, 12), generator=torch.Generator().manual_seed(0))
    base = family_model(kind)
    with torch.no_grad():
        expected = base(torch.tensor(kept)[ids]).logits[..., kept]
        prune_vocabulary(base, kept, trains_rows=False)
        assert torch.allclose(base(ids).logits, expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["gemma3n_text", "gemma4_text"])
def test_what_keeps_more_by_token_is_refused(kind: str) -> None:
    refusal = (
        rf"a model of type {kind}: it also looks up tokens in .*per_layer\.weight; use model\.prune_vocabulary=false"
    )
    with pytest.raises(ModelError, match=refusal):
        prune_vocabulary(family_model(kind), [0, 1, 2, *range(50, 111)], trains_rows=False)


def test_training_is_the_same_but_for_the_normalisation() -> None:
    """Full model with its logits restricted to the kept tokens, and pruned model: one trajectory."""

    def losses(base: PreTrainedModel, ids: torch.Tensor, columns: list[int] | None) -> list[float]:
        optimizer = torch.optim.AdamW(base.parameters(), lr=1e-3, weight_decay=0.0)
        places = torch.arange(IDS.size - 1)[None]
        found = []
        for _ in range(10):
            logits = selected_logits(base, {"input_ids": ids.view(1, -1), "use_cache": False}, places)[0]
            logits = logits if columns is None else logits[:, columns]
            loss = nn.functional.cross_entropy(logits, torch.tensor(IDS).view(-1)[1:])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        return found

    expected = losses(model().double().train(), torch.tensor(KEPT)[torch.tensor(IDS)], KEPT)
    own = losses(pruned(model().double(), trains_rows=True).train(), torch.tensor(IDS), None)
    assert own == pytest.approx(expected, abs=1e-10)
    assert own[-1] < own[0] - 0.3


@pytest.mark.parametrize("tied", [True, False])
def test_a_whole_model_is_saved_with_all_rows(tied: bool, tmp_path: Path) -> None:
    original = model(tie_word_embeddings=tied)
    base = pruned(model(tie_word_embeddings=tied), trains_rows=True)
    with torch.no_grad():
        for weight in base.parameters():
            weight.add_(0.5)
    save_weights(base, tmp_path)
    saved = type(original).from_pretrained(tmp_path)
    assert saved.config.vocab_size == ROWS
    names = {name for name, _ in original.named_parameters()}
    assert load_file(tmp_path / "model.safetensors").keys() == names
    assert torch.allclose(full_logits(saved.eval()), own_logits(base), atol=1e-5)
    weight, before = (dict(one.named_parameters())["model.embed_tokens.weight"] for one in (saved, original))
    lost = [row for row in range(ROWS) if row not in KEPT]
    assert torch.equal(weight[lost], before[lost])
    assert torch.equal(weight[KEPT], before[KEPT] + 0.5)
    again = pruned(model(seed=1, tie_word_embeddings=tied), trains_rows=True)
    load_weights(again, tmp_path)
    assert torch.equal(own_logits(again), own_logits(base))
    save_weights(again, tmp_path / "again")
    first, second = (load_file(folder / "model.safetensors") for folder in (tmp_path, tmp_path / "again"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


HEAD = ["q_proj", "lm_head"]
TOKENS = ["embed_tokens", "lm_head"]


@pytest.mark.parametrize(
    ("train_modules", "changes", "tied"),
    [
        ([], {}, True),
        (TOKENS, {}, True),
        (TOKENS, {}, False),
        ([], {"target_modules": HEAD}, False),
        ([], {"target_modules": ["q_proj", "embed_tokens"]}, False),
    ],
)
def test_an_adapter_is_saved_with_all_rows(
    train_modules: list[str], changes: dict[str, Any], tied: bool, tmp_path: Path
) -> None:
    def fresh() -> PreTrainedModel:
        return model(tie_word_embeddings=tied)

    lora = dataclasses.replace(PLAIN, **changes)
    adapted = apply_lora(pruned(fresh(), trains_rows=bool(train_modules)), lora, train_modules, seed=0)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in adapted.parameters():
            if weight.requires_grad:
                weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    save_adapter(adapted, tmp_path / "adapter")
    expected = own_logits(adapted.eval())
    whole = load_adapter(fresh(), tmp_path / "adapter", trainable=False)
    assert torch.allclose(full_logits(whole), expected, atol=1e-5)
    again = load_adapter(pruned(fresh()), tmp_path / "adapter", trainable=True)
    assert torch.equal(own_logits(again.eval()), expected)
    save_adapter(again, tmp_path / "again")
    # An adapter of the full model is read by the pruned one, and written back as it was.
    save_adapter(whole, tmp_path / "whole")
    read = [load_file(tmp_path / name / "adapter_model.safetensors") for name in ("adapter", "again", "whole")]
    assert read[0].keys() == read[1].keys() == read[2].keys()
    assert all(torch.equal(read[0][name], other[name]) for other in read[1:] for name in other)
    if "embed_tokens" not in changes.get("target_modules", ()):
        stacked = StackedLora(load_adapter(pruned(fresh()), tmp_path / "adapter", trainable=True), 2)
        stacked.save(1, tmp_path / "slot")
        slot = load_file(tmp_path / "slot" / "adapter_model.safetensors")
        assert slot.keys() == read[0].keys()
        assert all(torch.equal(slot[name], read[0][name]) for name in slot)
        stacked.load(0, tmp_path / "slot")
        assert torch.equal(stacked.master(0), stacked.master(1))


def test_without_trained_rows_the_adapter_is_as_without_pruning(tmp_path: Path) -> None:
    for name, base in (("pruned", pruned(model())), ("full", model())):
        save_adapter(apply_lora(base, PLAIN, [], seed=0), tmp_path / name)
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "pruned" / file).read_bytes() == (tmp_path / "full" / file).read_bytes()


def test_an_adapter_that_depends_on_pruned_rows_is_refused() -> None:
    lora = dataclasses.replace(PLAIN, target_modules=HEAD, use_dora=True)
    with pytest.raises(ArcftError, match=r"an adapter on lm_head with lora\.use_dora=True"):
        apply_lora(pruned(model(tie_word_embeddings=False)), lora, [], seed=0)
    apply_lora(pruned(model(tie_word_embeddings=False)), dataclasses.replace(PLAIN, use_dora=True), [], seed=0)


def test_padding_goes_along_and_a_quantised_head_is_refused() -> None:
    for row, expected in ((KEPT[5], 5), (KEPT[5] + 1, None)):
        base = model(pad_token_id=row)
        assert pruned(base).get_input_embeddings().padding_idx == expected
    base = model(tie_word_embeddings=False)
    base.lm_head.weight = nn.Parameter(torch.zeros(ROWS, 32, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ModelError, match="its head is Linear, which can't be pruned"):
        pruned(base)
    assert pruned_vocabulary(base) is None
