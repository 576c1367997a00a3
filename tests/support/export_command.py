"""The command `arcft export` in this process or in one of its own, and what a run's model computes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from arcft.cli.export import main
from arcft.models.load import load_model
from arcft.models.lora import load_adapter
from arcft.runs.setup.checkpoint_config import open_checkpoint
from arcft.runs.setup.restore import base_model
from tests.support.paths import ROOT

CPU = torch.device("cpu")


def run_export(*overrides: str) -> int:
    """Run the command in this process; returns its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["arcft export", *overrides])
        patch.setenv("HYDRA_FULL_ERROR", "0")
        try:
            main()
        except SystemExit as end:
            return end.code if isinstance(end.code, int) else 1
    return 0


def start_export(*overrides: str, cwd: Path) -> subprocess.Popen[str]:
    """Start the command as a process of its own, on one thread."""
    return subprocess.Popen(
        [sys.executable, "-m", "arcft", "export", *overrides],
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def logits_of_run(folder: Path) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Inputs, and the logits that the trained model of a run has for them, loaded as evaluations do."""
    run = open_checkpoint(folder)
    model = load_model(base_model(run), dtype=torch.float32, device=CPU)
    if (run.checkpoint.path / "adapter_config.json").is_file():
        model = load_adapter(model, run.checkpoint.path, trainable=False)  # type: ignore[assignment]
    ids = torch.arange(3, 40).unsqueeze(0)
    with torch.no_grad():
        return {"input_ids": ids}, model(input_ids=ids).logits
