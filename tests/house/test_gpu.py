"""What only a GPU can show: run with `pytest -m gpu`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from arcft.config.model import ModelConfig
from arcft.models.load import load_model
from arcft.models.lora import apply_lora
from arcft.runs.setup.build import choose_device
from tests.support.decoding import decode
from tests.support.small_training import lora_config, optimizer_config, small_model, small_run

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]


def test_greedy_decoding_is_the_same_as_on_the_cpu() -> None:
    prompts = [[2, 3, 4, 5], [6, 7], [8, 9, 10]]
    on_cpu = decode(small_model(), prompts, max_new_tokens=20, end_ids=[1], pad_id=0)
    on_gpu = decode(small_model().to("cuda"), prompts, max_new_tokens=20, end_ids=[1], pad_id=0)
    assert [row.token_ids for row in on_gpu] == [row.token_ids for row in on_cpu]
    assert [row.logprob for row in on_gpu] == pytest.approx([row.logprob for row in on_cpu], abs=1e-3)


@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon", "adamw_8bit", "paged_adamw_8bit"])
def test_adapters_learn_on_every_base_with_every_optimizer(tmp_path: Path, quantization: str, optimizer: str) -> None:
    small_model(hidden_size=64, intermediate_size=128).save_pretrained(tmp_path / "base")
    config = ModelConfig(name="base", path=str(tmp_path / "base"), quantization=quantization)  # type: ignore[arg-type]
    base = load_model(config, dtype=torch.bfloat16, device=choose_device())
    model = apply_lora(base, lora_config(dropout=0.0), [], seed=0)
    chosen = optimizer_config(optimizer)
    run = small_run(tmp_path, model, dtype="bfloat16", device=choose_device(), max_steps=30, optimizer_config=chosen)
    run.trainer.train()
    losses = run.logs.of("loss")
    assert sum(losses[-5:]) < sum(losses[:5])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_groups_change_no_more_than_rounding(tmp_path: Path, dtype: str) -> None:
    def losses(name: str, **changes: int) -> list[float]:
        run = small_run(
            tmp_path / name, small_model(), dtype=dtype, device=choose_device(), max_steps=12, num_workers=1, **changes
        )
        run.trainer.train()
        return run.logs.of("loss")

    grouped = losses("groups", max_batch_tokens=40)
    assert grouped == pytest.approx(losses("whole"), rel=1e-3 if dtype == "float32" else 5e-2)


def test_unsloth_trains(tmp_path: Path) -> None:
    pytest.importorskip("unsloth")
    small_model(hidden_size=64, intermediate_size=128).save_pretrained(tmp_path / "base")
    config = ModelConfig(name="base", path=str(tmp_path / "base"), backend="unsloth")
    base = load_model(config, dtype=torch.bfloat16, device=choose_device(), max_seq_length=64)
    model = apply_lora(base, lora_config(dropout=0.0), [], seed=0, backend="unsloth")
    run = small_run(tmp_path, model, dtype="bfloat16", device=choose_device(), max_steps=30)
    run.trainer.train()
    losses = run.logs.of("loss")
    assert sum(losses[-5:]) < sum(losses[:5])
