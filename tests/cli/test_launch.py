"""Launchers that would train in a way of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from arcft.cli.launch import LaunchError, refuse_launch
from arcft.training.arguments import make_training_arguments
from tests.support.small_training import small_run, training_config


@pytest.mark.parametrize("variable", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
def test_plugins_of_accelerate_are_refused(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "true")
    with pytest.raises(LaunchError, match=rf"{variable}=true.*training\.fsdp"):
        refuse_launch("train", [])
    monkeypatch.setenv(variable, "false")
    refuse_launch("train", [])


def test_commands_of_one_process_are_refused_under_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(LaunchError, match=r"evaluate runs in one process but was started as 2.*ttft\.workers"):
        refuse_launch("evaluate", [])
    with pytest.raises(LaunchError, match="export runs in one process but was started as 2; start it without"):
        refuse_launch("export", [])
    with pytest.raises(LaunchError, match="-m under a launcher of 2 processes"):
        refuse_launch("train", ["-m"])


def test_the_mixed_precision_of_accelerate_does_not_replace_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    arguments = make_training_arguments(training_config(), tmp_path, torch.device("cpu"))
    assert arguments.mixed_precision == "no"
    assert small_run(tmp_path).trainer.accelerator.mixed_precision == "no"
    assert small_run(tmp_path, dtype="bfloat16").trainer.accelerator.mixed_precision == "bf16"
