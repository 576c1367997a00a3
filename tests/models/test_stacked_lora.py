"""Stacked adapters are PEFT's adapters: the same logits, the same files, and a base that comes back to the bit."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch.multiprocessing.reductions import StorageWeakRef
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from arcft.config.model import ModelConfig
from arcft.models.adapter_config import LoraError
from arcft.models.load import load_model
from arcft.models.lora import load_adapter, save_adapter
from arcft.models.stacked_lora import StackedLora
from arcft.models.stacked_parts import lower_factors
from arcft.training.slots import SlotTrainer
from tests.support.decoding import decode
from tests.support.plain_adaptation import ARCHITECTURES, CPU, PAD, adapted, adapter_state, architecture, make_examples
from tests.support.small_training import TRAIN_MODULES, small_model

IDS = torch.tensor([example.input_ids for example in make_examples(6, seed=1, shortest=9, longest=9)])
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True, "r": 3},
    "whole": {"train_modules": TRAIN_MODULES},
    "head_alone": {"train_modules": ["lm_head", "embed_tokens"]},
    "lm_head": {"target_modules": ["q_proj", "lm_head"]},
    "pissa": {"init_lora_weights": "pissa"},
}


def gpt2(dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """With Conv1D in place of linear layers, layer norms, and embeddings of positions."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        config = GPT2Config(vocab_size=64, n_positions=64, n_embd=32, n_layer=2, n_head=2, resid_pdrop=0.5)
        return GPT2LMHeadModel(config).eval().to(dtype)  # type: ignore[call-arg]


def shift(stacked: StackedLora, slot: int, seed: int, size: float = 0.1) -> None:
    """Move all of a slot's weights, as training would."""
    generator = torch.Generator().manual_seed(seed)
    numbers = stacked.master(slot)
    numbers.add_(size * torch.randn(numbers.shape, generator=generator, dtype=numbers.dtype))
    stacked.publish(slot)


def make_stacked(
    make: Callable[[], peft.PeftModel] = lambda: adapted(architecture("llama"), TRAIN_MODULES), slots: int = 3
) -> StackedLora:
    """Slot i shifted from the initial adapter by random numbers of seed i; the last one is the initial adapter."""
    stacked = StackedLora(make(), slots)
    for slot in range(slots - 1):
        shift(stacked, slot, seed=slot)
    return stacked


def logits_of(stacked: StackedLora, slots: Sequence[int], ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.no_grad(), stacked.routed() as route:
        route(slots)
        return stacked.model(input_ids=ids).logits


def logits(model: torch.nn.Module, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


def base_weights(stacked: StackedLora) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in stacked.model.state_dict().items()}


def assert_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name in first:
        assert first[name].dtype == second[name].dtype
        assert torch.equal(first[name], second[name]), name


# What comes out


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_saved_slots_are_adapters_of_peft(tmp_path: Path, name: str, variant: str) -> None:
    stacked = make_stacked(lambda: adapted(architecture(name), **VARIANTS[variant]))
    mine = logits_of(stacked, [0, 0, 1, 1, 2, 2])
    for slot in range(3):
        stacked.save(slot, tmp_path / str(slot))
        ours = load_adapter(architecture(name), tmp_path / str(slot), trainable=False)
        theirs = peft.PeftModel.from_pretrained(architecture(name), str(tmp_path / str(slot)))
        rows = slice(2 * slot, 2 * slot + 2)
        assert torch.equal(logits(ours, IDS[rows]), logits(theirs, IDS[rows]))
        assert float((logits(ours, IDS[rows]) - mine[rows]).abs().max()) < 1e-5
        assert_equal(adapter_state(ours), stacked.state(slot))
    assert float((mine[:2] - logits_of(stacked, 6 * [2])[:2]).abs().max()) > 0.01


@pytest.mark.parametrize("make", [lambda: architecture("qwen3"), gpt2], ids=["qwen3", "gpt2"])
def test_the_files_are_those_that_peft_writes(tmp_path: Path, make: Callable[[], PreTrainedModel]) -> None:
    train_modules = TRAIN_MODULES if make is not gpt2 else ["ln_f", "wte"]
    model = adapted(make(), train_modules)
    save_adapter(model, tmp_path / "peft")
    StackedLora(model, 2).save(1, tmp_path / "stacked")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "stacked" / name).read_bytes() == (tmp_path / "peft" / name).read_bytes()
    assert {path.name for path in (tmp_path / "stacked").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }


