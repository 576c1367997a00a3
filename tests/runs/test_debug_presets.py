"""conf/debug/: each preset runs and does what its first lines promise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.train_command import SMALL_MODEL, run_train


def history(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "history.jsonl").read_text(encoding="utf-8").splitlines()]


def test_fast_goes_through_every_part_of_a_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert run_train(run, "debug=fast", *SMALL_MODEL) == 0
    assert (run / "checkpoint-2").is_dir()
    steps = history(run)
    assert [entry["step"] for entry in steps if "loss" in entry] == [1, 2]
    assert any("eval_loss" in entry for entry in steps)
    assert "accuracy" in json.loads((run / "metrics.json").read_text(encoding="utf-8"))["metrics"]


def test_overfit_learns_its_batch_by_heart(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert run_train(run, "debug=overfit", "training.max_steps=12", "training.logging_steps=1") == 0
    losses = [entry["loss"] for entry in history(run) if "loss" in entry]
    assert len(losses) == 12
    assert losses[-1] < losses[0] / 10


def test_the_profiler_shows_operations_and_writes_a_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    small = ["training.max_steps=3", "training.profile_steps=2", "training.save_steps=3", "training.eval_steps=3"]
    assert run_train(run, "debug=profiler", *SMALL_MODEL, *small) == 0
    output = capsys.readouterr().out
    assert "Self CPU time total" in output
    assert f"profile: {run}/profile.json" in output.replace("\n", "")
    events = json.loads((run / "profile.json").read_text(encoding="utf-8"))["traceEvents"]
    # Two steps were profiled, not the first one.
    assert sum(event.get("name") == "Optimizer.step#AdamW.step" for event in events) == 2
