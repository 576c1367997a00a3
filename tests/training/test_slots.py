"""Training several adapters in one pass is training each alone: the plain loop of tests/support/plain_adaptation.py."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from arcft.config.model import ModelConfig
from arcft.models.load import load_model
from arcft.models.stacked_lora import StackedLora
from arcft.text.tokens import Example
from arcft.training import slots
from arcft.training.slots import SlotStep, SlotTrainer
from tests.support.plain_adaptation import (
    ARCHITECTURES,
    PAD,
    PlainStep,
    adapt_alone,
    adapted,
    adapter_state,
    architecture,
    make_examples,
)
from tests.support.small_training import TRAIN_MODULES

RATE = 1e-3
STEPS = 20
MAX_NORM = 0.5


def linear(step: int) -> float:
    return 1 - step / STEPS


def task_batches(task: int, steps: int = STEPS, size: int = 1) -> list[list[Example]]:
    # Tasks of different lengths, so that the shorter ones are padded.
    return [make_examples(size, seed=1000 * task + step, longest=12 + 8 * task) for step in range(steps)]


def alone(model: Any, batches: Sequence[Sequence[Example]]) -> list[PlainStep]:
    return list(adapt_alone(model, batches, learning_rate=RATE, factor=linear, max_grad_norm=MAX_NORM))


def largest_difference(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "fresh": {"fresh": True},
    "rslora": {"use_rslora": True},
    "whole": {"train_modules": TRAIN_MODULES},
    "some_layers": {"target_modules": ["q_proj", "down_proj"]},
    "lm_head": {"target_modules": ["q_proj", "lm_head"]},
}


def begun(stacked: StackedLora, max_grad_norm: float = MAX_NORM) -> SlotTrainer:
    """A trainer with all slots at the start of a task."""
    trainer = SlotTrainer(stacked, pad_id=PAD, max_grad_norm=max_grad_norm)
    for slot in range(stacked.slots):
        trainer.begin(slot, learning_rate=RATE, factor=linear)
    return trainer


def in_turn(trainer: SlotTrainer, batches: Sequence[Sequence[Sequence[Example]]]) -> list[list[SlotStep]]:
    """Step after step, one batch of each task together."""
    return [trainer.step(together) for together in zip(*batches, strict=True)]


@pytest.mark.parametrize(
    ("name", "variant", "slots"),
    [
        *itertools.product(ARCHITECTURES, ["plain", "whole"], [1, 3]),
        *itertools.product(["qwen3"], ["fresh", "rslora", "some_layers", "lm_head"], [3]),
    ],
)
def test_float64_training_equals_training_alone(name: str, variant: str, slots: int) -> None:
    options = VARIANTS[variant]
    stacked = StackedLora(adapted(architecture(name, torch.float64), **options), slots)
    batches = [task_batches(task) for task in range(slots)]
    steps = in_turn(begun(stacked), batches)
    for slot in range(slots):
        reference = adapted(architecture(name, torch.float64), **options)
        expected = alone(reference, batches[slot])
        assert largest_difference(stacked.state(slot), adapter_state(reference)) < 1e-12
        for step, plain in zip(steps, expected, strict=True):
            assert step[slot].loss == pytest.approx(plain.loss, abs=1e-12)
            assert step[slot].gradient_norm == pytest.approx(plain.gradient_norm, rel=1e-10)
            assert step[slot].finite


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_float32_gradients_and_losses_are_those_of_training_alone(name: str) -> None:
    stacked = StackedLora(adapted(architecture(name), TRAIN_MODULES), 3)
    batches = [task_batches(task, size=2) for task in range(3)]
    # Nothing is clipped, so that the buffer keeps what was computed.
    trainer = begun(stacked, max_grad_norm=1e9)
    steps = [trainer.step([own[0] for own in batches])]
    gradients = [{n: g.clone() for n, g in stacked.named(stacked.gradient(slot)).items()} for slot in range(3)]
    steps += in_turn(trainer, [own[1:] for own in batches])
    for slot in range(3):
        reference = adapted(architecture(name), TRAIN_MODULES)
        expected = list(adapt_alone(reference, batches[slot], learning_rate=RATE, factor=linear, max_grad_norm=1e9))
        assert largest_difference(gradients[slot], expected[0].gradients) < 1e-6
        for step, plain in zip(steps, expected, strict=True):
            assert step[slot].loss == pytest.approx(plain.loss, abs=1e-5)
        assert expected[-1].loss != pytest.approx(expected[0].loss, abs=1e-2)


def test_a_slots_course_does_not_depend_on_its_number_or_on_the_others() -> None:
    batches = task_batches(1)
    stacked = StackedLora(adapted(architecture("llama", torch.float64)), 4)
    trainer = begun(stacked)
    others = [task_batches(task) for task in (0, 2)]
    # The last two of four slots, beside the first that stands still.
    for mine, other in zip(batches, others[0], strict=True):
        trainer.step([other, mine], first=2)
    together = stacked.state(3)
    untouched = StackedLora(adapted(architecture("llama", torch.float64)), 1).state(0)
    assert largest_difference(stacked.state(0), untouched) == 0
    single = StackedLora(adapted(architecture("llama", torch.float64)), 1)
    in_turn(begun(single), [batches])
    assert largest_difference(together, single.state(0)) < 1e-12


def test_a_slot_is_refilled_while_the_others_go_on() -> None:
    model = adapted(architecture("qwen2", torch.float64), TRAIN_MODULES)
    stacked = StackedLora(model, 3)
    trainer = begun(stacked)
    first, second, third, later = (task_batches(task) for task in (0, 1, 2, 5))
    for step in range(STEPS):
        if step == 8:
            trainer.begin(1, learning_rate=RATE, factor=linear)
        trainer.step([first[step], second[step] if step < 8 else later[step - 8], third[step]])
    for slot, batches in {0: first, 1: later[: STEPS - 8], 2: third}.items():
        reference = adapted(architecture("qwen2", torch.float64), TRAIN_MODULES)
        alone(reference, batches)
        assert largest_difference(stacked.state(slot), adapter_state(reference)) < 1e-12


def test_a_slot_begins_at_the_start_whatever_it_held() -> None:
    stacked = StackedLora(adapted(architecture("llama")), 2)
    trainer = begun(stacked)
    in_turn(trainer, [task_batches(0, 3), task_batches(1, 3)])
    trainer.begin(0, learning_rate=RATE, factor=linear)
    assert largest_difference(stacked.state(0), StackedLora(adapted(architecture("llama")), 1).state(0)) == 0


@pytest.mark.parametrize("change", ["move", "resize"])
def test_progress_is_kept_when_slots_move_or_their_number_changes(change: str) -> None:
    batches = task_batches(1)
    stacked = StackedLora(adapted(architecture("llama", torch.float64)), 3)
    trainer = begun(stacked)
    slot = 2 if change == "move" else 0
    for batch in batches[:7]:
        trainer.step([batch], first=slot)
    if change == "move":
        trainer.move(2, 0)
    stacked.resize(1 if change == "move" else 5)
    for batch in batches[7:]:
        trainer.step([batch])
    reference = adapted(architecture("llama", torch.float64))
    alone(reference, batches)
    assert largest_difference(stacked.state(0), adapter_state(reference)) < 1e-12


def test_weights_are_put_back() -> None:
    stacked = StackedLora(adapted(architecture("llama", torch.bfloat16)), 2)
    trainer = begun(stacked)
    held = make_examples(2, seed=77)
    kept, loss = trainer.snapshot(1), trainer.loss(1, held)
    in_turn(trainer, [task_batches(0, 4), task_batches(1, 4)])
    assert trainer.loss(1, held) != loss
    trainer.restore(1, kept)
    assert trainer.loss(1, held) == loss
    assert torch.equal(trainer.snapshot(1), kept)


def test_the_loss_is_the_mean_over_all_supervised_tokens() -> None:
    held = make_examples(3, seed=77)
    reference = adapted(architecture("qwen3"))
    expected = alone(reference, [held])[0].loss
    trainer = begun(StackedLora(adapted(architecture("qwen3")), 2))
    assert trainer.loss(1, held) == pytest.approx(expected, abs=1e-6)
    step = trainer.step([held], first=1)[0]
    assert step.loss == pytest.approx(expected, abs=1e-6)
    assert step.tokens == sum(label >= 0 for example in held for label in example.labels[1:])


def test_checkpointed_activations_change_nothing() -> None:
    batches = [task_batches(task, 5) for task in range(3)]
    states, seen = [], []
    for checkpointing in (False, True):
        stacked = StackedLora(adapted(architecture("qwen2", torch.float64), TRAIN_MODULES), 3)
        stacked.model.model.layers[1].self_attn.register_forward_pre_hook(lambda *_: seen.append(1))
        trainer = begun(stacked)
        trainer.gradient_checkpointing = checkpointing
        in_turn(trainer, batches)
        states.append(stacked.state(2))
    assert len(seen) == 5 + 2 * 5
    assert not stacked.model.training
    assert largest_difference(*states) < 1e-12


def test_positions_that_jump() -> None:
    def far(ids: Sequence[int], after: int = -1) -> list[int]:
        return [after + 3 * place for place, _ in enumerate(ids, 1)]

    batches = [task_batches(task, 4) for task in range(2)]
    stacked = StackedLora(adapted(architecture("llama")), 2)
    trainer = SlotTrainer(stacked, pad_id=PAD, max_grad_norm=MAX_NORM, positions=far)
    for slot in range(2):
        trainer.begin(slot, learning_rate=RATE, factor=linear)
    losses = [[step.loss for step in steps] for steps in in_turn(trainer, batches)]
    for slot, own in enumerate(batches):
        reference = adapted(architecture("llama"))
        options: dict[str, Any] = {"learning_rate": RATE, "factor": linear, "max_grad_norm": MAX_NORM}
        expected = [step.loss for step in adapt_alone(reference, own, **options, positions=far)]
        assert [step[slot] for step in losses] == pytest.approx(expected, abs=1e-5)
        assert largest_difference(stacked.state(slot), adapter_state(reference)) < 1e-4
        counted = [step.loss for step in adapt_alone(adapted(architecture("llama")), own, **options)]
        assert expected != pytest.approx(counted, abs=1e-3)


def test_bfloat16_follows_float32() -> None:
    batches = [task_batches(task) for task in range(3)]
    losses = {}
    for dtype in (torch.float32, torch.bfloat16):
        stacked = StackedLora(adapted(architecture("qwen2", dtype), TRAIN_MODULES), 3)
        steps = in_turn(begun(stacked), batches)
        losses[dtype] = torch.tensor([[slot.loss for slot in step] for step in steps])
        assert stacked.gradient(0).dtype == dtype
        assert stacked.master(0).dtype == torch.float32
    assert float((losses[torch.float32] - losses[torch.bfloat16]).abs().max()) < 0.05
    # Small steps add up in the master, although bfloat16 could not hold them.
    assert not torch.equal(stacked.master(0), stacked.master(0).bfloat16().float())


def test_an_overflow_in_float16_lowers_the_scale_and_loses_no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = [task_batches(task, 5) for task in range(2)]
    expected = StackedLora(adapted(architecture("qwen2")), 2)
    in_turn(begun(expected), batches)
    monkeypatch.setattr(slots, "_INITIAL_SCALE", 2.0**30)
    stacked = StackedLora(adapted(architecture("qwen2", torch.float16)), 2)
    trainer = begun(stacked)
    for step in in_turn(trainer, batches):
        assert all(slot.finite and slot.gradient_norm < 100 for slot in step)
    for slot in range(2):
        assert largest_difference(stacked.state(slot), expected.state(slot)) < 3 * RATE


def test_the_loss_scale_in_float16_does_not_reach_the_optimizer(monkeypatch: pytest.MonkeyPatch) -> None:
    # Adam's steps hardly depend on the size of gradients, but a scale that changes on the way would distort its means.
    means = []
    for scale in (2.0**6, 2.0**12):
        monkeypatch.setattr(slots, "_INITIAL_SCALE", scale)
        trainer = begun(StackedLora(adapted(architecture("qwen2", torch.float16)), 1))
        trainer.step(task_batches(0, 1))
        progress = trainer._progress[0]
        means.append(progress.optimizer.state[progress.weights]["exp_avg"].clone())
    assert float(means[0].norm()) == pytest.approx(float(means[1].norm()), rel=0.02)
    assert float((means[0] - means[1]).norm() / means[1].norm()) < 0.05


def test_a_loss_that_is_not_finite_is_not_tried_again_at_a_lower_scale() -> None:
    stacked = StackedLora(adapted(architecture("qwen2", torch.float16)), 2)
    trainer = begun(stacked)
    trainer.restore(1, torch.full_like(stacked.master(1), math.inf))
    passes: list[int] = []
    stacked.model.register_forward_pre_hook(lambda *_: passes.append(1))
    first, second = trainer.step([make_examples(1, seed=task) for task in range(2)])
    assert (first.finite, second.finite) == (True, False)
    assert len(passes) == 1


@pytest.mark.parametrize("quantization", ["nf4", "fp4", "int8"])
def test_a_quantised_base(tmp_path: Path, quantization: Any) -> None:
    architecture("qwen2").save_pretrained(tmp_path)
    config = ModelConfig(name="small", path=str(tmp_path), quantization=quantization)

    def base() -> Any:
        return load_model(config, dtype=torch.float32, device=torch.device("cpu"))

    stacked = StackedLora(adapted(base()), 2)
    assert not stacked.can_merge
    batches = [task_batches(task, 5) for task in range(2)]
    steps = in_turn(begun(stacked), batches)
    for slot in range(2):
        for step, plain in zip(steps, alone(adapted(base()), batches[slot]), strict=True):
            assert step[slot].loss == pytest.approx(plain.loss, abs=1e-5)


def test_a_slot_that_is_not_finite_is_left_alone_and_the_others_go_on() -> None:
    batches = [task_batches(task) for task in range(3)]
    stacked = StackedLora(adapted(architecture("llama", torch.float64)), 3)
    trainer = begun(stacked)
    trainer.restore(1, torch.full_like(stacked.master(1), math.inf))
    for step in in_turn(trainer, batches):
        assert [slot.finite for slot in step] == [True, False, True]
    assert bool(stacked.master(1).isinf().all())
    for slot in (0, 2):
        reference = adapted(architecture("llama", torch.float64))
        alone(reference, batches[slot])
        assert largest_difference(stacked.state(slot), adapter_state(reference)) < 1e-12


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_running_out_of_memory_leaves_everything_as_before_the_step(where: str) -> None:
    batches = [task_batches(task) for task in range(2)]
    states = []
    for disturbed in (False, True):
        stacked = StackedLora(adapted(architecture("llama", torch.float64), TRAIN_MODULES), 2)
        trainer = begun(stacked)
        for number, together in enumerate(zip(*batches, strict=True)):
            if disturbed and number in (0, 5):
                with out_of_memory(stacked.model.model.layers[0], where), pytest.raises(torch.OutOfMemoryError):
                    trainer.step(together)
            trainer.step(together)
        states.append([stacked.state(slot) for slot in range(2)])
    for slot in range(2):
        assert largest_difference(states[0][slot], states[1][slot]) == 0


@contextmanager
def out_of_memory(layer: torch.nn.Module, where: str) -> Iterator[None]:
    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("out of memory")

    # The backward pass reaches the first layer last, when other gradients are in the buffer already.
    register = layer.register_forward_hook if where == "forward" else layer.register_full_backward_hook
    handle = register(fail)
    try:
        yield
    finally:
        handle.remove()


def test_training_goes_on_at_a_lower_rank() -> None:
    stacked = StackedLora(adapted(architecture("llama"), r=8), 2)
    trainer = begun(stacked)
    batches = [task_batches(task) for task in range(2)]
    held = batches[0][-1]
    in_turn(trainer, [own[:10] for own in batches])
    stacked.lower_rank(2)
    before = trainer.loss(0, held)
    in_turn(trainer, [[held] * 10, batches[1][10:]])
    assert trainer.loss(0, held) < before - 0.01


def test_slots_need_equally_many_examples() -> None:
    trainer = begun(StackedLora(adapted(architecture("llama")), 2))
    with pytest.raises(ValueError, match=r"\[1, 2\] examples: each slot needs equally many"):
        trainer.step([make_examples(1, seed=0), make_examples(2, seed=0)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_norm_of_millions_of_small_numbers_is_exact(dtype: torch.dtype) -> None:
    numbers = (1e-3 * torch.randn(10_000_016, generator=torch.Generator().manual_seed(0))).to(dtype)
    exact = numbers.double().norm().item()
    assert slots._norm(numbers, torch.float32).item() == pytest.approx(exact, rel=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_on_a_gpu_as_on_a_cpu(dtype: torch.dtype) -> None:
    batches = [task_batches(task, size=2) for task in range(3)]
    losses = []
    for device in ("cpu", "cuda"):
        base = architecture("qwen3", torch.float32 if device == "cpu" else dtype).to(device)
        stacked = StackedLora(adapted(base, TRAIN_MODULES), 3)
        trainer = begun(stacked)
        trainer.gradient_checkpointing = device == "cuda"
        steps = in_turn(trainer, batches)
        losses.append(torch.tensor([[slot.loss for slot in step] for step in steps]))
    assert float((losses[0] - losses[1]).abs().max()) < (1e-3 if dtype == torch.float32 else 0.05)
