"""Runs and sweeps read from their folders: finished, unfinished, damaged, older; and what is missing."""

from __future__ import annotations

import fcntl
import json
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from arcft.checkpoints import CheckpointError, lock_run, write_run_yaml
from arcft.runs.sweeps.finding import find_runs
from arcft.runs.sweeps.missing import jobs_of, missing_runs, unknown_jobs
from arcft.runs.sweeps.reading import losses_at, read_run
from tests.support.paths import ROOT
from tests.support.study_runs import config, write_train_run

OLD = ROOT / "tests" / "support" / "version_0_1"


def write_sweep(folder: Path, overrides: Sequence[str], params: dict[str, str] | None = None) -> Path:
    """Hydra's record of a multirun of train.py."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "hydra": {
            "sweep": {"dir": str(folder), "subdir": "${hydra.job.num}"},
            "sweeper": {"_target_": "hydra._internal.core_plugins.basic_sweeper.BasicSweeper", "params": params},
            "overrides": {"task": list(overrides)},
            "job": {"name": "train"},
        }
    }
    (folder / "multirun.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return folder


def write_begun(folder: Path) -> Path:
    """A run that has saved nothing yet."""
    folder.mkdir(parents=True)
    write_run_yaml(folder, {"arcft": "0.1.0", "job": "train", "config": config({}), "tasks": {}})
    (folder / "history.jsonl").write_text('{"step": 2, "loss": 1.5}\n{"step": 4, "lo', encoding="utf-8")
    return folder


def test_a_finished_run(tmp_path: Path) -> None:
    (run,) = read_run(write_train_run(tmp_path / "run", {"lora.r": 64}, [1, 0, 0]))
    assert (run.state, run.kind, run.config["lora.r"], run.config["training.seed"]) == ("finished", "arc", 64, 0)
    assert run.metrics["vote_2"] == pytest.approx(1 / 3)
    assert run.metrics["eval_loss"] == 1.1
    assert run.scores is not None
    assert run.scores.of("vote_2").tolist() == [1, 0, 0]
    assert run.costs["peak_bytes"] == 2**30


def test_an_unfinished_run_tells_how_far_it_came(tmp_path: Path) -> None:
    folder = write_begun(tmp_path / "run")
    (run,) = read_run(folder)
    assert (run.state, run.reason) == ("unfinished", "step 2 of 6")
    (folder / "train.log").write_text(
        "[2026-11-27 12:00:00,000][arcft.console][ERROR] - error: the loss of step 3 is nan\n", encoding="utf-8"
    )
    assert read_run(folder)[0].reason == "the loss of step 3 is nan"
    assert read_run(folder)[0].state == "failed"
    with (folder / "train.log").open("a", encoding="utf-8") as log:
        log.write("[2026-11-27 13:00:00,000][arcft.console][INFO] - resuming from checkpoint-2\n")
    assert read_run(folder)[0].state == "unfinished"
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert read_run(folder)[0].state == "running"


@pytest.mark.parametrize(
    "content", ["", '{"metrics": {"vote_2"', "[]", '{"metrics": 1}', '{"metrics": {}, "tasks": []}']
)
def test_a_damaged_metrics_file_is_no_result(content: str, tmp_path: Path) -> None:
    folder = write_train_run(tmp_path / "run", {}, [1])
    (folder / "metrics.json").write_text(content, encoding="utf-8")
    (run,) = read_run(folder)
    assert run.state == "damaged"
    assert run.reason.startswith("metrics.json can't be read: ")


@pytest.mark.parametrize(
    "change",
    [
        {"tasks": {"a": 1}},
        {"tasks": {"a": {"vote_2": "x"}}},
        {"tasks": {"a": {"x": 1}, "b": {}}},
        {"by_test": {"x": 1}},
        {"tasks": {"a": {"x": None}}},
        {"tasks": {"a": {"x": float("nan")}}},
    ],
)
def test_changed_results_make_a_damaged_run(change: dict[str, Any], tmp_path: Path) -> None:
    folder = write_train_run(tmp_path / "run", {}, [1])
    content = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    (folder / "metrics.json").write_text(json.dumps(content | change), encoding="utf-8")
    (run,) = read_run(folder)
    assert (run.state, run.reason) == ("damaged", "metrics.json is not as it was written")


def test_a_damaged_config_makes_a_damaged_run(tmp_path: Path) -> None:
    folder = write_train_run(tmp_path / "run", {}, [1])
    text = (folder / "run.yaml").read_text(encoding="utf-8")
    for damaged in (text[: len(text) // 2], text.replace("r: 2", "r: 3"), "arcft: [", "job: train\nconfig: {}\n"):
        (folder / "run.yaml").write_text(damaged, encoding="utf-8")
        (run,) = read_run(folder)
        assert run.state == "damaged"
        assert "run.yaml" in run.reason


def test_a_damaged_history_costs_no_results(tmp_path: Path) -> None:
    shutil.copytree(OLD / "train", tmp_path / "run")
    (tmp_path / "run" / "history.jsonl").write_text('{"step": 4, "tokens_per_second": 5}\n', encoding="utf-8")
    (run,) = read_run(tmp_path / "run")
    assert (run.state, run.costs) == ("finished", {})


def test_runs_of_an_older_version(tmp_path: Path) -> None:
    shutil.copytree(OLD, tmp_path / "old")
    found = {run.folder.name: run for run in find_runs([str(tmp_path / "old" / "*")]).runs}
    assert found.keys() == {"evaluate", "train", "ttft"}
    assert all(run.state == "finished" for run in found.values())
    train, evaluate = found["train"], found["evaluate"]
    assert train.scores is None
    assert train.config["scheduler.name"] == "linear"
    assert train.costs["tokens"] == 14953
    assert evaluate.scores is not None
    # Of each task there are the predictions of one test.
    assert not evaluate.scores.is_exact
    assert evaluate.scores.by_test["vote_2"] == {"66e6c45b": "0", "00576224": "0"}


def test_an_evaluation_has_the_config_of_the_training(tmp_path: Path) -> None:
    shutil.copytree(OLD, tmp_path / "old")
    path = tmp_path / "old" / "evaluate" / "metrics.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    (before,) = read_run(path.parent)
    assert "lora.r" not in before.config or before.trained_in != tmp_path / "old" / "train"
    # Its training run is found where it lies now, or else in what this version stores with an evaluation.
    content["run"]["checkpoint"] = str(tmp_path / "old" / "train" / "checkpoint-4")
    path.write_text(json.dumps(content), encoding="utf-8")
    (run,) = read_run(path.parent)
    assert run.trained_in == tmp_path / "old" / "train"
    assert (run.config["lora.r"], run.config["data.split"], run.config["step"]) == (2, "evaluation", 4)
    shutil.rmtree(tmp_path / "old" / "train")
    content["trained"] = config({"lora.r": 32})
    path.write_text(json.dumps(content), encoding="utf-8")
    assert read_run(path.parent)[0].config["lora.r"] == 32


def test_the_checkpoints_of_an_evaluation_are_runs(tmp_path: Path) -> None:
    shutil.copytree(OLD / "evaluate", tmp_path / "sweep")
    for step in (2, 4):
        part = tmp_path / "sweep" / f"checkpoint-{step}"
        part.mkdir()
        shutil.copy(OLD / "evaluate" / "metrics.json", part)
    (tmp_path / "sweep" / "metrics.json").unlink()
    assert [run.folder.name for run in read_run(tmp_path / "sweep")] == ["checkpoint-2", "checkpoint-4"]


def test_an_interrupted_evaluation_of_checkpoints_is_unfinished(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    shutil.copytree(OLD / "evaluate", folder)
    content = yaml.safe_load((folder / "run.yaml").read_text(encoding="utf-8"))
    write_run_yaml(folder, content | {"keys": {f"checkpoint-{step}": "x" for step in (2, 4, 10, 6)}})
    for step in (2, 4):
        (folder / f"checkpoint-{step}").mkdir()
        shutil.copy(OLD / "evaluate" / "metrics.json", folder / f"checkpoint-{step}")
    (folder / "metrics.json").unlink()
    *done, rest = read_run(folder)
    assert [run.state for run in done] == ["finished", "finished"]
    assert (rest.state, rest.folder) == ("unfinished", folder)
    assert rest.reason == "2 of 4 checkpoints evaluated, not yet checkpoint-6, checkpoint-10"
    (missing,) = missing_runs(find_runs([str(folder)]), [], [])
    assert missing.command == f"python evaluate.py resume={folder}"


def test_losses_at_a_step(tmp_path: Path) -> None:
    (tmp_path / "history.jsonl").write_text(
        '{"step": 2, "loss": 1.5}\n{"step": 2, "eval_loss": 1.25, "eval_vote_2": 0}\n{"step": 4, "loss": 1}\n'
    )
    assert losses_at(tmp_path, 2) == {"loss": 1.5, "eval_loss": 1.25}
    assert losses_at(tmp_path, 3) == {}


def test_sweeps_runs_and_folders_of_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = write_sweep(tmp_path / "multirun" / "train" / "stamp", ["lora.r=16,64"])
    for number in (0, 1, 10, 2):
        write_train_run(sweep / str(number), {"lora.r": number}, [1])
    one = write_train_run(tmp_path / "outputs" / "train" / "one", {}, [1])
    monkeypatch.chdir(tmp_path)
    assert [run.folder.name for run in find_runs(["multirun/train/stamp"]).runs] == ["0", "1", "2", "10"]
    assert find_runs(["multirun"]).sweeps == [sweep]
    (tmp_path / "outputs" / "train" / "latest").symlink_to(one)
    both = find_runs(["multirun/train/*", "outputs/*", "outputs/train/one"])
    assert [run.folder for run in both.runs] == [*(sweep / str(number) for number in (0, 1, 2, 10)), one]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "runs=nothing: there is no such folder (from "),
        ("nothing*", "nothing*: no folder matches; quote the pattern for the shell"),
        ("empty", "runs=empty: holds no run (run.yaml) and is no sweep; name a folder such as multirun/train/..."),
        ("e*", "runs=e*: holds no run (run.yaml) and is no sweep"),
        ("run/checkpoint-4", "runs=run/checkpoint-4: is a checkpoint; name its run, "),
        ("speed", "runs=speed: holds no run of train or evaluate; name their folders, e.g. multirun/train/..."),
    ],
)
def test_what_is_no_sweep(name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "speed").mkdir()
    write_run_yaml(tmp_path / "speed", {"arcft": "0.1.0", "job": "speed", "config": {}})
    shutil.copytree(OLD / "train", tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError) as error:
        find_runs([name])
    assert message in str(error.value)


def test_a_sweep_names_what_is_missing(tmp_path: Path) -> None:
    overrides = ["++lora.r=16,64", "training.seed=0,1", "++data.task_ids=['a','b']", "encoder=minimal"]
    sweep = write_sweep(tmp_path / "stamp", overrides)
    assert [words[:2] for words in jobs_of(sweep)][1:3] == [
        ["++lora.r=16", "training.seed=1"],
        ["++lora.r=64", "training.seed=0"],
    ]
    write_train_run(sweep / "0", {"lora.r": 16}, [1])
    write_begun(sweep / "2")
    unfinished, *others = missing_runs(find_runs([str(sweep)]), [], [])
    assert (unfinished.name, unfinished.state) == ("lora.r=64 training.seed=0", "unfinished")
    assert unfinished.command == f"python train.py resume={sweep / '2'}"
    assert [one.name for one in others] == ["lora.r=16 training.seed=1", "lora.r=64 training.seed=1"]
    assert others[0].command == (
        "python train.py lora.r=16 training.seed=1 \"data.task_ids=['a','b']\" encoder=minimal "
        f"hydra.run.dir={sweep / '1'}"
    )


@pytest.mark.parametrize("changes", [["encoder=glob(*)"], ["lora.r=shuffle(16,64)"]])
def test_a_sweep_whose_jobs_are_not_known(changes: list[str], tmp_path: Path) -> None:
    """Runs are named by what was typed for each, and a note says that nothing is known to be missing."""
    sweep = write_sweep(tmp_path / "stamp", [*changes, "training.seed=0"])
    for number, name in enumerate(("minimal", "grid")):
        folder = write_begun(sweep / str(number))
        (folder / ".hydra").mkdir()
        (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump([f"++encoder={name}", "training.seed=0"]))
    found = find_runs([str(sweep)])
    assert [one.name for one in missing_runs(found, [], [])] == ["encoder=minimal", "encoder=grid"]
    assert unknown_jobs(found) == [
        f"Which jobs {sweep} has can't be told from its multirun.yaml, so those that have not begun are not listed."
    ]


def test_sweeps_of_other_programs_lack_nothing(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "stamp", ["lora.r=16,64"])
    text = (sweep / "multirun.yaml").read_text(encoding="utf-8")
    (sweep / "multirun.yaml").write_text(text.replace("name: train", "name: export"), encoding="utf-8")
    assert missing_runs(find_runs([str(sweep)]), [], []) == []
    content = yaml.safe_load(text)
    del content["hydra"]["job"]
    (sweep / "multirun.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    found = find_runs([str(sweep)])
    assert missing_runs(found, [], []) == []
    assert unknown_jobs(found) == []


def test_a_preset_that_sweeps_is_completed_by_single_runs(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "stamp", ["hparams_search=lora_rank"], {"lora.r": "16,64"})
    write_train_run(sweep / "0", {"lora.r": 16}, [1])
    (missing,) = missing_runs(find_runs([str(sweep)]), [], [])
    assert missing.name == "lora.r=64"
    assert missing.command.startswith(
        "python train.py lora.r=64 hparams_search=lora_rank hydra.mode=RUN hydra.run.dir="
    )


def test_a_training_run_without_its_evaluation(tmp_path: Path) -> None:
    (run,) = read_run(write_train_run(tmp_path / "16", {}, [1]))
    (tmp_path / "eval" / ".hydra").mkdir(parents=True)
    words = ["checkpoint=/elsewhere", "++data.limit=40", "hydra.run.dir=x"]
    (tmp_path / "eval" / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(words), encoding="utf-8")
    other = read_run(write_train_run(tmp_path / "eval", {}, [1]))[0]
    (missing,) = missing_runs(find_runs([str(tmp_path / "16")]), [run], [other])
    assert missing.state == "not evaluated"
    assert missing.command == f"python evaluate.py checkpoint={tmp_path / '16'} data.limit=40"


def test_looking_at_a_run_does_not_keep_it_from_starting(tmp_path: Path) -> None:
    with (tmp_path / ".lock").open("w") as probe:
        fcntl.flock(probe, fcntl.LOCK_SH)
        threading.Timer(0.06, lambda: fcntl.flock(probe, fcntl.LOCK_UN)).start()
        with lock_run(tmp_path):
            assert "process" in (tmp_path / ".lock").read_text(encoding="utf-8")
