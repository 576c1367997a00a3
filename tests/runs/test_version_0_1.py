"""Checkpoints, evaluations and ledgers that version 0.1.0 wrote open, resume, and give the answers that they gave."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from tests.support.evaluate_command import start_evaluate
from tests.support.paths import SUPPORT
from tests.support.train_command import start_train

FIRST, SECOND = "66e6c45b", "00576224"
WRITTEN_IN = "/tmp/version_0_1"
ONE_OF_TWO = [
    "data=arc1",
    "data.split=evaluation",
    f"data.task_ids=['{FIRST}','{SECOND}']",
    "inference.predictions_per_test=2",
    "tracking=none",
]


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A copy of the three runs, in which they lie where their files say."""
    folder = tmp_path / "old"
    shutil.copytree(SUPPORT / "version_0_1", folder)
    for path in folder.rglob("*"):
        # A checkpoint's manifest holds the digests of its files, so these stay as they are.
        if path.suffix in (".yaml", ".json", ".jsonl") and not path.parent.name.startswith("checkpoint-"):
            path.write_text(path.read_text(encoding="utf-8").replace(WRITTEN_IN, str(folder)), encoding="utf-8")
    ledger = sqlite3.connect(folder / "ttft" / "ledger.sqlite")
    with ledger:
        ledger.execute("UPDATE units SET adapter = replace(adapter, ?, ?)", (WRITTEN_IN, str(folder)))
        ledger.execute("UPDATE config SET json = replace(json, ?, ?)", (WRITTEN_IN, str(folder)))
    ledger.close()
    return folder


def run_evaluate(*overrides: str, cwd: Path) -> str:
    """What evaluate.py prints; it must succeed."""
    process = start_evaluate(*overrides, cwd=cwd)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, output + errors
    return output


def predictions_in(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]


def assert_same_answers(folder: Path, expected: Path) -> None:
    """Grids, texts and transforms are equal, log-probabilities up to the rounding of another processor."""
    ours, theirs = predictions_in(folder), predictions_in(expected)
    exact = ("task_id", "test_index", "grid", "text", "num_tokens", "transform", "seed", "error")
    assert [{name: one[name] for name in exact} for one in ours] == [
        {name: one[name] for name in exact} for one in theirs
    ]
    assert [one["logprob"] for one in ours] == pytest.approx([one["logprob"] for one in theirs], rel=1e-3)


def test_a_checkpoint_predicts_what_it_predicted(old: Path, tmp_path: Path) -> None:
    (old / "train" / "evaluations.jsonl").unlink()
    run_evaluate(f"checkpoint={old / 'train'}", *ONE_OF_TWO, f"hydra.run.dir={tmp_path / 'new'}", cwd=tmp_path)
    assert_same_answers(tmp_path / "new", old / "evaluate")
    new, was = (json.loads((folder / "metrics.json").read_text()) for folder in (tmp_path / "new", old / "evaluate"))
    assert new["metrics"] == pytest.approx(was["metrics"])


def test_a_stopped_evaluation_resumes(old: Path, tmp_path: Path) -> None:
    expected = tmp_path / "expected"
    shutil.copytree(old / "evaluate", expected)
    (old / "train" / "evaluations.jsonl").unlink()
    (old / "evaluate" / "metrics.json").unlink()
    lines = (old / "evaluate" / "predictions.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    assert len(lines) == 4
    (old / "evaluate" / "predictions.jsonl").write_text("".join(lines[:2]), encoding="utf-8")
    run_evaluate(f"resume={old / 'evaluate'}", cwd=tmp_path)
    assert_same_answers(old / "evaluate", expected)
    assert predictions_in(old / "evaluate")[0]["seconds"] == predictions_in(expected)[0]["seconds"]


def test_a_finished_evaluation_is_found_again(old: Path, tmp_path: Path) -> None:
    """Its key in the training run's index is the one that the same settings have today."""
    for name in ("report.html", "summary.png"):
        (old / "evaluate" / name).write_bytes(b"")
    output = run_evaluate(f"checkpoint={old / 'train'}", *ONE_OF_TWO, cwd=tmp_path)
    assert "already evaluated in" in output.replace("\n", " ")


def test_a_ledger_resumes(old: Path, tmp_path: Path) -> None:
    """One unit is finished, the other was running when the process died: it alone is adapted again."""
    expected = tmp_path / "expected"
    shutil.copytree(old / "ttft", expected)
    (old / "train" / "evaluations.jsonl").unlink()
    (old / "ttft" / "metrics.json").unlink()
    ledger = sqlite3.connect(old / "ttft" / "ledger.sqlite")
    with ledger:
        ledger.execute("UPDATE units SET state = 'queued' WHERE round = 1 AND name = ?", (SECOND,))
        ledger.execute("DELETE FROM predictions WHERE round = 1 AND name = ?", (SECOND,))
    ledger.close()
    run_evaluate(f"resume={old / 'ttft'}", cwd=tmp_path)
    assert_same_answers(old / "ttft", expected)
    assert (old / "ttft" / "adapters" / SECOND / "checkpoint-4").is_dir()


def test_training_resumes_to_the_same_adapter(old: Path, tmp_path: Path) -> None:
    expected = load_file(old / "train" / "checkpoint-4" / "adapter_model.safetensors")
    shutil.rmtree(old / "train" / "checkpoint-4")
    process = start_train(f"resume={old / 'train'}", cwd=tmp_path)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, output + errors
    found = load_file(old / "train" / "checkpoint-4" / "adapter_model.safetensors")
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name] == pytest.approx(values, abs=1e-5), name


def test_its_predictions_are_selected_from_again(old: Path, tmp_path: Path) -> None:
    output = run_evaluate(
        f"predictions={old / 'evaluate' / 'predictions.jsonl'}",
        "selection=verify",
        "tracking=none",
        f"hydra.run.dir={tmp_path / 'new'}",
        cwd=tmp_path,
    )
    assert "2 tasks" in output
    submission = json.loads((tmp_path / "new" / "submission.json").read_text(encoding="utf-8"))
    assert set(submission) == {FIRST, SECOND}
