"""`arcft study` as a user types it."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from arcft.checkpoints import write_run_yaml
from arcft.cli.study import with_leading_paths
from arcft.studies import chart
from tests.cli.test_program import called
from tests.runs.sweeps.test_sweeps import OLD, write_begun, write_sweep
from tests.support.study_runs import simulate, write_train_run
from tests.support.train_command import QUICK, finish, start_train

FILES = {"study.md", "study.csv", "study.json", "study.png"}


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three ranks with three seeds, of which one run has not begun and one is not finished."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.setenv("COLUMNS", "100")
    folder = write_sweep(tmp_path / "multirun" / "train" / "stamp", ["lora.r=16,64,256", "training.seed=0,1,2"])
    scores = simulate(np.random.default_rng(0), studies=1, settings=3, seeds=3, tasks=100, noise=0.01)[0]
    for number in range(7):
        index, seed = divmod(number, 3)
        changes = {"lora.r": (16, 64, 256)[index], "training.seed": seed}
        write_train_run(folder / str(number), changes, scores[index, seed])
    write_begun(folder / "7")
    return folder


def stored(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "study.json").read_text(encoding="utf-8"))
    return content


def test_a_sweep(sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert called(monkeypatch, "study", "multirun/train/stamp") == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert lines[0].strip() == "vote_2 by lora.r"
    assert "3 settings, 7 runs, 1 to 3 seeds each, 100 tasks" in lines
    assert "note: Some settings have one seed: the noise of runs is taken from the others." in lines
    assert "warning: 2 runs missing or unfinished:" in lines
    assert "  lora.r=256 training.seed=1: unfinished (step 2 of 6)" in lines
    assert f"    arcft train resume={sweep / '7'}" in lines
    assert "  lora.r=256 training.seed=2: not started (folder stamp/8)" in lines
    assert f"    arcft train lora.r=256 training.seed=2 hydra.run.dir={sweep / '8'}" in lines
    assert f"table, figures and chart: {sweep / 'study.md'}" in lines
    assert {path.name for path in sweep.iterdir() if path.is_file()} == FILES | {"multirun.yaml"}
    rows = list(csv.DictReader((sweep / "study.csv").read_text(encoding="utf-8").splitlines()))
    assert [(row["lora.r"], row["seeds"]) for row in rows] == [("16", "3"), ("64", "3"), ("256", "1")]
    content = stored(sweep)
    assert (content["by"], content["over"], content["baseline"]) == (["lora.r"], ["training.seed"], "lora.r=16")
    assert [one["state"] for one in content["missing"]] == ["unfinished", "not started"]
    with Image.open(sweep / "study.png") as picture:
        assert picture.format == "PNG"
    text = (sweep / "study.md").read_text(encoding="utf-8")
    assert "| lora.r | seeds | vote_2 | difference | p |" in text
    assert "![vote_2 by lora.r](study.png)" in text


def test_every_option(sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["runs=['multirun/train/*']", "by=lora.r", "over=training.seed", "metric=pass_n", "baseline=64", "out=here"]
    assert called(monkeypatch, "study", *words) == 0
    content = stored(tmp_path / "here")
    assert {path.name for path in (tmp_path / "here").iterdir()} == FILES
    assert (content["metric"], content["baseline"]) == ("pass_n", "lora.r=64")
    assert not (sweep / "study.md").exists()


def test_several_folders_have_a_study_of_their_own(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert called(monkeypatch, "study", str(sweep / "0"), str(sweep / "3"), "metric=eval_loss") == 0
    (folder,) = (tmp_path / "outputs" / "study").iterdir()
    assert [one["label"] for one in stored(folder)["settings"]] == ["lora.r=16", "lora.r=64"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "runs is not set: name folders, e.g. arcft study multirun/train/STAMP"),
        (["runs="], "runs= is empty (an unset shell variable?)"),
        (["nothing"], "runs=nothing: there is no such folder"),
        (["multirun/train/stamp", "by=lora.rank"], "by=lora.rank: no run has this key; did you mean lora.r"),
        (["multirun/train/stamp", "by=lora.r", "over=lora.r"], "by= and over= both name lora.r"),
        (["multirun/train/stamp", "baseline=17"], "baseline=17: names no setting; the settings are: lora.r=16;"),
        (["multirun/train/stamp", "metric=vote_3"], "metric=vote_3: there is no such metric; all runs have accuracy"),
        (["multirun/train/stamp", "tasks=some"], "tasks=some"),
        (["multirun/train/stamp", "metrics=vote_2"], "metrics: there is no such key; did you mean metric?"),
        (["multirun/train/stamp", "runs=[x]"], "multirun/train/stamp and runs=[x] both name runs; give all of them as"),
        (["by=lora.r", "multirun/train/stamp"], "paths come first: arcft study multirun/train/stamp ..."),
        (["multirun/train/stamp", "out=multirun/train/stamp/multirun.yaml"], "multirun.yaml is a file; name a folder"),
        (["multirun/train/stamp", "out=multirun/train/stamp/multirun.yaml/x"], "multirun.yaml is a file; name a folde"),
        (["multirun/train/stamp/7"], "none of 1 run is finished, so there is nothing to compare yet"),
    ],
)
def test_what_is_refused_writes_nothing(
    words: list[str],
    message: str,
    sweep: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = {path for path in tmp_path.rglob("*") if path.name != ".lock"}
    assert called(monkeypatch, "study", *words) == 1
    assert message in capsys.readouterr().err
    assert {path for path in tmp_path.rglob("*") if path.name != ".lock"} == before


def test_runs_of_other_tasks_are_compared_only_when_asked(
    sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_train_run(sweep / "3", {"lora.r": 64, "training.seed": 0}, [1, 0])
    assert called(monkeypatch, "study", "multirun/train/stamp") == 1
    assert "compare the 2 that all have answered with tasks=shared" in capsys.readouterr().err
    assert called(monkeypatch, "study", "multirun/train/stamp", "tasks=shared") == 0
    assert stored(sweep)["tasks"] == 2


def test_training_runs_and_other_evaluations_are_not_compared(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(OLD / "evaluate", tmp_path / "evaluated")
    assert called(monkeypatch, "study", str(sweep), "evaluated") == 1
    assert "but none of the evaluations is of one of the training runs; name only" in capsys.readouterr().err


def test_an_evaluation_that_has_begun_is_not_missing_twice(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = yaml.safe_load((OLD / "evaluate" / "run.yaml").read_text(encoding="utf-8"))
    for number in (0, 1):
        folder = tmp_path / "evaluated" / str(number)
        shutil.copytree(OLD / "evaluate", folder)
        content["config"]["checkpoint"] = str(sweep / str(number) / "checkpoint-*" if number else sweep / str(number))
        write_run_yaml(folder, content)
        (folder / "metrics.json").unlink()
    results = json.loads((OLD / "evaluate" / "metrics.json").read_text(encoding="utf-8"))
    results["run"]["checkpoint"] = str(sweep / "2" / "checkpoint-4")
    shutil.copytree(OLD / "evaluate", tmp_path / "evaluated" / "2")
    (tmp_path / "evaluated" / "2" / "metrics.json").write_text(json.dumps(results), encoding="utf-8")
    words = [str(sweep / str(number)) for number in range(4)]
    assert called(monkeypatch, "study", *words, "evaluated", "out=here") == 0
    listed = [(Path(one["name"]).name, one["state"]) for one in stored(tmp_path / "here")["missing"]]
    assert listed == [("0", "unfinished"), ("1", "unfinished"), ("lora.r=64 training.seed=0", "not evaluated")]


def test_checkpoints_of_a_run_by_their_own_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(OLD / "train", tmp_path / "trained")
    text = (OLD / "train" / "history.jsonl").read_text(encoding="utf-8")
    (tmp_path / "trained" / "history.jsonl").write_text('{"step": 2, "eval_loss": 0.5}\n' + text, encoding="utf-8")
    for step in (2, 4):
        folder = tmp_path / "evaluated" / f"step{step}"
        shutil.copytree(OLD / "evaluate", folder)
        content = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        content["run"] |= {"checkpoint": str(tmp_path / "trained" / f"checkpoint-{step}"), "step": step}
        (folder / "metrics.json").write_text(json.dumps(content), encoding="utf-8")
    assert called(monkeypatch, "study", "trained", "evaluated", "metric=eval_loss", "by=step", "out=here") == 0
    settings = stored(tmp_path / "here")["settings"]
    last = json.loads((OLD / "train" / "metrics.json").read_text(encoding="utf-8"))["eval_loss"]
    assert [one["value"]["value"] for one in settings] == [0.5, pytest.approx(last)]


def test_a_chart_that_can_not_be_made_leaves_no_old_one(
    sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert called(monkeypatch, "study", str(sweep)) == 0
    monkeypatch.setattr(chart, "study_png", lambda study: 1 / 0)
    assert called(monkeypatch, "study", str(sweep)) == 0
    out = capsys.readouterr().out
    assert (
        "note: the chart could not be made (ZeroDivisionError: division by zero); the study goes on without it" in out
    )
    assert not (sweep / "study.png").exists()
    assert "study.png" not in (sweep / "study.md").read_text(encoding="utf-8")


def test_the_baseline_is_named_where_another_setting_came_first(
    sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(3):
        (sweep / str(number) / "metrics.json").write_text("", encoding="utf-8")
    assert called(monkeypatch, "study", str(sweep)) == 0
    said = "note: The baseline is lora.r=64, the first setting with a finished run; baseline= names another."
    assert said in capsys.readouterr().out


def test_leading_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lora.r=16").mkdir()
    monkeypatch.chdir(tmp_path)
    assert with_leading_paths(["a/b", "lora.r=16", "by=x"]) == ["runs=['a/b','lora.r=16']", "by=x"]
    assert with_leading_paths(["by=x", "a"]) == ["by=x", "a"]
    assert with_leading_paths(["--help"]) == ["--help"]


@pytest.mark.slow
def test_a_real_sweep_of_three_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "sweep"
    words = ["-m", *QUICK, "lora.r=2,4,8", f"hydra.sweep.dir={folder}"]
    code, out, err = finish(start_train(*words, cwd=tmp_path))
    assert code == 0, out + err
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    assert called(monkeypatch, "study", str(folder), "metric=correct_pixels") == 0
    assert "missing" not in capsys.readouterr().out
    content = stored(folder)
    assert content["by"] == ["lora.r"]
    assert content["tasks"] == 2
    for r, setting in zip((2, 4, 8), content["settings"], strict=True):
        (run,) = setting["runs"]
        own = json.loads((Path(run["folder"]) / "metrics.json").read_text(encoding="utf-8"))
        assert setting["label"] == f"lora.r={r}"
        assert setting["value"]["value"] == pytest.approx(own["metrics"]["correct_pixels"])
        assert setting["metrics"]["eval_loss"]["mean"] == own["eval_loss"]
        assert setting["metrics"]["trainable_parameters"]["mean"] == own["costs"]["trainable_parameters"]
    trainable = [setting["metrics"]["trainable_parameters"]["mean"] for setting in content["settings"]]
    assert trainable[1] - trainable[0] == (trainable[2] - trainable[1]) / 2