def test_a_16_bit_base_has_a_float32_master_that_is_saved_and_loaded_to_the_bit(tmp_path: Path) -> None:
    def make() -> peft.PeftModel:
        return adapted(architecture("qwen2", torch.bfloat16), TRAIN_MODULES)

    stacked = make_stacked(make)
    stacked.save(0, tmp_path)
    assert {weight.dtype for weight in load_file(tmp_path / "adapter_model.safetensors").values()} == {torch.float32}
    stacked.load(2, tmp_path)
    assert torch.equal(stacked.master(2), stacked.master(0))
    assert stacked.compute_dtype == torch.bfloat16
    again = load_adapter(architecture("qwen2", torch.bfloat16), tmp_path, trainable=False)
    assert float((logits(again) - logits_of(stacked, 6 * [0])).abs().max()) < 0.05


def test_fan_in_fan_out_and_modules_of_any_kind(tmp_path: Path) -> None:
    stacked = make_stacked(lambda: adapted(gpt2(), ["ln_f", "wte", "mlp"], target_modules=["c_attn"]))
    mine = logits_of(stacked, [1, 0, 0, 2, 1, 0])
    for slot, rows in {0: [1, 2, 5], 1: [0, 4], 2: [3]}.items():
        stacked.save(slot, tmp_path / str(slot))
        theirs = load_adapter(gpt2(), tmp_path / str(slot), trainable=False)
        assert float((logits(theirs, IDS[rows]) - mine[rows]).abs().max()) < 1e-5
        with torch.no_grad(), stacked.merged(slot):
            assert float((stacked.model(input_ids=IDS[rows]).logits - mine[rows]).abs().max()) < 1e-5


# Routes


@pytest.mark.parametrize(
    "slots",
    [[0, 0, 1, 1, 2, 2], [2, 1, 0, 0, 1, 2], [0, 2, 0, 0, 2, 0], [1, 1, 1, 1, 1, 1], [2, 2, 2, 2, 2, 0]],
    ids=lambda slots: "".join(map(str, slots)),
)
def test_each_row_has_its_own_slot(slots: list[int]) -> None:
    stacked = make_stacked()
    alone = [logits_of(stacked, 6 * [slot]) for slot in range(3)]
    mixed = logits_of(stacked, slots)
    for row, slot in enumerate(slots):
        assert float((mixed[row] - alone[slot][row]).abs().max()) < 1e-5
    assert float((alone[0] - alone[1]).abs().max()) > 0.01


def test_inputs_without_an_axis_of_rows_are_routed_if_they_hold_all_tokens() -> None:
    class Flat(torch.nn.Module):
        """Hands its layer all tokens in one axis, as some feed-forward blocks do."""

        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.inner(inputs.flatten(0, 1)).unflatten(0, inputs.shape[:2])

    stacked = make_stacked()
    expected = logits_of(stacked, [0, 1, 1, 2, 0, 0]), logits_of(stacked, [0, 0, 1, 1, 2, 2])
    for layer in stacked.model.model.layers:
        layer.mlp = Flat(layer.mlp)
        layer.input_layernorm = Flat(layer.input_layernorm)
    assert torch.allclose(logits_of(stacked, [0, 1, 1, 2, 0, 0]), expected[0], atol=1e-5)
    assert torch.allclose(logits_of(stacked, [0, 0, 1, 1, 2, 2]), expected[1], atol=1e-5)


@pytest.mark.parametrize("count", [2, 3])
def test_a_layer_that_is_given_some_tokens_only_is_named(count: int) -> None:
    stacked = make_stacked()
    expert = stacked.model.model.layers[1].mlp.up_proj
    # As a mixture of experts would: six tokens of those that the rows hold.
    expert.register_forward_pre_hook(lambda module, inputs: (inputs[0].flatten(0, 1)[:6],))
    message = (
        r"model\.layers\.1\.mlp\.up_proj: its input of shape \(6, 32\) does not consist of the 6 rows.*ttft\.slots=1"
    )
    with pytest.raises(LoraError, match=message), stacked.training(0, count):
        stacked.model(input_ids=IDS)


def test_outside_of_its_contexts_the_model_does_not_run() -> None:
    stacked = make_stacked()
    logits_of(stacked, 6 * [0])
    with pytest.raises(RuntimeError, match=r"within training\(\), routed\(\) or merged\(\) only"):
        stacked.model(input_ids=IDS)


