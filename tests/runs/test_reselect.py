"""Selecting while predicting and again from the file: the same answers, without a model; and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from arcft.checkpoints import CheckpointError
from arcft.config.schema import ConfigError
from arcft.runs.training.callbacks import GenerationMetrics
from arcft.runs.training.model import build_model
from arcft.runs.training.preparation import prepare
from arcft.scoring.predictions import Prediction
from arcft.scoring.selection import Score
from arcft.training.stopping import StopRequest
from tests.config.test_config import evaluate_config, train_config
from tests.support.arc import ARC, selected
from tests.support.arc import scored as scored_as
from tests.support.evaluate_command import (
    KNOWN_FILES,
    SMALL_EVALUATION_TASKS,
    arc_tasks,
    evaluated,
    evaluation_tasks,
    predicted,
    run_json,
    trained,
    write_challenges,
)
from tests.support.train_command import TASK_IDS, ids

MODEL = ["model=tiny", "inference.predictions_per_test=4", "inference.max_new_tokens=null", *evaluation_tasks()]
SCORE = ["selection=score", "selection.num_augmentations=3"]


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled weights, whose answers are grids and differ, on five tests."""
    return evaluated(tmp_path_factory.mktemp("scored"), *MODEL, *SCORE)


def submission(folder: Path) -> str:
    return (folder / "submission.json").read_text(encoding="utf-8")


def blank(tests: list[object]) -> list[dict[str, list[list[int]]]]:
    return [{"attempt_1": [[0]], "attempt_2": [[0]]} for _ in tests]


def by_test(predictions: list[Prediction]) -> dict[tuple[str, int], list[Prediction]]:
    groups: dict[tuple[str, int], list[Prediction]] = {}
    for prediction in predictions:
        groups.setdefault((prediction.task_id, prediction.test_index), []).append(prediction)
    return groups


def check_scores(folder: Path, views: int) -> None:
    """Every grid is scored and explained once, and what is handed in are the two of the best scores."""
    handed_in = json.loads(submission(folder))
    several = 0
    for (task_id, index), group in by_test(predicted(folder)).items():
        grids = {one.answer.key: one.answer for one in group if one.answer is not None}
        explained = [one for one in group if one.selection is not None]
        assert [one.answer.key for one in explained if one.answer is not None] == list(grids)
        assert all((one.scores is not None) == (one.selection is not None) for one in group)
        if len(grids) > 1:
            several += 1
            assert {len(one.scores or ()) for one in explained} == {views}
        ranked = sorted(explained, key=lambda one: one.selection["rank"] if one.selection else 0)
        means = [sum(one.scores or ()) / len(one.scores or "-") for one in ranked]
        assert means == sorted(means, reverse=True)
        assert [one.selection["score"] for one in ranked if one.selection] == pytest.approx(means)
        answers = list(handed_in[task_id][index].values())
        for one, answer in zip(ranked, answers, strict=False):
            assert one.answer is not None
            assert answer == one.answer.to_json()
    assert several >= 2


def test_grids_are_scored_while_the_model_is_there(scored: Path) -> None:
    check_scores(scored, views=3)
    assert run_json(scored)["run"]["selection"] == {"name": "score", "num_augmentations": 3}
    assert "; scores: " in (scored / "report.html").read_text(encoding="utf-8")


def test_selecting_again_from_the_file_gives_the_same(scored: Path, tmp_path: Path) -> None:
    again = evaluated(tmp_path / "again", f"predictions={scored}/predictions.jsonl", *SCORE)
    assert {path.name for path in again.iterdir()} == KNOWN_FILES | {"run.yaml", ".lock"}
    assert submission(again) == submission(scored)
    assert (again / "predictions.jsonl").read_bytes() == (scored / "predictions.jsonl").read_bytes()
    for part in ("metrics", "tasks", "by_number"):
        assert run_json(again)[part] == run_json(scored)[part]


