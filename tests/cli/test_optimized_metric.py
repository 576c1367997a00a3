"""optimized_metric: what programs return to Hydra's sweepers, and what is refused before anything long begins."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra.core.utils import JobReturn

from arcft.cli import evaluate, train
from arcft.config.schema import ConfigError
from arcft.errors import ArcftError
from arcft.runs.common.optimized_metric import check_name, value_of
from tests.support.evaluate_command import evaluated, run_json, trained
from tests.support.job_returns import RECORDED, RETURNED
from tests.support.train_command import QUICK, history, run_train

KNOWN = ["train/loss", "eval/loss", "eval/accuracy", "eval/vote_2"]


def test_a_name_is_checked() -> None:
    check_name(None, KNOWN)
    check_name("eval/accuracy", KNOWN)
    with pytest.raises(ConfigError) as refused:
        check_name("eval/acuracy", KNOWN)
    assert "optimized_metric=eval/acuracy: no such metric; did you mean eval/accuracy? there are train/loss, " in str(
        refused.value
    )


def test_the_value_is_returned_or_missed() -> None:
    assert value_of(None, {}, "resume") is None
    assert value_of("eval/loss", {"eval/loss": 0.5}, "resume") == 0.5
    with pytest.raises(ArcftError, match=r"^optimized_metric=eval/loss: the run ended before it was known; resume$"):
        value_of("eval/loss", {}, "resume")


@pytest.fixture
def returned() -> list[JobReturn]:
    """What each job of a multirun returns to its sweeper."""
    RETURNED.clear()
    return RETURNED


def multirun(program: Any, *words: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["program.py", "-m", RECORDED, *words])
        patch.setenv("HYDRA_FULL_ERROR", "0")
        try:
            program.main()
        except SystemExit as end:
            return end.code if isinstance(end.code, int) else 1
    return 0


def test_train_returns_it_to_the_sweeper(returned: list[JobReturn], tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    metric = "optimized_metric=eval/loss,eval/correct_pixels,train/loss"
    assert multirun(train, metric, *QUICK, f"hydra.sweep.dir='{sweep}'") == 0
    first, second, third = returned
    stored = json.loads((sweep / "1" / "metrics.json").read_text(encoding="utf-8"))
    assert first.return_value == history(sweep / "0")[-1]["eval_loss"] == stored["eval_loss"]
    assert second.return_value == stored["metrics"]["correct_pixels"]
    assert third.return_value == stored["loss"]
    log = (sweep / "0" / "train.log").read_text(encoding="utf-8")
    assert f"checkpoints in {sweep / '0'} (checkpoint-6" in log


def test_without_it_nothing_is_returned(returned: list[JobReturn], tmp_path: Path) -> None:
    assert multirun(train, *QUICK, f"hydra.sweep.dir='{tmp_path}'") == 0
    assert [job.return_value for job in returned] == [None]


def test_a_sweeper_sees_a_failed_job_as_failed(
    returned: list[JobReturn], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["optimized_metric=eval/loss", "lora.r=0,2", *QUICK, f"hydra.sweep.dir='{tmp_path}'"]
    assert multirun(train, *words) == 1
    # After a line of Hydra's own.
    assert capsys.readouterr().err.splitlines()[-1] == (
        "error: job 0: lora.r=0: the rank must be at least 1; to train without an adapter use lora=none"
    )
    failed, done = returned
    with pytest.raises(ArcftError, match=r"job 0: lora\.r=0"):
        failed.return_value  # noqa: B018
    assert isinstance(done.return_value, float)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["optimized_metric=eval/vote2"], "optimized_metric=eval/vote2: no such metric; did you mean eval/vote_2? "),
        (
            ["optimized_metric=eval/loss", "data.held_out=0", "training.generation_tasks=0"],
            "optimized_metric=eval/loss: no task is held out; add data.held_out=8, or use train/loss",
        ),
        (
            ["optimized_metric=eval/accuracy", "training.generation_tasks=0"],
            "optimized_metric=eval/accuracy needs predictions, and training.generation_tasks=0; raise it",
        ),
    ],
)
def test_train_refuses_it_before_anything_is_written(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_train(tmp_path / "run", *QUICK, *words) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run" / "run.yaml").exists()


def test_training_that_ran_out_of_time_has_no_value(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["optimized_metric=eval/loss", "training.max_time=0.001s"]
    assert run_train(tmp_path / "run", *QUICK, *words) == 1
    assert capsys.readouterr().err == (
        "error: optimized_metric=eval/loss: the run ended before it was known; "
        f"resume with: python train.py resume={tmp_path / 'run'}\n"
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("run"))


def test_evaluate_returns_it_to_the_sweeper(run: Path, returned: list[JobReturn], tmp_path: Path) -> None:
    words = [f"checkpoint='{run}'", "optimized_metric=eval/correct_pixels", "inference.max_new_tokens=8"]
    few = ["inference.predictions_per_test=2", "tracking=none", f"hydra.sweep.dir='{tmp_path}'"]
    assert multirun(evaluate, *words, *few) == 0
    assert [job.return_value for job in returned] == [run_json(tmp_path / "0")["metrics"]["correct_pixels"]]


def test_evaluate_with_ttft_returns_it(run: Path, returned: list[JobReturn], tmp_path: Path) -> None:
    words = [f"checkpoint='{run}'", "ttft=per_task", "ttft.max_steps=1", "optimized_metric=eval/unanswered"]
    few = ["inference.predictions_per_test=2", "inference.max_new_tokens=8", "tracking=none", "data.limit=1"]
    assert multirun(evaluate, *words, *few, f"hydra.sweep.dir='{tmp_path}'") == 0
    assert [job.return_value for job in returned] == [run_json(tmp_path / "0")["metrics"]["unanswered"]]


def test_evaluate_refuses_what_has_no_single_value(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"eval/loss: no such metric; .*there are eval/accuracy"):
        evaluated(tmp_path / "a", f"checkpoint={run}", "optimized_metric=eval/loss")
    with pytest.raises(ConfigError, match="has a value for each checkpoint; name one"):
        evaluated(tmp_path / "a", f"checkpoint='{run}/checkpoint-*'", "optimized_metric=eval/accuracy")
    assert not (tmp_path / "a").exists()


def test_evaluate_refuses_it_where_no_answer_is_known(run: Path, tmp_path: Path) -> None:
    challenges = tmp_path / "challenges.json"
    task = {"train": [{"input": [[1]], "output": [[2]]}] * 2, "test": [{"input": [[1]]}]}
    challenges.write_text(json.dumps({"00000001": task}), encoding="utf-8")
    words = ["data=kaggle", f"data.path={challenges}", "optimized_metric=eval/accuracy"]
    with pytest.raises(ConfigError, match="optimized_metric=eval/accuracy: no answer to these tasks is known"):
        evaluated(tmp_path / "a", f"checkpoint={run}", *words)
    assert not (tmp_path / "a").exists()