# Merging


@pytest.mark.parametrize("variant", ["whole", "rslora", "lm_head"])
def test_merged_equals_stacked_and_the_base_is_put_back_to_the_bit(variant: str) -> None:
    stacked = make_stacked(lambda: adapted(architecture("qwen3", torch.float32), **VARIANTS[variant]))
    before = base_weights(stacked)
    untouched = logits_of(stacked, 6 * [1])
    with torch.no_grad(), stacked.merged(1):
        merged = stacked.model(input_ids=IDS).logits
        assert any(not torch.equal(before[name], weight) for name, weight in stacked.model.state_dict().items())
    difference, scale = (merged - untouched).abs(), float(untouched.abs().max())
    assert float(difference.max()) < 1e-5 * scale
    assert float(difference.mean()) < 1e-6 * scale
    assert_equal(base_weights(stacked), before)
    assert torch.equal(logits_of(stacked, 6 * [1]), untouched)


def test_weights_in_half_precision_are_not_merged_into() -> None:
    stacked = make_stacked(lambda: adapted(architecture("qwen3", torch.bfloat16)))
    assert not stacked.can_merge
    with pytest.raises(LoraError, match="can't be merged into weights that are quantised or in half precision"):
        stacked.merged(1).__enter__()


def test_an_error_while_merged_puts_the_base_back_too() -> None:
    stacked = make_stacked()
    before = base_weights(stacked)
    with pytest.raises(ZeroDivisionError), stacked.merged(0):
        raise ZeroDivisionError
    assert_equal(base_weights(stacked), before)
    with pytest.raises(RuntimeError, match="within training"):
        stacked.model(input_ids=IDS)


def test_running_out_of_memory_while_merging_puts_the_base_back_too(monkeypatch: pytest.MonkeyPatch) -> None:
    stacked = make_stacked()
    before = base_weights(stacked)
    # So many layers succeed; the next has no room.
    budget = iter(range(5))

    def fail(*_: Any) -> torch.Tensor:
        if next(budget, None) is None:
            raise torch.OutOfMemoryError("out of memory")
        return torch.zeros(1)

    monkeypatch.setattr("arcft.models.stacked_lora.merged_weight", fail)
    with pytest.raises(torch.OutOfMemoryError), stacked.merged(0):
        pass
    assert_equal(base_weights(stacked), before)
    assert torch.isfinite(logits_of(stacked, 6 * [0])).all()


def test_what_merging_costs() -> None:
    stacked = make_stacked(lambda: adapted(architecture("llama", torch.bfloat16)))
    # Per layer: query and output 32x32, key and value 16x32, three of the feed-forward 64x32; two bytes a number.
    assert stacked.merge_bytes == 2 * 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 64 * 32)


@pytest.mark.parametrize("slots_of_rows", [[0, 0], [0, 1]], ids=["one adapter", "two adapters"])
def test_what_a_young_adapter_adds_survives_bfloat16(slots_of_rows: list[int]) -> None:
    stacked = make_stacked(lambda: adapted(architecture("llama", torch.bfloat16)))
    assert not stacked.can_merge
    x = torch.randn(2, 400, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    layer: Any = stacked.model.get_submodule("model.layers.0.mlp.up_proj")
    with torch.no_grad(), stacked.routed() as route:
        for slot in (0, 1):
            stacked.master(slot).mul_(0.01)
            stacked.publish(slot)
        route(slots_of_rows)
        change = layer(x).float() - layer.base_layer(x).float()
        a, b = (factor.float().expand(2, -1, -1) for factor in (layer.factors.a, layer.factors.b))
        exact = layer.scale * (x.float() @ a.mT @ b.mT)
    assert exact.abs().mean() < 0.001 * layer.base_layer(x).abs().mean()
    assert float((change * exact).sum() / exact.square().sum()) == pytest.approx(1, abs=0.1)


def test_a_quantised_base_is_not_merged(tmp_path: Path) -> None:
    architecture("qwen2").save_pretrained(tmp_path)
    config = ModelConfig(name="small", path=str(tmp_path), quantization="nf4")
    stacked = make_stacked(lambda: adapted(load_model(config, dtype=torch.float32, device=CPU)))
    assert not stacked.can_merge
    with pytest.raises(LoraError, match="can't be merged into weights that are quantised"), stacked.merged(0):
        pass
    stacked.save(1, tmp_path / "adapter")
    theirs = load_adapter(load_model(config, dtype=torch.float32, device=CPU), tmp_path / "adapter", trainable=False)
    mixed = logits_of(stacked, [1, 0, 1, 2, 0, 1])
    assert torch.allclose(mixed[[0, 2, 5]], logits(theirs, IDS[[0, 2, 5]]), atol=1e-4)


# Decoding

PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [20, 21, 22], [30], [12, 13, 14, 15], [3, 9, 27], [5, 6, 7, 8]]


