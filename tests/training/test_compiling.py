"""training.compile: trajectory and checkpoints are those of a run as written, and few graphs serve all lengths."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch._dynamo.utils import counters

from arcft.checkpoints import last_checkpoint
from arcft.training import compiling
from arcft.training.arguments import make_training_arguments
from arcft.training.compiling import CompileError, compile_layers
from tests.support.small_training import CPU, EVALUATION, adapted_model, small_run, training_config


@pytest.mark.slow
@pytest.mark.parametrize("packing", [False, True])
def test_a_compiled_run_is_the_same_run(tmp_path: Path, packing: bool) -> None:
    # Compiled dropout draws other numbers, so there is none.
    changes = {"max_steps": 4, "packing": packing, "eval_dataset": EVALUATION, "eval_steps": 2, "save_steps": 2}
    plain = small_run(tmp_path / "plain", adapted_model(dropout=0.0), **changes)
    plain.trainer.train()
    torch.compiler.reset()
    counters.clear()
    compiled = small_run(tmp_path / "compiled", adapted_model(dropout=0.0), compile=True, **changes)
    compiled.trainer.train()
    for name in ("loss", "grad_norm", "eval_loss"):
        assert compiled.logs.of(name) == pytest.approx(plain.logs.of(name), rel=1e-3), name
    # Batches of four lengths, two layers.
    assert 0 < counters["stats"]["unique_graphs"] <= 8

    weights, expected = (
        load_file(last_checkpoint(tmp_path / name) / "adapter_model.safetensors") for name in ("compiled", "plain")
    )
    assert weights.keys() == expected.keys()

    resumed = small_run(tmp_path / "compiled", adapted_model(dropout=0.0), compile=True, **changes)
    resumed.trainer.train(tmp_path / "compiled" / "checkpoint-2")
    assert resumed.logs.of("loss") == pytest.approx(compiled.logs.of("loss")[2:], rel=1e-4)


@pytest.mark.parametrize(
    ("device", "missing", "message"),
    [("cpu", "which", r"needs a C\+\+ compiler \(.*none here"), ("cuda", "has_triton", "needs Triton")],
)
def test_no_compiler_is_an_error_in_words(
    device: str, missing: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = compiling.shutil if missing == "which" else compiling
    monkeypatch.setattr(owner, missing, lambda *args: None)
    with pytest.raises(CompileError, match=message):
        compiling.check_compiler(torch.device(device))


def test_it_is_refused_before_anything_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling.shutil, "which", lambda name: None)
    with pytest.raises(CompileError):
        make_training_arguments(training_config(compile=True), tmp_path, CPU)
    make_training_arguments(training_config(), tmp_path, CPU)


def test_a_model_without_layers_is_refused() -> None:
    with pytest.raises(CompileError, match="Linear has no layers"):
        compile_layers(nn.Linear(2, 2))
