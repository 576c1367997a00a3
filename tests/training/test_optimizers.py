"""Optimizers: what decays, what Muon gets, and that a state is saved and loaded whole."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from arcft.config.optimizer import OptimizerConfig
from arcft.training.batches import collate
from arcft.training.loss import summed_cross_entropy
from arcft.training.optimizers import MuonWithAdamW, OptimizerError, build_optimizer, state_bytes
from tests.support.small_training import PAD, CopyStream, adapted_model, optimizer_config, small_model

NAMES = ["adamw", "muon", "adamw_8bit", "paged_adamw_8bit"]


def names_of(model: torch.nn.Module, parameters: list[torch.nn.Parameter]) -> set[str]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(parameter)] for parameter in parameters}


def take_steps(model: Any, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
    losses = []
    for step in steps:
        batch = collate([CopyStream()[8 * step + k] for k in range(8)], PAD)
        loss, count = summed_cross_entropy(model, batch)
        (loss / count).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append((loss / count).item())
    return losses


def test_adamw_decays_matrices_only_and_is_torch_adamw() -> None:
    model = adapted_model()
    optimizer = build_optimizer(model, optimizer_config(eps=1e-7), 1e-3)
    decayed, spared = optimizer.param_groups
    assert type(optimizer) is torch.optim.AdamW
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.01, 0.0)
    assert (decayed["lr"], decayed["betas"], decayed["eps"]) == (1e-3, (0.9, 0.99), 1e-7)
    assert all("norm" in name for name in names_of(model, spared["params"]))
    assert all("lora_" in name or "embed_tokens" in name for name in names_of(model, decayed["params"]))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert len(decayed["params"]) + len(spared["params"]) == len(trained)


def test_muon_gets_hidden_matrices_and_adamw_the_rest() -> None:
    model = adapted_model()
    optimizer = build_optimizer(model, optimizer_config("muon"), 1e-3)
    assert isinstance(optimizer, MuonWithAdamW)
    muon, matrices, vectors = optimizer.param_groups
    assert all("lora_" in name for name in names_of(model, muon["params"]))
    # Two layers, seven linear layers each, A and B.
    assert len(muon["params"]) == 2 * 7 * 2
    assert all("embed_tokens" in name for name in names_of(model, matrices["params"]))
    assert all("norm" in name for name in names_of(model, vectors["params"]))


def test_muon_keeps_an_untied_head_and_biases_out() -> None:
    model = small_model(tie_word_embeddings=False)
    optimizer = build_optimizer(model, optimizer_config("muon"), 1e-3)
    muon, matrices, vectors = optimizer.param_groups
    assert names_of(model, matrices["params"]) == {"model.embed_tokens.weight", "lm_head.weight"}
    assert {name.rpartition(".")[2] for name in names_of(model, vectors["params"])} == {"weight", "bias"}
    assert len(muon["params"]) == 2 * 7


def test_the_parts_of_muon_step_as_they_would_alone() -> None:
    model = small_model(tie_word_embeddings=False)
    alone = copy.deepcopy(model)
    together = build_optimizer(model, optimizer_config("muon"), 1e-3)
    ends = {"model.embed_tokens.weight", "lm_head.weight"}
    hidden = {name: p for name, p in alone.named_parameters() if p.ndim == 2 and name not in ends}
    others = {name: p for name, p in alone.named_parameters() if name not in hidden}
    muon = torch.optim.Muon(hidden.values(), lr=1e-3, momentum=0.9, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    groups = [
        {"params": [p for p in others.values() if p.ndim == 2], "weight_decay": 0.01},
        {"params": [p for p in others.values() if p.ndim == 1], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99), eps=1e-8)
    take_steps(model, together, range(3))
    for step in range(3):
        batch = collate([CopyStream()[8 * step + k] for k in range(8)], PAD)
        loss, count = summed_cross_entropy(alone, batch)
        (loss / count).backward()
        for optimizer in (muon, adamw):
            optimizer.step()
            optimizer.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), alone.parameters(), strict=True))


def test_a_schedule_moves_both_parts_also_after_loading() -> None:
    optimizer = build_optimizer(small_model(), optimizer_config("muon"), 1.0)
    assert isinstance(optimizer, MuonWithAdamW)
    optimizer.load_state_dict(optimizer.state_dict())
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    optimizer.step()
    scheduler.step()
    assert [part.param_groups[0]["lr"] for part in optimizer.parts.values()] == [0.5, 0.5]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_learns_and_resumes_from_its_state(name: str) -> None:
    # bitsandbytes keeps 8-bit states only from 4096 elements on.
    model = small_model(intermediate_size=256)
    optimizer = build_optimizer(model, optimizer_config(name), 1e-2)
    losses = take_steps(model, optimizer, range(4))
    assert losses[3] < losses[0]
    dtypes = {value.dtype for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)}
    assert (torch.uint8 in dtypes) == name.endswith("8bit")
    again = copy.deepcopy(model)
    loaded = build_optimizer(again, optimizer_config(name), 1e-2)
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert take_steps(again, loaded, range(4, 6)) == take_steps(model, optimizer, range(4, 6))


def test_where_nothing_can_be_paged_a_note_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    model = small_model(intermediate_size=256)
    take_steps(model, build_optimizer(model, optimizer_config("paged_adamw_8bit"), 1e-2), range(3))
    assert capsys.readouterr().out.count("the same as adamw_8bit") == 1


def test_a_state_of_another_optimizer_is_refused() -> None:
    optimizer = build_optimizer(small_model(), optimizer_config("muon"), 1e-2)
    with pytest.raises(OptimizerError, match="resume with the optimizer that the run was started with"):
        optimizer.load_state_dict(build_optimizer(small_model(), optimizer_config(), 1e-2).state_dict())


def test_a_frozen_model_is_refused() -> None:
    model = small_model().requires_grad_(False)
    config: OptimizerConfig = optimizer_config()
    with pytest.raises(OptimizerError, match="no trainable parameter"):
        build_optimizer(model, config, 1e-3)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("model", [adapted_model, small_model])
def test_the_bytes_of_the_state_are_known_before_there_is_one(name: str, model: Any) -> None:
    built = model()
    optimizer = build_optimizer(built, optimizer_config(name), 1e-3)
    take_steps(built, optimizer, range(1))
    parts = optimizer.parts.values() if isinstance(optimizer, MuonWithAdamW) else [optimizer]
    # The rest, such as the number of steps and the maps of quantised values, is small.
    held = sum(
        value.nbytes
        for part in parts
        for parameter, state in part.state.items()
        for value in state.values()
        if isinstance(value, torch.Tensor) and value.shape == parameter.shape
    )
    assert held == state_bytes(built, optimizer_config(name))