def test_decoding_side_by_side_equals_decoding_merged() -> None:
    # Wide random weights: a model that says something else at every step, and ends at times.
    stacked = make_stacked(lambda: adapted(small_model(seed=3, initializer_range=0.3), TRAIN_MODULES))
    slots = [2, 0, 1, 1, 0, 2]
    end = 17
    options: dict[str, Any] = {"max_new_tokens": [12, 5, 12, 9, 12, 12], "end_ids": [end], "pad_id": PAD}
    told: list[list[int]] = []
    with stacked.routed() as route:

        def follow(live: Sequence[int]) -> None:
            told.append(list(live))
            route([slots[row] for row in live])

        together = decode(stacked.model, PROMPTS, on_rows_changed=follow, **options)
    assert told[0] == [0, 1, 2, 3, 4, 5]
    assert len(told) > 2
    for slot in range(3):
        with stacked.merged(slot):
            for row in [row for row, own in enumerate(slots) if own == slot]:
                limit = options["max_new_tokens"][row]
                alone = decode(stacked.model, [PROMPTS[row]], max_new_tokens=limit, end_ids=[end], pad_id=PAD)[0]
                assert together[row].token_ids == alone.token_ids
                assert together[row].logprob == pytest.approx(alone.logprob, abs=1e-3)


def test_training_goes_on_after_decoding() -> None:
    stacked = make_stacked(lambda: adapted(architecture("llama"), TRAIN_MODULES))
    trainer = SlotTrainer(stacked, pad_id=PAD, max_grad_norm=1.0)
    trainer.begin(1, learning_rate=1e-2, factor=lambda step: 1.0)
    batch = make_examples(1, seed=8)
    losses = []
    for _ in range(3):
        losses.append(trainer.step([batch], first=1)[0].loss)
        with stacked.merged(0):
            decode(stacked.model, PROMPTS[:2], max_new_tokens=2, end_ids=[], pad_id=PAD)
        with stacked.routed() as route:
            decode(
                stacked.model,
                PROMPTS[:2],
                max_new_tokens=2,
                end_ids=[],
                pad_id=PAD,
                on_rows_changed=lambda live: route([2 * row for row in live]),
            )
    assert losses[2] < losses[1] < losses[0]


# Slots


def test_slots_begin_at_the_adapter_and_go_back_to_it() -> None:
    model = adapted(architecture("llama"), TRAIN_MODULES)
    expected, state = logits(model), {name: weight.clone() for name, weight in adapter_state(model).items()}
    stacked = StackedLora(model, 2)
    assert_equal(stacked.state(0), state)
    shift(stacked, 0, seed=1)
    assert not torch.allclose(logits_of(stacked, 6 * [0]), expected, atol=1e-3)
    assert torch.allclose(logits_of(stacked, 6 * [1]), expected, atol=1e-5)
    stacked.reset(0)
    assert_equal(stacked.state(0), state)
    assert torch.allclose(logits_of(stacked, 6 * [0]), expected, atol=1e-5)


def test_numbers_of_an_adapter() -> None:
    stacked = make_stacked(lambda: adapted(architecture("llama"), r=4), slots=2)
    # Per layer of rank 4: query and output 32 to 32, key and value 32 to 16, three of 32 and 64. All are multiples of
    # 16, so nothing is padded.
    assert stacked.size == 2 * 4 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 64))
    assert stacked.rank == 4
    assert stacked.master(0).shape == stacked.gradient(1).shape == (stacked.size,)
    assert {name for name in stacked.named(stacked.master(0)) if "lora_A" in name} == {
        name.replace("lora_B", "lora_A") for name in stacked.state(0) if "lora_B" in name
    }


