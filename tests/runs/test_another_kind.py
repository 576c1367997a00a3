"""A kind of problem without a grid in it goes through every program: nothing above problems/ knows only ARC.

It moves in as a kind would: a class, a row in the table of kinds, and a config folder on Hydra's search path.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from arcft.checkpoints import read_run_yaml
from arcft.cli import evaluate, train
from arcft.runs.contamination import main as contamination
from arcft.runs.setup.kinds import KINDS
from tests.support.evaluate_command import run_json
from tests.support.paths import SUPPORT
from tests.support.toy_kind import WORDS, ToyKind
from tests.support.train_command import QUIET, RANDOM_WEIGHTS, SMALL_MODEL, files_of, history

TOY_CONF = ["--config-dir", str(SUPPORT / "toy_conf")]
SHORT = ["inference.predictions_per_test=2", "inference.max_new_tokens=6"]
TRAIN = [
    "data=toy",
    *SMALL_MODEL,
    *QUIET,
    *SHORT,
    "inference.grammar=false",
    "model.positions=none",
    "training.loss_on=completion",
    "training.learning_rate=1e-2",
    "training.max_steps=200",
    "training.per_device_train_batch_size=8",
    "training.eval_steps=100",
    "training.save_steps=100",
    "training.max_seq_length=128",
    "training.best_metric=accuracy",
]
HELD_OUT = ["fig", "lip", "net"]
FILES = {"metrics.json", "predictions.jsonl", "report.html", "submission.json", "summary.png", "numbers.png"}


@pytest.fixture(autouse=True, scope="module")
def _one_more_kind() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(KINDS, "toy", ToyKind)
        yield


def command(main: Callable[[], None], *overrides: str) -> int:
    """Run a program in this process, with the toy's configs beside arcft's; returns its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["arcft", *TOY_CONF, *overrides])
        # The command sets it for Hydra, which must not count as the user's wish in what runs after it.
        patch.setenv("HYDRA_FULL_ERROR", "0")
        try:
            main()
        except SystemExit as end:
            return end.code if isinstance(end.code, int) else 1
    return 0


def evaluated(folder: Path, *overrides: str) -> Path:
    """Evaluate the words of `data=`, by default those that the run held out."""
    data = [] if any(word.startswith("data=") for word in overrides) else ["data=toy_held_out"]
    words = [*data, "data.held_out=0", "tracking=none", f"hydra.run.dir='{folder}'", *overrides]
    assert command(evaluate.main, *words) == 0
    return folder


PREDICT = ["inference.grammar=false", *SHORT]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 steps on nine words, with three held out."""
    folder = tmp_path_factory.mktemp("toy") / "run"
    assert command(train.main, *TRAIN, f"hydra.run.dir='{folder}'") == 0
    return folder


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained model on all twelve words."""
    return evaluated(tmp_path_factory.mktemp("toy") / "whole", f"checkpoint={run}", "data=toy", *PREDICT)


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
    assert command(train.main, f"resume={tmp_path / 'run'}") == 0
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


def test_tokens_of_its_own_problems_are_kept(run: Path, whole: Path, tmp_path: Path) -> None:
    """A kind without closed texts: the vocabulary is that of the words, which train, resume, answer and adapt."""
    folder = tmp_path / "run"
    short = ["training.max_steps=4", "training.eval_steps=2", "training.save_steps=2"]
    assert command(train.main, *TRAIN, *short, "model.prune_vocabulary=true", f"hydra.run.dir='{folder}'") == 0
    last = files_of(folder / "checkpoint-4")
    shutil.rmtree(folder / "checkpoint-4")
    assert command(train.main, f"resume={folder}") == 0
    assert files_of(folder / "checkpoint-4") == last
    again = evaluated(tmp_path / "again", f"checkpoint={run}", "data=toy", "prune_vocabulary=true", *PREDICT)
    assert run_json(again)["metrics"] == run_json(whole)["metrics"]
    ttft = ["ttft=per_task", "ttft.max_steps=1"]
    evaluated(tmp_path / "adapted", f"checkpoint={folder}", "data=toy_held_out", *PREDICT, *ttft)