@pytest.mark.parametrize("selection", ["vote", "verify"])
def test_another_selection_of_the_same_predictions(selection: str, scored: Path, tmp_path: Path) -> None:
    folder = evaluated(
        tmp_path / "evaluation",
        f"predictions={scored}/predictions.jsonl",
        f"selection={selection}",
        *evaluation_tasks(),
    )
    written = predicted(folder)
    assert {one.selection["by"] for one in written if one.selection} == {selection}
    # What was predicted and scored is kept, so that there is a way back.
    before = predicted(scored)
    assert [(one.text, one.scores, one.seconds) for one in written] == [
        (one.text, one.scores, one.seconds) for one in before
    ]
    back = evaluated(tmp_path / "back", f"predictions={folder}/predictions.jsonl", *SCORE)
    assert (back / "predictions.jsonl").read_bytes() == (scored / "predictions.jsonl").read_bytes()
    report = (folder / "report.html").read_text(encoding="utf-8")
    assert ("breaks what" in report) == (selection == "verify")


def test_scoring_does_not_change_what_is_predicted(scored: Path, tmp_path: Path) -> None:
    voted = evaluated(tmp_path / "again", f"predictions={scored}/predictions.jsonl", *evaluation_tasks())
    alone = evaluated(tmp_path / "voted", *MODEL)
    assert submission(alone) == submission(voted)
    assert [one.text for one in predicted(alone)] == [one.text for one in predicted(scored)]
    assert all(one.scores is None for one in predicted(alone))


def test_adapted_models_score_their_own_grids(tmp_path: Path) -> None:
    ttft = ["ttft=per_task", "ttft.max_steps=1", "ttft.predict_before=1"]
    folder = evaluated(tmp_path / "adapted", *MODEL, *SCORE, *ttft)
    check_scores(folder, views=3)
    again = evaluated(tmp_path / "again", f"predictions={folder}/predictions.jsonl", *SCORE)
    assert submission(again) == submission(folder)
    assert (again / "predictions.jsonl").read_bytes() == (folder / "predictions.jsonl").read_bytes()