def test_moving_and_resizing_keep_weights() -> None:
    stacked = make_stacked()
    kept = [stacked.state(slot) for slot in range(3)]
    stacked.move(0, 2)
    assert_equal(stacked.state(2), kept[0])
    stacked.resize(2)
    assert stacked.slots == 2
    assert_equal(stacked.state(1), kept[1])
    stacked.resize(4)
    assert_equal(stacked.state(0), kept[0])
    assert_equal(stacked.state(3), kept[2])
    assert logits_of(stacked, [0, 1, 2, 3, 0, 0]).isfinite().all()


@pytest.mark.parametrize("slots", [1, 2, 4])
def test_resizing_keeps_what_bfloat16_could_not_hold(slots: int) -> None:
    stacked = make_stacked(lambda: adapted(architecture("llama", torch.bfloat16)), slots=2)
    kept, initial = stacked.master(0).clone(), stacked.master(1).clone()
    assert not torch.equal(kept, kept.bfloat16().float())
    stacked.resize(slots)
    assert torch.equal(stacked.master(0), kept)
    for slot in range(1, slots):
        assert torch.equal(stacked.master(slot), initial)


def test_more_slots_than_there_is_memory_for_change_nothing() -> None:
    stacked = make_stacked()
    before = [stacked.state(slot) for slot in range(3)]
    expected = logits_of(stacked, [0, 0, 1, 1, 2, 2])
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        stacked.resize(10**9)
    assert stacked.slots == 3
    for slot in range(3):
        assert_equal(stacked.state(slot), before[slot])
    assert torch.equal(logits_of(stacked, [0, 0, 1, 1, 2, 2]), expected)


def test_a_rank_that_there_is_no_memory_for_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    stacked = make_stacked()
    before = [stacked.state(slot) for slot in range(3)]
    expected, size = logits_of(stacked, [0, 0, 1, 1, 2, 2]), stacked.size
    monkeypatch.setattr(torch.Tensor, "to", refused)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        stacked.lower_rank(1)
    monkeypatch.undo()
    assert (stacked.size, stacked.slots) == (size, 3)
    for slot in range(3):
        assert_equal(stacked.state(slot), before[slot])
    assert torch.equal(logits_of(stacked, [0, 0, 1, 1, 2, 2]), expected)


def refused(tensor: torch.Tensor, *args: object) -> torch.Tensor:
    raise RuntimeError("can't allocate memory")


@pytest.mark.parametrize("change", [lambda stacked: stacked.resize(1), lambda stacked: stacked.lower_rank(1)])
def test_fewer_numbers_give_their_memory_back(change: Callable[[StackedLora], None]) -> None:
    stacked = make_stacked()
    trainer = SlotTrainer(stacked, pad_id=PAD, max_grad_norm=1.0)
    for slot in range(3):
        trainer.begin(slot, learning_rate=1e-3, factor=lambda step: 1.0)
    trainer.step([make_examples(1, seed=slot) for slot in range(3)])
    logits_of(stacked, [0, 2, 1, 0, 1, 2])
    numbers = [StorageWeakRef(tensor.untyped_storage()) for tensor in (stacked.master(0), stacked.gradient(0))]
    assert not any(reference.expired() for reference in numbers)
    change(stacked)
    assert all(reference.expired() for reference in numbers)


# Rank


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_lowering_the_rank_keeps_the_best_of_the_product(rank: int) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((5, 9), (7, 5)))
    lower_a, lower_b = lower_factors(a, b, rank)
    assert (lower_a.shape, lower_b.shape) == ((rank, 9), (7, rank))
    # Eckart and Young: what is lost are the smallest singular values.
    lost = torch.linalg.svdvals(b @ a)[rank:]
    assert float((b @ a - lower_b @ lower_a).norm()) == pytest.approx(float(lost.norm()), abs=1e-12)
    assert torch.allclose(lower_a.norm() ** 2 / rank, a.norm() ** 2 / 5) or rank == 5


def test_a_fresh_adapter_of_lower_rank_can_still_learn() -> None:
    a, b = lower_factors(torch.randn(8, 16, generator=torch.Generator().manual_seed(0)), torch.zeros(12, 8), 3)
    assert bool((b == 0).all())
    assert torch.linalg.matrix_rank(a) == 3


