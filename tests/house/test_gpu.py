"""What only a GPU can show: run with `pytest -m gpu`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from arcft.config.model import ModelConfig
from arcft.models.load import load_model
from arcft.models.lora import apply_lora
from arcft.models.stacked_lora import StackedLora
from arcft.runs.setup.build import choose_device
from arcft.training.slots import SlotTrainer
from arcft.ttft.units import Adapted, Finished, Lowered
from tests.support import small_engine
from tests.support.decoding import decode, search
from tests.support.small_training import CopyStream, lora_config, optimizer_config, small_model, small_run

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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_search_finds_what_it_finds_on_the_cpu(dtype: torch.dtype) -> None:
    prompts = [[2, 3, 4, 5], [6, 7], [8, 9, 10]]
    options: dict[str, Any] = {"max_new_tokens": 6, "end_ids": [1], "pad_id": 0, "threshold": 0.01, "max_nodes": 500}
    found = [
        search(small_model().to(device, dtype if device == "cuda" else torch.float32), prompts, **options)
        for device in ("cpu", "cuda")
    ]
    on_cpu, on_gpu = (
        [{tuple(text.token_ids): text.logprob for text in row.completions} for row in rows] for rows in found
    )
    if dtype == torch.float32:
        assert [row.keys() for row in on_gpu] == [row.keys() for row in on_cpu]
    for mine, theirs in zip(on_gpu, on_cpu, strict=True):
        for tokens in mine.keys() & theirs.keys():
            assert mine[tokens] == pytest.approx(theirs[tokens], abs=1e-3 if dtype == torch.float32 else 0.2)


def gpu_stacked(slots: int, dtype: torch.dtype = torch.float32) -> StackedLora:
    return StackedLora(small_engine.adapted_model(dtype).to("cuda"), slots)  # type: ignore[arg-type]


@pytest.mark.parametrize("slots", [1, 4, "auto"])
def test_the_engine_adapts_and_predicts_as_on_the_cpu(slots: Any) -> None:
    wanted = [small_engine.assignment_of(task, steps=6) for task in small_engine.small_tasks(4)]
    expected = small_engine.run(small_engine.make_engine(), wanted)
    engine = small_engine.make_engine(stacked=gpu_stacked(4 if slots == 4 else 1), slots=slots)
    events = small_engine.run(engine, wanted)
    for assignment in wanted:
        (own,), (other,) = (small_engine.events_of(all_, assignment, Adapted) for all_ in (events, expected))
        assert own.losses == pytest.approx(other.losses, rel=1e-3)
        assert isinstance(small_engine.events_of(events, assignment)[-1], Finished)


@pytest.fixture
def little_memory() -> Iterator[Callable[[int], None]]:
    """Leaves so many bytes more than are taken."""

    def limit(free: int) -> None:
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties().total_memory
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + free) / total)

    yield limit
    torch.cuda.set_per_process_memory_fraction(1.0)


def test_an_engine_without_memory_gives_things_up_and_goes_on(little_memory: Callable[[int], None]) -> None:
    wanted = [small_engine.assignment_of(task, steps=4) for task in small_engine.small_tasks(8)]
    engine = small_engine.make_engine(stacked=gpu_stacked(8), slots=8)
    little_memory(24 * 2**20)
    events = small_engine.run(engine, wanted)
    assert [event.reason for event in events if isinstance(event, Lowered)]
    assert sum(isinstance(event, Finished) for event in events) == len(wanted)


def test_tasks_share_passes_over_a_quantised_base(tmp_path: Path) -> None:
    small_model(hidden_size=64, intermediate_size=128).save_pretrained(tmp_path / "base")
    stream = CopyStream()

    def norms(quantization: Any) -> list[list[float]]:
        config = ModelConfig(name="base", path=str(tmp_path / "base"), quantization=quantization)
        base = load_model(config, dtype=torch.bfloat16, device=choose_device())
        stacked = StackedLora(apply_lora(base, lora_config(dropout=0.0), [], seed=0), 3)
        assert not stacked.can_merge
        trainer = SlotTrainer(stacked, pad_id=0, max_grad_norm=1.0)
        for slot in range(3):
            trainer.begin(slot, learning_rate=1e-2, factor=lambda step: 1.0)
        steps = [trainer.step([[stream[3 * k + slot]] for slot in range(3)]) for k in range(3)]
        return [[slot.gradient_norm for slot in step] for step in steps]

    plain = torch.tensor(norms("none"))
    for quantization in ("nf4", "int8"):
        assert torch.allclose(torch.tensor(norms(quantization)), plain, rtol=0.2), quantization
