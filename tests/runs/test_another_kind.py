"""A kind of problem without a grid in it goes through every program: nothing above problems/ knows only ARC."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from arcft.checkpoints import read_run_yaml
from arcft.runs.evaluate import evaluate
from arcft.runs.setup.kinds import KINDS
from arcft.runs.train import train
from tests.config.test_config import evaluate_config, train_config
from tests.support.evaluate_command import run_json
from tests.support.toy_kind import WORDS, ToyKind
from tests.support.train_command import QUIET, RANDOM_WEIGHTS, SMALL_MODEL, files_of, history

TOY = ["inference.grammar=false", "inference.predictions_per_test=2", "inference.max_new_tokens=6"]
TRAIN = [
    *SMALL_MODEL,
    *QUIET,
    *TOY,
    "model.positions=none",
    "training.loss_on=completion",
    "training.learning_rate=1e-2",
    "training.max_steps=200",
    "training.per_device_train_batch_size=8",
    "training.eval_steps=100",
    "training.save_steps=100",
    "training.max_seq_length=128",
    "training.best_metric=accuracy",
    "data.held_out=3",
]
HELD_OUT = ["fig", "lip", "net"]
FILES = {"metrics.json", "predictions.jsonl", "report.html", "submission.json", "summary.png", "numbers.png"}


@pytest.fixture(autouse=True, scope="module")
def _one_more_kind() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(KINDS, "arc", ToyKind)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 steps on nine words, with three held out."""
    folder = tmp_path_factory.mktemp("toy") / "run"
    train(train_config(*TRAIN), folder)
    return folder


def evaluated(folder: Path, *overrides: str) -> Path:
    made_before = any(word.startswith("predictions=") for word in overrides)
    words = [*([] if made_before else TOY), "tracking=none", *overrides]
    evaluate(evaluate_config(*words), folder, explicit=[word.partition("=")[0] for word in words])
    return folder


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained model on all twelve words."""
    return evaluated(tmp_path_factory.mktemp("toy") / "whole", f"checkpoint={run}", "data=arc1")


def test_a_run_is_trained_and_measured(run: Path) -> None:
    assert read_run_yaml(run)["tasks"]["held_out"] == HELD_OUT
    assert sorted(path.name for path in run.glob("checkpoint-*")) == ["checkpoint-100", "checkpoint-200"]
    metrics = json.loads((run / "metrics.json").read_text())
    assert list(metrics["metrics"]) == ["accuracy", "pass_n", "unanswered", "vote"]
    assert metrics["loss"] < 0.2
    assert (run / "preview.png").is_file()


def test_a_run_is_resumed(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoint-200")
    train(train_config(*TRAIN, f"resume={tmp_path / 'run'}"), tmp_path / "run")
    assert files_of(tmp_path / "run" / "checkpoint-200") == files_of(run / "checkpoint-200")
    assert history(tmp_path / "run") == history(run)


def test_words_that_were_learned_are_answered(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert {path.name for path in whole.iterdir()} >= FILES
    metrics = run_json(whole)
    assert metrics["metrics"] == {"accuracy": 0.75, "pass_n": 0.75, "unanswered": 0.0, "vote": 0.75}
    assert {word for word, scores in metrics["tasks"].items() if not scores["vote"]} == set(HELD_OUT)
    assert metrics["run"]["trained_on"] == 9
    first = lines_of(whole)[0]
    assert (first["task_id"], first["answer"], first["text"]) == ("cab", "bac", "bac")
    assert "grid" not in first
    submission = json.loads((whole / "submission.json").read_text())
    assert list(submission) == list(WORDS)
    assert submission["cab"] == ["bac"]


def test_the_report_draws_words(whole: Path) -> None:
    report = (whole / "report.html").read_text()
    assert '<span class="text">cab</span>' in report
    assert "solved by the submitted answer" in report
    assert "grid" not in report.partition("</style>")[2]


def test_a_finished_evaluation_is_selected_from_again(whole: Path, tmp_path: Path) -> None:
    again = evaluated(tmp_path / "again", f"predictions={whole / 'predictions.jsonl'}", "data=arc1")
    assert run_json(again)["metrics"] == run_json(whole)["metrics"]


def test_checkpoints_are_compared(run: Path, tmp_path: Path) -> None:
    folder = evaluated(tmp_path / "sweep", f"checkpoint={run}/checkpoint-*")
    assert {path.name for path in folder.iterdir()} >= {"checkpoint-100", "checkpoint-200", "sweep.json", "sweep.png"}
    assert list(run_json(folder / "checkpoint-100")["tasks"]) == HELD_OUT


def test_a_base_model_is_evaluated(tmp_path: Path) -> None:
    model = ["model=tiny", *SMALL_MODEL[:2], *RANDOM_WEIGHTS, "model.positions=none", "data=arc1"]
    assert run_json(evaluated(tmp_path / "base", *model))["metrics"]["unanswered"] == 1.0


def test_the_model_is_adapted_to_each_problem_and_goes_on(run: Path, tmp_path: Path) -> None:
    ttft = [f"checkpoint={run}", "ttft=per_task", "ttft.max_steps=20", "ttft.keep_adapters=true"]
    folder = evaluated(tmp_path / "ttft", *ttft)
    metrics = run_json(folder)
    assert list(metrics["tasks"]) == HELD_OUT
    assert list(metrics["before"]) == list(metrics["metrics"])
    assert sorted(path.name for path in (folder / "adapters").iterdir()) == HELD_OUT
    before = lines_of(folder)
    (folder / "metrics.json").unlink()
    evaluated(folder, *ttft)
    assert lines_of(folder) == before

    adapters = [f"checkpoint={run}", f"adapters={folder}/adapters/*"]
    later = evaluated(tmp_path / "adapters", *adapters)
    assert [line["text"] for line in lines_of(later)] == [line["text"] for line in before]