@pytest.mark.parametrize("use_rslora", [False, True])
def test_a_lowered_stack_is_saved_with_its_scale(tmp_path: Path, use_rslora: bool) -> None:
    # The adapters move in two directions only, so that rank 2 holds all of them.
    stacked = StackedLora(adapted(architecture("llama"), r=8, alpha=12.0, use_rslora=use_rslora, fresh=True), 2)
    generator = torch.Generator().manual_seed(1)
    for slot in range(2):
        for name, weight in stacked.named(stacked.master(slot)).items():
            if "lora_B" in name:
                weight[:, :2] = torch.randn(weight[:, :2].shape, generator=generator)
    expected = logits_of(stacked, [0, 0, 0, 1, 1, 1])
    scale = 12 / 8**0.5 if use_rslora else 12 / 8
    stacked.lower_rank(2)
    assert stacked.rank == 2
    assert torch.allclose(logits_of(stacked, [0, 0, 0, 1, 1, 1]), expected, atol=1e-4)
    stacked.save(0, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["r"] == 2
    assert config["lora_alpha"] / (2**0.5 if use_rslora else 2) == pytest.approx(scale)
    theirs = load_adapter(architecture("llama"), tmp_path, trainable=False)
    assert torch.allclose(logits(theirs, IDS[:3]), expected[:3], atol=1e-4)
    stacked.reset(1)
    assert torch.allclose(logits_of(stacked, 6 * [1]), logits(architecture("llama")), atol=1e-5)


def test_an_adapter_of_another_rank_is_fitted(tmp_path: Path) -> None:
    small = make_stacked(lambda: adapted(architecture("llama"), r=2, alpha=6.0), slots=2)
    expected = logits_of(small, 6 * [0])
    small.save(0, tmp_path)
    large = make_stacked(lambda: adapted(architecture("llama"), r=8, alpha=4.0), slots=2)
    large.load(1, tmp_path)
    assert torch.allclose(logits_of(large, 6 * [1]), expected, atol=1e-4)
    large.save(1, tmp_path / "large")
    small.load(1, tmp_path / "large")
    assert torch.allclose(logits_of(small, 6 * [1]), expected, atol=1e-4)


@pytest.mark.parametrize("rank", [0, 4, 5])
def test_a_rank_that_is_not_lower(rank: int) -> None:
    with pytest.raises(ValueError, match=f"rank {rank}: at least 1 and below the present 4"):
        make_stacked().lower_rank(rank)


# Refusals


def test_an_adapter_of_another_base_is_not_loaded(tmp_path: Path) -> None:
    stacked = make_stacked(lambda: adapted(architecture("llama")))
    before = stacked.state(0)
    make_stacked(lambda: adapted(small_model())).save(0, tmp_path / "other")
    with pytest.raises(LoraError, match=r"does not fit this base model: .*k_proj.lora_B.weight has shape \(32, 4\)"):
        stacked.load(0, tmp_path / "other")
    make_stacked(lambda: adapted(architecture("llama"), TRAIN_MODULES)).save(0, tmp_path / "whole")
    with pytest.raises(LoraError, match=r"has the extra weight base_model\.model\.lm_head\.weight"):
        stacked.load(0, tmp_path / "whole")
    with pytest.raises(LoraError, match="can't be read"):
        stacked.load(0, tmp_path)
    assert_equal(stacked.state(0), before)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"use_dora": True, "target_modules": ["q_proj"]}, r"DoRA.*ttft\.start=fresh lora\.use_dora=false"),
        ({"target_modules": ["embed_tokens"]}, r"model\.embed_tokens: an adapter on Embedding.*lora\.target_modules"),
        ({"target_modules": ["q_proj"], "rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"target_modules": ["q_proj"], "lora_bias": True}, r"q_proj: an adapter on Linear can't be stacked"),
        ({"target_modules": ["q_proj"], "trainable_token_indices": [3]}, "is not a weight of a plain LoRA adapter"),
    ],
)
def test_what_can_not_be_stacked_is_refused_and_left_as_it_was(config: dict[str, Any], message: str) -> None:
    model = peft.get_peft_model(architecture("qwen2"), peft.LoraConfig(task_type="CAUSAL_LM", r=4, **config))
    before = logits(model)
    with pytest.raises(LoraError, match=message):
        StackedLora(model, 2)
    assert torch.equal(logits(model), before)


def test_other_methods_are_refused() -> None:
    model = peft.get_peft_model(architecture("qwen2"), peft.IA3Config(task_type="CAUSAL_LM"))
    with pytest.raises(LoraError, match="IA3"):
        StackedLora(model, 1)
