"""The training loop: one trajectory however it is computed, what stops it, what it measures and what it keeps.

`python tests/training/test_trainer.py` writes tests/support/golden/trajectory.json anew.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, TrainerCallback

from arcft.checkpoints import find_checkpoints, last_checkpoint, read_checkpoint
from arcft.config.model import ModelConfig
from arcft.config.scheduler.cosine import CosineConfig
from arcft.errors import ArcftError
from arcft.models.load import load_model
from arcft.models.lora import apply_lora, load_adapter
from arcft.text.tokens import Example
from arcft.training.arguments import TrainingError, make_training_arguments
from arcft.training.batches import Grouping
from arcft.training.evaluation import mean_loss
from arcft.training.finite import NonFiniteError
from arcft.training.stopping import StopRequest
from tests.support.paths import GOLDEN
from tests.support.small_training import (
    CPU,
    EVALUATION,
    PAD,
    CopyStream,
    Run,
    adapted_model,
    lora_config,
    small_model,
    small_run,
    training_config,
)

GOLDEN_FILE = GOLDEN / "trajectory.json"
NAMES = ("loss", "grad_norm", "learning_rate")


def tiny_model() -> peft.PeftModel:
    config = ModelConfig(name="tiny", path="bundled:tiny", init="random")
    model = load_model(config, dtype=torch.float32, device=CPU)
    train_modules = ["embed_tokens", "lm_head", "input_layernorm", "post_attention_layernorm", "norm"]
    # Dropout would draw other numbers for other shapes of batches.
    return apply_lora(model, lora_config(dropout=0.0), train_modules, seed=0)


def trajectory(folder: Path, **changes: Any) -> dict[str, list[float]]:
    run = small_run(folder, tiny_model(), **({"max_steps": 8, "learning_rate": 3e-3} | changes))
    run.trainer.train()
    return {name: run.logs.of(name) for name in NAMES}


@pytest.fixture(scope="module")
def golden() -> dict[str, list[float]]:
    return json.loads(GOLDEN_FILE.read_text())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
        {"gradient_checkpointing": True},
        {"gradient_checkpointing": True, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
        {"num_workers": 2},
        {"max_batch_tokens": 40},
        {"max_batch_tokens": 40, "gradient_checkpointing": True, "num_workers": 2},
        {"max_batch_tokens": 40, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
        {"max_batch_tokens": 1},
        {"packing": True},
        {"packing": True, "max_batch_tokens": 40, "gradient_checkpointing": True, "num_workers": 2},
        {"eval_dataset": EVALUATION, "eval_steps": 2},
    ],
    ids=[
        "8x1",
        "1x8",
        "2x4",
        "checkpointing",
        "checkpointing 4x2",
        "workers",
        "groups",
        "checkpointed groups",
        "groups 4x2",
        "alone",
        "packed",
        "packed, checkpointed groups",
        "evaluation",
    ],
)
def test_the_trajectory_is_one(changes: dict[str, Any], golden: dict[str, list[float]], tmp_path: Path) -> None:
    computed = trajectory(tmp_path, **changes)
    for name in NAMES:
        residuals = [abs(a - b) / abs(b) for a, b in zip(computed[name], golden[name], strict=True)]
        assert max(residuals) < 1e-3, name
        assert sum(residuals) / len(residuals) < 3e-4, name


def test_evaluation_and_workers_change_no_bit(tmp_path: Path) -> None:
    def final_weights(name: str, **changes: Any) -> list[torch.Tensor]:
        run = small_run(tmp_path / name, **changes)
        run.trainer.train()
        return [parameter.detach() for parameter in run.trainer.trained_model.parameters()]

    def drawing(model: Any, step: int) -> dict[str, float]:
        return {"accuracy": float(torch.rand(1))}

    plain = final_weights("plain")
    for name, changes in {
        "evaluated": {"eval_dataset": EVALUATION, "eval_steps": 2, "more_metrics": drawing},
        "workers": {"num_workers": 2},
    }.items():
        for a, b in zip(plain, final_weights(name, **changes), strict=True):
            assert torch.equal(a, b), name


def test_the_loss_is_the_mean_over_all_supervised_tokens_of_a_step(tmp_path: Path) -> None:
    examples = [CopyStream()[k] for k in range(8)]
    model = adapted_model(dropout=0.0).eval()
    expected = mean_loss(model, examples, Grouping(pad_id=PAD), batch_size=8)
    by_example = [mean_loss(model, [example], Grouping(pad_id=PAD), batch_size=1) for example in examples]
    for rows, times in ((8, 1), (1, 8)):
        changes = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": times, "max_steps": 1}
        run = small_run(tmp_path / str(rows), adapted_model(dropout=0.0), **changes)
        run.trainer.train()
        assert run.logs.of("loss") == pytest.approx([expected], rel=1e-6)
    # The mean of the examples' means would be another number, so this test can tell them apart.
    assert sum(by_example) / 8 != pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=["float64", "float32"]
)
@pytest.mark.parametrize(
    "changes",
    [
        {"max_batch_tokens": 64},
        {"max_batch_tokens": 1},
        {"max_batch_tokens": 64, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 4},
        {"max_batch_tokens": 64, "gradient_checkpointing": True},
        {"packing": True},
        {"packing": True, "max_batch_tokens": 64},
        {"packing": True, "gradient_checkpointing": True},
    ],
    ids=["groups", "alone", "accumulated", "checkpointed", "packed", "packed groups", "packed, checkpointed"],
)
def test_a_step_has_one_gradient_however_it_is_grouped(
    tmp_path: Path, changes: dict[str, Any], dtype: torch.dtype, tolerance: float
) -> None:
    def gradients(name: str, **changes: Any) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = {}

        class Keep(TrainerCallback):
            def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kw: Any) -> None:
                found.update({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})

        options: dict[str, Any] = {"max_steps": 1, "per_device_train_batch_size": 16, "max_grad_norm": 1e9}
        run = small_run(tmp_path / name, small_model(seed=1).to(dtype), **(options | changes), callbacks=[Keep()])
        run.trainer.train()
        return found

    whole, grouped = gradients("whole"), gradients("grouped", **changes)
    assert whole.keys() == grouped.keys()
    assert len(whole) > 10
    for name, gradient in whole.items():
        difference = (gradient - grouped[name]).norm() / gradient.norm().clamp(min=1e-30)
        assert difference < tolerance, name


def test_groups_are_passed_one_after_the_other(tmp_path: Path) -> None:
    shapes: list[tuple[int, ...]] = []
    run = small_run(tmp_path, max_steps=1, max_batch_tokens=60, eval_dataset=EVALUATION)
    embeddings = run.trainer.trained_model.get_input_embeddings()
    embeddings.register_forward_pre_hook(lambda module, inputs: shapes.append(tuple(inputs[0].shape)))
    run.trainer.train()
    assert sum(rows for rows, _ in shapes) == 8 + len(EVALUATION)
    assert all(rows * length <= 60 for rows, length in shapes)
    assert {rows for rows, _ in shapes} > {2, 3}


def test_packed_groups_are_rows_without_padding(tmp_path: Path) -> None:
    shapes: list[tuple[int, ...]] = []
    run = small_run(tmp_path, max_steps=1, max_batch_tokens=60, packing=True, eval_dataset=EVALUATION)
    embeddings = run.trainer.trained_model.get_input_embeddings()
    embeddings.register_forward_pre_hook(lambda module, inputs: shapes.append(tuple(inputs[0].shape)))
    run.trainer.train()
    examples = [CopyStream()[k] for k in range(8)] + EVALUATION
    assert sum(length for _, length in shapes) == sum(len(example.input_ids) for example in examples)
    assert {rows for rows, _ in shapes} == {1}
    assert max(length for _, length in shapes) <= 60
    expected = mean_loss(run.trainer.trained_model, EVALUATION, Grouping(pad_id=PAD), batch_size=1)
    assert run.logs.of("eval_loss") == pytest.approx([expected], rel=1e-5)


def test_tokens_are_counted_without_padding_and_timed_without_evaluation(tmp_path: Path) -> None:
    pause = 0.7

    def slow(model: Any, step: int) -> dict[str, float]:
        time.sleep(pause)
        return {"accuracy": 0.0}

    changes = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_batch_tokens": 40}
    began = time.monotonic()
    run = small_run(tmp_path, max_steps=4, logging_steps=2, eval_steps=1, more_metrics=slow, **changes)
    run.trainer.train()
    seconds = time.monotonic() - began - 4 * pause
    sums = [sum(len(CopyStream()[k].input_ids) for k in range(examples)) for examples in (16, 32)]
    assert run.logs.of("tokens") == sums
    rates = run.logs.of("tokens_per_second")
    assert len(rates) == 2
    assert sums[0] / rates[0] + (sums[1] - sums[0]) / rates[1] < seconds
    pause = 0.0
    run.trainer.train()
    assert run.logs.of("tokens") == sums * 2


def test_each_step_has_the_rate_of_the_schedule_also_when_trained_again(tmp_path: Path) -> None:
    run = small_run(tmp_path, max_steps=5)
    factor = CosineConfig(warmup_ratio=0.2, min_lr_ratio=0.1).factors(5)
    expected = [1e-2 * factor(step) for step in range(5)]
    run.trainer.train()
    assert run.logs.of("learning_rate") == pytest.approx(expected)
    run.trainer.train()
    assert run.logs.of("learning_rate") == pytest.approx(expected * 2)


def test_bfloat16_computes_almost_the_same_and_keeps_float32_weights(tmp_path: Path) -> None:
    exact, rounded = small_run(tmp_path / "a"), small_run(tmp_path / "b", dtype="bfloat16")
    for run in (exact, rounded):
        run.trainer.train()
    assert rounded.logs.of("loss") == pytest.approx(exact.logs.of("loss"), rel=2e-2)
    assert rounded.logs.of("loss") != exact.logs.of("loss")
    trained = (p for p in rounded.trainer.trained_model.parameters() if p.requires_grad)
    assert {parameter.dtype for parameter in trained} == {torch.float32}


def test_float16_needs_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"training\.dtype=float16: .* needs a GPU; .*=float32 or bfloat16"):
        make_training_arguments(training_config(dtype="float16"), tmp_path, CPU)


def test_a_stream_that_is_too_short_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="the stream has 10000 examples, the run needs 16000"):
        small_run(tmp_path, max_steps=2000)


class At(TrainerCallback):
    """Does something before or after one step."""

    def __init__(self, step: int, *, begin: Callable[[Any], None] | None = None, end: Any = None) -> None:
        self.step, self.begin, self.end = step, begin, end

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step == self.step - 1 and self.begin is not None:
            self.begin(model)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step and self.end is not None:
            self.end()


def poison_weights(model: Any) -> None:
    with torch.no_grad():
        model.get_base_model().model.norm.weight.fill_(torch.nan)


def poison_gradients(model: Any) -> None:
    parameter = next(p for name, p in model.named_parameters() if "lora_B" in name)
    parameter.register_hook(lambda gradient: gradient * torch.inf)


@pytest.mark.parametrize(
    ("poison", "what"), [(poison_weights, "loss is nan"), (poison_gradients, "gradient norm is (inf|nan)")]
)
def test_what_is_not_finite_ends_the_run_before_the_step(tmp_path: Path, poison: Any, what: str) -> None:
    before: dict[str, torch.Tensor] = {}

    def begin(model: Any) -> None:
        before.update({name: p.detach().clone() for name, p in model.named_parameters() if "lora_" in name})
        poison(model)

    run = small_run(tmp_path, save_steps=1, callbacks=[At(3, begin=begin)])
    with pytest.raises(NonFiniteError, match=rf"step 3: the {what}, so the step was not taken; lower .*learning_rate"):
        run.trainer.train()
    for name, parameter in run.trainer.trained_model.named_parameters():
        if name in before:
            assert torch.equal(parameter, before[name])
    assert [path.name for path in find_checkpoints(tmp_path)] == ["checkpoint-1", "checkpoint-2"]


def test_a_request_stops_after_the_step_and_saves(tmp_path: Path) -> None:
    stop = StopRequest()
    run = small_run(tmp_path, stop=stop, callbacks=[At(3, end=lambda: stop.request("SIGTERM"))])
    run.trainer.train()
    assert run.trainer.state.global_step == 3
    assert [path.name for path in find_checkpoints(tmp_path)] == ["checkpoint-3"]
    assert stop.reason == "SIGTERM"


def test_a_time_limit_stops(tmp_path: Path) -> None:
    stop = StopRequest(0.0)
    run = small_run(tmp_path, stop=stop)
    run.trainer.train()
    assert run.trainer.state.global_step == 1
    assert stop.reason == "training.max_time (0 s) has passed"
    assert StopRequest(60).reason is None


def test_evaluation_at_its_steps_and_at_the_end(tmp_path: Path) -> None:
    seen: list[int] = []

    def metrics(model: Any, step: int) -> dict[str, float]:
        assert not model.training
        assert not torch.is_grad_enabled()
        seen.append(step)
        return {"accuracy": 0.25}

    run = small_run(tmp_path, max_steps=5, eval_steps=2, eval_dataset=EVALUATION, more_metrics=metrics)
    run.trainer.train()
    assert seen == [2, 4, 5]
    assert run.logs.of("eval_accuracy") == [0.25] * 3
    expected = mean_loss(run.trainer.trained_model.eval(), EVALUATION, run.trainer.data_collator, batch_size=3)
    assert run.logs.of("eval_loss")[-1] == pytest.approx(expected, rel=1e-6)
    assert run.logs.of("eval_loss")[0] > expected


def steps_left(folder: Path) -> list[int]:
    return [read_checkpoint(path).step for path in find_checkpoints(folder)]


def test_the_best_checkpoint_is_saved_at_once_and_kept(tmp_path: Path) -> None:
    scores = {1: 0.1, 2: 0.1, 3: 0.5, 4: 0.2, 5: 0.5, 6: 0.4, 7: 0.4, 8: 0.4}
    run = small_run(
        tmp_path,
        max_steps=8,
        eval_steps=1,
        save_steps=4,
        save_total_limit=1,
        more_metrics=lambda model, step: {"accuracy": scores[step]},
        best_metric="accuracy",
    )
    run.trainer.train()
    # Step 5 only equals step 3; 4 and 8 are the regular ones, of which the last is kept.
    assert run.trainer.best_step == 3
    assert steps_left(tmp_path) == [3, 8]


def test_among_equals_the_lowest_loss_is_best(tmp_path: Path) -> None:
    run = small_run(
        tmp_path,
        max_steps=6,
        eval_steps=2,
        eval_dataset=EVALUATION,
        more_metrics=lambda model, step: {"accuracy": 0.0},
        best_metric="accuracy",
    )
    run.trainer.train()
    losses = run.logs.of("eval_loss")
    assert run.trainer.best_step == 2 * (losses.index(min(losses)) + 1)
    assert run.trainer.best_step in steps_left(tmp_path)


def test_rotation(tmp_path: Path) -> None:
    small_run(tmp_path, max_steps=7, save_steps=2, save_total_limit=2).trainer.train()
    assert steps_left(tmp_path) == [6, 7]


def test_a_checkpoint_holds_what_evaluation_needs(tmp_path: Path) -> None:
    run = small_run(tmp_path, max_steps=2)
    run.trainer.train()
    checkpoint = read_checkpoint(tmp_path / "checkpoint-2")
    assert checkpoint.run_config["training"]["max_steps"] == 2
    assert (checkpoint.manifest["base_model"], checkpoint.manifest["base_fingerprint"]) == ("small", "f0")
    loaded = load_adapter(small_model(), checkpoint.path, trainable=True)
    for a, b in zip(loaded.parameters(), run.trainer.trained_model.parameters(), strict=True):
        assert torch.equal(a, b)
    from transformers import AutoTokenizer

    assert len(AutoTokenizer.from_pretrained(checkpoint.path)) == 32


def test_full_fine_tuning_saves_the_whole_model(tmp_path: Path) -> None:
    run = small_run(tmp_path, small_model(), max_steps=2, learning_rate=1e-3)
    run.trainer.train()
    folder = tmp_path / "checkpoint-2"
    assert {"config.json", "model.safetensors"} <= read_checkpoint(folder).manifest["files"].keys()
    loaded = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True)
    assert all(
        torch.equal(a, b) for a, b in zip(loaded.parameters(), run.trainer.trained_model.parameters(), strict=True)
    )
    assert not torch.equal(loaded.lm_head.weight, small_model().lm_head.weight)


@pytest.mark.parametrize("quantization", ["nf4", "fp4", "int8"])
def test_adapters_on_a_quantised_model_train_and_save(tmp_path: Path, quantization: str) -> None:
    # Blocks of nf4 hold 64 weights of one row.
    small_model(hidden_size=64, intermediate_size=128).save_pretrained(tmp_path / "base")
    config = ModelConfig(name="q", path=str(tmp_path / "base"), quantization=quantization)

    def base() -> Any:
        return load_model(config, dtype=torch.float32, device=CPU)

    run = small_run(tmp_path, apply_lora(base(), lora_config(dropout=0.0), [], seed=0), max_steps=30)
    run.trainer.train()
    losses = run.logs.of("loss")
    assert sum(losses[-5:]) < sum(losses[:5])
    model = load_adapter(base(), tmp_path / "checkpoint-30", trainable=False)
    options = {"batch_size": 4}
    own = mean_loss(run.trainer.trained_model.eval(), EVALUATION, run.trainer.data_collator, **options)
    assert mean_loss(model, EVALUATION, run.trainer.data_collator, **options) == pytest.approx(own, rel=1e-3)


def test_an_evaluation_does_not_stop_a_4_bit_model_from_learning(tmp_path: Path) -> None:
    small_model(hidden_size=64, intermediate_size=128).save_pretrained(tmp_path)
    config = ModelConfig(name="q", path=str(tmp_path), quantization="nf4")
    model = apply_lora(load_model(config, dtype=torch.bfloat16, device=CPU), lora_config(dropout=0.0), [], seed=0)
    ids = torch.arange(8).reshape(1, 8)
    with torch.no_grad():
        model.eval()(input_ids=ids)
    model.train()(input_ids=ids, labels=ids).loss.backward()
    gradients = [weight.grad for name, weight in model.named_parameters() if "lora_B" in name]
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)


@pytest.mark.slow
def test_a_real_model_from_gguf_trains_saves_and_loads(smollm2_gguf: Path, tmp_path: Path) -> None:
    config = ModelConfig(name="smollm2", path=str(smollm2_gguf))

    def base() -> Any:
        return load_model(config, dtype=torch.bfloat16, device=CPU)

    model = apply_lora(base(), lora_config(dropout=0.0), [], seed=0)
    run = small_run(tmp_path, model, max_steps=3, dtype="bfloat16", learning_rate=1e-3)
    run.trainer.train()
    losses = run.logs.of("loss")
    assert losses[2] < losses[0]
    loaded = load_adapter(base(), tmp_path / "checkpoint-3", trainable=False)
    options = {"batch_size": 4}
    with torch.autocast("cpu", torch.bfloat16):
        own = mean_loss(run.trainer.trained_model.eval(), EVALUATION[:4], run.trainer.data_collator, **options)
    assert mean_loss(loaded, EVALUATION[:4], run.trainer.data_collator, **options) == pytest.approx(own, rel=2e-2)


def gpu_run(folder: Path, dtype: str, **changes: Any) -> Run:
    run = small_run(folder, adapted_model(dropout=0.0).to("cuda"), dtype=dtype, device=torch.device("cuda"), **changes)
    run.trainer.train()
    return run


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_dtypes_on_a_gpu_agree_with_float32(tmp_path: Path) -> None:
    exact = gpu_run(tmp_path / "float32", "float32").logs.of("loss")
    for dtype in ("bfloat16", "float16"):
        assert gpu_run(tmp_path / dtype, dtype).logs.of("loss") == pytest.approx(exact, rel=3e-2), dtype


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_loss_scaling_skips_overflows_and_resumes(tmp_path: Path) -> None:
    whole = gpu_run(tmp_path / "whole", "float16", max_steps=12, save_steps=6)
    assert (tmp_path / "whole" / "checkpoint-6" / "scaler.pt").exists()
    again = small_run(
        tmp_path / "whole",
        adapted_model(dropout=0.0).to("cuda"),
        dtype="float16",
        device=torch.device("cuda"),
        max_steps=12,
    )
    again.trainer.train(tmp_path / "whole" / "checkpoint-6")
    assert again.logs.of("loss") == pytest.approx(whole.logs.of("loss")[6:], rel=1e-3)


if __name__ == "__main__":
    import tempfile

    torch.set_num_threads(1)
    GOLDEN_FILE.parent.mkdir(exist_ok=True)
    GOLDEN_FILE.write_text(json.dumps(trajectory(Path(tempfile.mkdtemp())), indent=1) + "\n")


class Stuck(CopyStream):
    """A stream whose tenth example never comes: the process that makes it stops, or is killed."""

    def __init__(self, by: signal.Signals) -> None:
        super().__init__()
        self.by = by

    def __getitem__(self, index: int) -> Example:
        if index == 9 and multiprocessing.parent_process() is not None:
            # What it has sent before is on its way: a process that stops within a message can't be noticed.
            time.sleep(1)
            os.kill(os.getpid(), self.by)
            time.sleep(60)
        return super().__getitem__(index)


@pytest.mark.parametrize(
    ("by", "says"), [(signal.SIGSTOP, "DataLoader timed out after 2 seconds"), (signal.SIGKILL, "exited unexpectedly")]
)
def test_a_process_that_makes_examples_is_not_waited_for_for_ever(
    by: signal.Signals, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("arcft.training.stream_trainer.WORKER_SECONDS", 2)
    trainer = small_run(tmp_path, num_workers=1, per_device_train_batch_size=2, save_steps=2).trainer
    trainer.train_dataset = Stuck(by)
    with pytest.raises(ArcftError, match=rf"training\.num_workers=1: .*{says}.*resume the run from its last"):
        trainer.train()
    assert last_checkpoint(tmp_path).name == "checkpoint-2"
