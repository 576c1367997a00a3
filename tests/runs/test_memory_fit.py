"""What a run chooses for the memory there is, and what it says where there is too little."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from arcft.config.schema import ConfigError
from arcft.config.training import TrainingConfig
from arcft.runs.training.estimate import Estimator, Memory
from arcft.runs.training.fit import MARGIN, Available, Fit, fit_memory
from arcft.runs.training.preparation import prepare
from arcft.runs.training.step_plan import plan_steps
from tests.config.test_config import train_config
from tests.support.paths import ROOT
from tests.support.train_command import QUICK, run_train

CPU = torch.device("cpu")
GPU = torch.device("cuda")
AUTO = ["training.per_device_train_batch_size=auto", "training.gradient_checkpointing=auto"]
PLENTY = 2**50


def estimator_of(*overrides: str) -> Estimator:
    config = train_config(*QUICK, "training.dtype=float32", *overrides)
    return Estimator(config, prepare(config).stream, None, None, CPU)


def on_gpu(estimator: Estimator, *overrides: str) -> Estimator:
    """As it would be on a GPU, with the passes of a CPU: torch can't have fake tensors of a GPU where there is none."""
    memory_of(estimator)
    gpu = estimator.of(train_config(*QUICK, "training.dtype=float32", *overrides))
    gpu._found = estimator._found
    gpu.device = GPU
    return gpu


def memory_of(estimator: Estimator, **changes: Any) -> Memory:
    memory = estimator.memory(dataclasses.replace(estimator.config.training, **changes))
    assert memory is not None
    return memory


def fitted(estimator: Estimator, available: int, cpu: int = PLENTY) -> Fit:
    plan = plan_steps(estimator.config.training, None)
    return fit_memory(estimator, plan, Available(device=available, cpu=cpu))


def peaks(*overrides: str) -> list[int]:
    """Bytes that are alive at the peak with 1, 2, 4 and 8 rows."""
    estimator = estimator_of(*overrides)
    found = [memory_of(estimator, per_device_train_batch_size=rows) for rows in (1, 2, 4, 8)]
    return [memory.total - memory.libraries - memory.kept for memory in found]


def test_memory_grows_with_the_rows_of_a_pass_and_less_with_checkpointing() -> None:
    plain, checkpointed = peaks(), peaks("training.gradient_checkpointing=true")
    assert plain == sorted(plain)
    assert checkpointed[3] < plain[3]


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.quantization=nf4"],
        ["model.quantization=fp4"],
        ["model.quantization=int8"],
        ["lora=none"],
        ["lora=dora"],
        ["lora=pissa"],
        ["training.packing=true"],
        ["training.dtype=bfloat16", "optimizer=paged_adamw_8bit", "model.quantization=nf4"],
    ],
    ids=" ".join,
)
def test_every_form_of_a_run_is_estimated(overrides: list[str]) -> None:
    one, two, _, _ = peaks(*overrides)
    assert 0 < one < two


def test_max_batch_tokens_bounds_a_pass() -> None:
    one, two, four, eight = peaks("training.max_batch_tokens=500")
    assert one < two
    assert four == eight


def test_auto_splits_the_effective_batch_and_the_run_keeps_the_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = [word for word in QUICK if "batch_size" not in word]
    assert (
        run_train(tmp_path / "run", *job, *AUTO, "training.effective_batch_size=6", "training.generation_tasks=0") == 0
    )
    line = (
        "training.per_device_train_batch_size=6 training.gradient_accumulation_steps=1 "
        r"training.gradient_checkpointing=false: about [\d.]+ [GM]iB of the [\d.]+ GiB available"
    )
    assert re.search(line, capsys.readouterr().out)
    stored = yaml.safe_load((tmp_path / "run" / "run.yaml").read_text())["config"]["training"]
    assert stored["per_device_train_batch_size"] == 6
    assert stored["gradient_accumulation_steps"] == 1
    assert stored["effective_batch_size"] is None
    assert stored["gradient_checkpointing"] is False


def test_auto_takes_the_fastest_that_fits_and_recomputes_where_nothing_else_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    estimator = estimator_of(*AUTO)
    gibibyte = 2**30

    def memory(training: TrainingConfig) -> Memory:
        row = 1 if training.gradient_checkpointing else 3
        return Memory(
            libraries=0,
            weights=0,
            gradients=0,
            optimizer=0,
            loading=0,
            activations=training.batch_size * row * gibibyte,
        )

    monkeypatch.setattr(estimator, "memory", memory)

    def chosen(available: float) -> tuple[int, int, bool]:
        training = fitted(estimator, int(available * gibibyte)).training
        return training.batch_size, training.gradient_accumulation_steps, bool(training.gradient_checkpointing)

    assert chosen(24.1 / MARGIN) == (8, 1, False)
    assert chosen(23.9 / MARGIN) == (4, 2, False)
    assert chosen(3.1 / MARGIN) == (1, 8, False)
    assert chosen(2.9 / MARGIN) == (2, 4, True)
    capsys.readouterr()
    assert chosen(0.5) == (1, 8, True)
    said = capsys.readouterr().out
    assert re.search(r"warning: needs about 1.00 GiB, more than the 0.50 GiB available", said)
    assert "training.per_device_train_batch_size" not in said.partition("warning:")[2]


