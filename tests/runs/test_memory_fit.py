"""What a run chooses for the memory there is, and what it says where there is too little."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from arcft.config.schema import ConfigError
from arcft.runs.training.estimate import Estimator
from arcft.runs.training.fit import MARGIN, fit_memory
from arcft.runs.training.preparation import prepare
from tests.config.test_config import train_config
from tests.support.paths import ROOT
from tests.support.train_command import QUICK, run_train

CPU = torch.device("cpu")
AUTO = ["training.per_device_train_batch_size=auto", "training.gradient_checkpointing=auto"]


def peaks(*overrides: str) -> list[int]:
    """Estimated bytes with 1, 2, 4 and 8 rows."""
    config = train_config(*QUICK, *overrides)
    prepared = prepare(config)
    estimator = Estimator(config, prepared.stream, None, None, CPU)
    found = []
    for rows in (1, 2, 4, 8):
        memory = estimator.memory(dataclasses.replace(config.training, per_device_train_batch_size=rows))
        assert memory is not None
        found.append(memory.total - memory.libraries)
    return found


def test_memory_grows_with_the_rows_of_a_pass_and_less_with_checkpointing() -> None:
    plain, checkpointed = peaks(), peaks("training.gradient_checkpointing=true")
    assert plain == sorted(plain)
    assert plain[3] - plain[2] == pytest.approx(4 * (plain[1] - plain[0]), rel=0.01)
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
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = train_config(*[word for word in QUICK if "batch_size" not in word], *AUTO)
    prepared = prepare(config)
    estimator = Estimator(config, prepared.stream, None, None, CPU)

    def need(rows: int, checkpointing: bool) -> int:
        changed = dataclasses.replace(
            config.training,
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=8 // rows,
            effective_batch_size=None,
            gradient_checkpointing=checkpointing,
        )
        memory = estimator.memory(changed)
        assert memory is not None
        return memory.total

    def chosen(available: int) -> tuple[int, int, bool]:
        training = fit_memory(estimator, available).config.training
        assert training.batch_size * training.gradient_accumulation_steps == 8
        return training.batch_size, training.gradient_accumulation_steps, bool(training.gradient_checkpointing)

    room = 2**20  # what the process itself may grow by meanwhile
    assert chosen(2**40) == (8, 1, False)
    assert chosen(int((need(4, False) + room) / MARGIN)) == (4, 2, False)
    assert chosen(2**20) == (1, 8, True)
    said = capsys.readouterr().out
    assert re.search(r"warning: needs about [\d.]+ GiB, more than the [\d.]+ MiB available", said)
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
    assert re.match(r"warning: needs about [\d.]+ GiB, more than the [\d.]+ GiB available; to need less: ", warning)
    assert "model.quantization=nf4" in warning
    assert "502.83 M" in done.stdout


def test_a_larger_batch_is_kept_where_a_smaller_one_saves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where loading the weights takes more than training, the batch makes no difference."""
    config = train_config(*QUICK, *AUTO)
    prepared = prepare(config)
    estimator = Estimator(config, prepared.stream, None, None, CPU)
    monkeypatch.setattr(estimator, "_loading", lambda weights: 2**40)
    fit = fit_memory(estimator, 2**40)
    assert (fit.config.training.per_device_train_batch_size, fit.config.training.gradient_checkpointing) == (8, False)