def test_scores_that_are_not_there_are_asked_for(scored: Path, tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    lines = map(json.loads, (scored / "predictions.jsonl").read_text(encoding="utf-8").splitlines())
    path.write_text("".join(json.dumps(line | {"scores": None}) + "\n" for line in lines), encoding="utf-8")
    folder = tmp_path / "evaluation"
    with pytest.raises(ConfigError, match=r"^selection=score: no prediction of predictions.jsonl has scores; predict"):
        evaluated(folder, f"predictions={path}", *SCORE, *evaluation_tasks())
    with pytest.raises(
        ConfigError, match=r"^selection.num_augmentations=16: the predictions of predictions.jsonl were scored under"
    ):
        evaluated(
            folder, f"predictions={scored}/predictions.jsonl", "selection=score", "selection.num_augmentations=16",
            *evaluation_tasks(),
        )  # fmt: skip
    assert not folder.exists()


def test_how_to_predict_has_no_effect_without_a_model(scored: Path, tmp_path: Path) -> None:
    folder = tmp_path / "evaluation"
    with pytest.raises(ConfigError) as caught:
        evaluated(folder, f"predictions={scored}/predictions.jsonl", "inference=search", "inference.max_new_tokens=9")
    assert caught.value.problems == [
        f"{key}= has no effect with predictions=, which are made already; drop it"
        for key in ("inference", "inference.max_new_tokens")
    ]
    assert not folder.exists()


def test_without_data_the_tasks_are_those_of_the_evaluation(tmp_path: Path) -> None:
    run = trained(tmp_path / "run")
    challenges = tmp_path / "challenges.json"
    write_challenges(challenges, arc_tasks("evaluation", *SMALL_EVALUATION_TASKS))
    asked = {
        "held_out": [f"checkpoint={run}"],
        "kaggle": [f"checkpoint={run}", "data=kaggle", f"data.path={challenges}", "data.limit=3"],
        "base": ["model=tiny", "data.limit=2", "inference.max_new_tokens=2"],
    }
    files = {name: evaluated(tmp_path / name, *words) for name, words in asked.items()}
    evaluated(tmp_path / "sweep", f"checkpoint={run}/checkpoint-*")
    files |= {f"sweep {name}": tmp_path / "sweep" / name for name in ("checkpoint-4", "checkpoint-6")}
    # What was selected again has no tasks but those of what it was selected from.
    files["again"] = evaluated(tmp_path / "again", f"predictions={files['held_out']}/predictions.jsonl")
    for name, folder in files.items():
        again = evaluated(tmp_path / "selected" / name, f"predictions={folder}/predictions.jsonl")
        assert submission(again) == submission(folder), name
        assert run_json(again)["metrics"] == run_json(folder)["metrics"]
    one = SMALL_EVALUATION_TASKS[0]
    some = evaluated(tmp_path / "some", f"predictions={files['kaggle']}/predictions.jsonl", ids(one))
    assert list(run_json(some)["tasks"]) == []
    assert run_json(some)["evaluated"] == [one]
    whole, before = json.loads(submission(some)), json.loads(submission(files["kaggle"]))
    assert whole == {task_id: before[task_id] if task_id == one else blank(tests) for task_id, tests in before.items()}


def test_tasks_that_were_trained_on_are_told_again(tmp_path: Path) -> None:
    run = trained(tmp_path / "run")
    first = evaluated(tmp_path / "first", f"checkpoint={run}", "data=arc1", ids(*TASK_IDS[:3]))
    seen = run_json(first)["run"]["trained_on"]
    assert seen > 0
    again = evaluated(tmp_path / "again", f"predictions={first}/predictions.jsonl")
    assert run_json(again)["run"]["trained_on"] == seen
    assert "trained on</b>" in (again / "report.html").read_text(encoding="utf-8")


def test_predictions_of_no_finished_evaluation_need_their_tasks(scored: Path, tmp_path: Path) -> None:
    shutil.copyfile(scored / "predictions.jsonl", tmp_path / "predictions.jsonl")
    folder = tmp_path / "evaluation"
    with pytest.raises(ConfigError, match=r"^predictions= needs the tasks they answer: add data=arc1, data=kaggle"):
        evaluated(folder, f"predictions={tmp_path}/predictions.jsonl")
    shutil.copyfile(scored / "run.yaml", tmp_path / "run.yaml")
    with pytest.raises(CheckpointError, match=r"metrics.json: can't be read .* resume it with resume=, or name the"):
        evaluated(folder, f"predictions={tmp_path}/predictions.jsonl")
    assert not folder.exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["selection.num_augmentations=4"],
            "selection.num_augmentations belongs to selection=score; drop it, or use that",
        ),
        (
            ["selection=verify", "selection.num_augmentations=4"],
            "selection.num_augmentations belongs to selection=score; drop it, or use that",
        ),
        (
            ["selection=score", "selection.num_augmentations=null"],
            "selection.num_augmentations: must not be null; expected a whole number",
        ),
        (["selection=score", "selection.num_augmentations=0"], "selection.num_augmentations=0: at least 1"),
        (["selection=score", "selection.views=4"], "selection.views is now selection.num_augmentations"),
        (["selection.views=4"], "selection.views is now selection.num_augmentations"),
        (["selection.name=best"], "selection.name=best: one of vote, score, verify"),
    ],
)
def test_keys_that_make_no_sense_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        evaluate_config("checkpoint=run", *overrides)
    assert str(caught.value).startswith(message)


def test_generation_metrics_while_training_select_in_the_same_way() -> None:
    config = train_config("model=tiny", *SCORE, "inference.predictions_per_test=3", ids(*TASK_IDS), "data.held_out=2")
    prepared = prepare(config)
    model, _ = build_model(config, torch.device("cpu"))
    metrics = GenerationMetrics(
        prepared.builder, prepared.deal_views, prepared.sets.held_out, config.inference, config.selection, ARC,
        lambda step, words: None, StopRequest(None),
    )  # fmt: skip
    values = metrics(model, 0)
    assert any(one.scores is not None and len(one.scores) == 3 for one in metrics.predictions)
    expected = Score(views=3)
    assert metrics.attempts == selected(metrics.tasks, metrics.predictions, expected)
    assert values == scored_as(metrics.tasks, metrics.predictions, expected).metrics


def test_a_format_has_no_effect_on_predictions_that_were_made_before(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        evaluated(tmp_path / "again", "predictions=x.jsonl", "data=arc1", "encoder=minimal", "prompt=short")
    assert caught.value.problems == [
        "encoder= has no effect without model=; a checkpoint brings its own",
        "prompt= has no effect without model=; a checkpoint brings its own",
    ]