def test_the_report_draws_words(whole: Path) -> None:
    report = (whole / "report.html").read_text()
    assert '<span class="text">cab</span>' in report
    assert "solved by the submitted answer" in report
    assert "grid" not in report.partition("</style>")[2]


def test_a_finished_evaluation_is_selected_from_again(whole: Path, tmp_path: Path) -> None:
    again = evaluated(tmp_path / "again", f"predictions={whole / 'predictions.jsonl'}")
    assert run_json(again)["metrics"] == run_json(whole)["metrics"]


def test_checkpoints_are_compared(run: Path, tmp_path: Path) -> None:
    folder = evaluated(tmp_path / "sweep", f"checkpoint='{run}/checkpoint-*'", *PREDICT)
    assert {path.name for path in folder.iterdir()} >= {"checkpoint-100", "checkpoint-200", "sweep.json", "sweep.png"}
    assert list(run_json(folder / "checkpoint-100")["tasks"]) == HELD_OUT


def test_a_base_model_is_evaluated(tmp_path: Path) -> None:
    model = ["model=tiny", *SMALL_MODEL[:2], *RANDOM_WEIGHTS, "model.positions=none", "data=toy", *PREDICT]
    assert run_json(evaluated(tmp_path / "base", *model))["metrics"]["unanswered"] == 1.0


def test_the_model_is_adapted_to_each_problem_and_goes_on(run: Path, tmp_path: Path) -> None:
    ttft = [f"checkpoint={run}", "ttft=per_task", "ttft.max_steps=20", "ttft.keep_adapters=true", *PREDICT]
    folder = evaluated(tmp_path / "ttft", *ttft)
    metrics = run_json(folder)
    assert list(metrics["tasks"]) == HELD_OUT
    assert list(metrics["before"]) == list(metrics["metrics"])
    assert sorted(path.name for path in (folder / "adapters").iterdir()) == HELD_OUT
    before = lines_of(folder)
    (folder / "metrics.json").unlink()
    assert command(evaluate.main, f"resume={folder}") == 0
    assert lines_of(folder) == before

    adapters = [f"checkpoint={run}", f"adapters='{folder}/adapters/*'", *PREDICT]
    later = evaluated(tmp_path / "adapters", *adapters)
    assert [line["text"] for line in lines_of(later)] == [line["text"] for line in before]


def test_another_kind_than_the_checkpoint_s_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(evaluate.main, f"checkpoint={run}", "tracking=none") == 1
    message = f"data.kind=arc: {run / 'checkpoint-200'} was trained on problems of kind toy; use data.kind=toy"
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("encoder=minimal", "encoder: problems of kind toy have none; use ~encoder"),
        ("data.split=training", "data.split: there is no such key"),
        ("training.best_metric=vote_2", "training.best_metric=vote_2: one of accuracy, pass_n, vote"),
        ("model.positions=grid", "model.positions=grid: one of none"),
        ("inference.augmentations=[colors]", "inference.augmentations=[colors]: colors is unknown; known are none"),
        ("inference.grammar=true", "problems of this kind have no grammar; set it to false"),
        ("selection=verify", "selection=verify: data.kind=toy has no verifier; use selection=vote"),
        ("data.disjoint_from=[x]", "x: problems of kind toy have no sets to compare with"),
    ],
)
def test_what_the_kind_lacks_is_refused(
    tmp_path: Path, override: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(train.main, *TRAIN, override, "dry_run=true", f"hydra.run.dir='{tmp_path / 'run'}'") == 1
    assert message in " ".join(capsys.readouterr().err.split())


def test_sets_of_the_kind_are_compared_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert contamination(["a", "b", "kind=toy"]) == 1
    assert capsys.readouterr().err == "a: problems of kind toy have no sets to compare with\n"


def test_a_base_model_needs_problems_of_its_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = ["model=tiny", *SMALL_MODEL[:2], *RANDOM_WEIGHTS, "model.positions=none", "data=toy_held_out", *PREDICT]
    assert command(evaluate.main, *model, "data.held_out=0", "tracking=none", f"hydra.run.dir='{tmp_path / 'e'}'") == 1
    assert "are those of train's default data, of kind arc; name the problems of kind toy" in " ".join(
        capsys.readouterr().err.split()
    )