def test_accumulation_beside_auto_and_an_effective_batch_beside_a_number_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"training\.gradient_accumulation_steps=2 with .*effective_batch_size"):
        train_config("model=local", "model.path=DIR", "training.gradient_accumulation_steps=2")
    with pytest.raises(ConfigError, match=r"training\.effective_batch_size=4 belongs to"):
        train_config("model=tiny", "training.effective_batch_size=4")
    with pytest.raises(ConfigError, match=r"per_device_train_batch_size=0: at least 1, or auto"):
        train_config("model=tiny", "training.per_device_train_batch_size=0")


@pytest.mark.slow
def test_a_model_too_large_for_the_process_is_said_before_it_is_loaded(tmp_path: Path) -> None:
    model = ROOT / "benchmarks" / "architectures" / "qwen2_5_0_5b"
    done = subprocess.run(
        [
            "bash", "-c", 'ulimit -v 3000000; exec "$@"', "bash",
            sys.executable, str(ROOT / "train.py"), "model=qwen2_5_0_5b", "model.init=random", f"model.path={model}",
            "model.tokenizer=bundled:tiny", "encoder=minimal", "prompt=grid_only", "data=arc1", "data.limit=6",
            "data.held_out=2", "data.max_tokens=500", "tracking=none", "preview=false", "dry_run=true",
        ],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    warning = next(line for line in done.stdout.splitlines() if line.startswith("warning: "))
    assert re.match(r"warning: needs about [\d.]+ GiB, more than the [\d.]+ GiB available", warning)
    assert "502.83 M" in done.stdout


def with_parts(monkeypatch: pytest.MonkeyPatch, estimator: Estimator, **parts: int) -> None:
    """Let `estimator` find these bytes instead of its own, for all settings."""
    names = ("libraries", "weights", "gradients", "optimizer", "activations", "kept", "loading")
    memory = Memory(**dict.fromkeys(names, 0) | parts)
    monkeypatch.setattr(estimator, "memory", lambda training: memory)


def warning(capsys: pytest.CaptureFixture[str]) -> str:
    lines = capsys.readouterr().out.splitlines()
    return " ".join(lines[next(number for number, line in enumerate(lines) if line.startswith("warning:")) :])


def test_where_loading_is_the_peak_the_batch_is_kept_and_not_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    estimator = estimator_of(*AUTO)
    with_parts(monkeypatch, estimator, loading=2**40, weights=2**30, activations=2**35)
    training = fitted(estimator, 2**39).training
    assert (training.per_device_train_batch_size, training.gradient_checkpointing) == (8, False)
    said = warning(capsys)
    assert said.startswith("warning: needs about 1024.00 GiB, more than the 512.00 GiB available")
    assert "training." not in said


def test_the_limit_on_length_is_named_by_the_longest_example(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    estimator = estimator_of("training.max_seq_length=2048")
    with_parts(monkeypatch, estimator, activations=2**30)
    fitted(estimator, 2**29)
    longest = estimator.longest
    assert f"training.max_seq_length below {longest}" in warning(capsys)
    assert longest < 256


def test_gradients_and_optimizer_state_have_keys_of_their_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    estimator = estimator_of("lora=none")
    with_parts(monkeypatch, estimator, gradients=2**30, optimizer=2**31)
    fitted(estimator, 2**30)
    assert warning(capsys).endswith("; to need less: lora=default, optimizer=paged_adamw_8bit")


def test_on_a_gpu_the_weight_files_do_not_count_and_random_weights_need_cpu_memory(
    capsys: pytest.CaptureFixture[str],
) -> None:
    on_cpu = estimator_of()
    estimator = on_gpu(on_cpu)
    memory = memory_of(estimator)
    assert (memory.libraries, memory.loading) == (0, memory.weights)
    assert memory_of(on_cpu).loading > 0
    assert memory.host > 2**26
    assert fitted(estimator, 2**40).fits
    assert not fitted(estimator, 2**40, cpu=2**20).fits
    assert re.search(r"needs about .* of CPU memory while the weights are loaded, more than", warning(capsys))


@pytest.mark.parametrize("strategy", ["full_shard", "shard_grad_op"])
def test_with_fsdp_a_rank_has_its_slice_and_what_is_gathered(monkeypatch: pytest.MonkeyPatch, strategy: str) -> None:
    estimator = estimator_of("lora=none")
    whole = memory_of(on_gpu(estimator, "lora=none"))
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "0")
    unseen = ["data.held_out=0", "training.generation_tasks=0"]
    memory = memory_of(on_gpu(estimator, "lora=none", f"training.fsdp={strategy}", *unseen))
    assert memory.optimizer == whole.optimizer // 4
    assert whole.gradients / 4 < memory.gradients < whole.gradients * 1.25
    assert memory.activations == whole.activations
    if strategy == "shard_grad_op":
        assert memory.weights == whole.weights + whole.weights // 4
    assert memory.loading == whole.weights // 4
    evaluated = memory_of(on_gpu(estimator, "lora=none", f"training.fsdp={strategy}"))
    assert evaluated.loading == whole.weights + whole.weights // 4


def test_the_longest_task_is_among_the_examples() -> None:
    # One of 400 steps of 8, which the evenly spaced sample mostly misses.
    estimator = estimator_of("training.max_steps=400", "training.max_seq_length=2048")
    assert 256 < estimator.sampled <= 256 + 10
    stream = prepare(estimator.config).stream
    assert estimator.longest == max(len(stream[k].input_ids) for k in range(64))


def test_a_resumed_run_is_estimated_for_its_own_accumulation() -> None:
    estimator = estimator_of("lora=none")
    once, twice = memory_of(estimator), memory_of(estimator, gradient_accumulation_steps=2)
    assert twice.activations > once.activations
