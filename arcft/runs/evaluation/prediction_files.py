"""predictions=FILES: predictions made before, and the tasks that they answer."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from arcft.checkpoints import RUN_FILE, CheckpointError, read_run_yaml
from arcft.config.data import DataConfig
from arcft.config.run import EvaluateConfig, TrainConfig
from arcft.config.schema import ConfigError
from arcft.config.selection import ScoreConfig
from arcft.console import note
from arcft.errors import ArcftError
from arcft.protocols import Problem, TestKey
from arcft.reporting.words import count
from arcft.runs.evaluation.given_files import prediction_files, read_answers
from arcft.runs.evaluation.results import METRICS_FILE, SUBMISSION_FILE
from arcft.runs.setup.checkpoint_config import distinct_names, is_pattern, matching_checkpoints
from arcft.runs.setup.kinds import kind_of, read_stored
from arcft.runs.setup.tasks import all_tasks, default_data, filter_tasks, tasks_with_ids
from arcft.scoring.predictions import Prediction, group_by_test

NEEDS_TASKS = "predictions= needs the tasks they answer: add data=arc1, data=kaggle data.path=TASKS.json, ..."


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadedPredictions:
    """Predictions read from files, with the problems that they answer."""

    name: str
    predictions: list[Prediction]
    tasks: Sequence[Problem]
    submitted: Sequence[Problem]
    """All tasks of the set that `tasks` were chosen from."""

    about: dict[str, Any]
    """Where they come from, for metrics.json and the report."""


def given_predictions(config: EvaluateConfig, explicit: Collection[str]) -> LoadedPredictions:
    """Read `config.predictions`, several files as one, and the tasks that `config.data` names: by default those of the
    evaluation that wrote the first file.

    `explicit` are the keys that the user set by hand. Raises ArcftError where a file is broken, where tasks and
    predictions don't belong together, or where predictions lack the scores that the selection needs.
    """
    without_effect = [key for key in explicit if key.partition(".")[0] == "inference"]
    if without_effect:
        raise ConfigError(
            [f"{key}= has no effect with predictions=, which are made already; drop it" for key in without_effect]
        )
    files = prediction_files([config.predictions] if isinstance(config.predictions, str) else config.predictions or [])
    kind = kind_of(config.data)
    predictions = [prediction for file in files for prediction in read_answers(file, kind)]
    about: dict[str, Any] = {"predictions": [str(file) for file in files]}
    if config.data.is_held_out:
        evaluated, submitted = evaluated_tasks(files[0])
        tasks = filter_tasks(evaluated, config.data, None)
        if tasks == evaluated:
            about["trained_on"] = _stored(files[0].parent / METRICS_FILE)["run"].get("trained_on", 0)
    else:
        submitted = all_tasks(config.data)
        tasks = filter_tasks(submitted, config.data, None)
    groups = group_by_test(tasks, predictions)  # raises where they don't belong together
    name = files[0].name if len(files) == 1 else f"{len(files)} files"
    if isinstance(config.selection, ScoreConfig):
        check_scores(groups, config.selection, explicit, name, kind.card.noun)
    return LoadedPredictions(name=name, predictions=predictions, tasks=tasks, submitted=submitted, about=about)


def evaluated_tasks(file: Path) -> tuple[list[Problem], list[Problem]]:
    """The tasks of the finished evaluation that wrote `file`, and those of its submission, in its order, from their own
    source.

    Raises ConfigError where no evaluation wrote the file, TaskError or CheckpointError where its data is gone.
    """
    data = _data_of(file)
    # Submissions of version 0.1.0 have the evaluated tasks alone.
    evaluated = _stored(file.parent / METRICS_FILE).get("evaluated")
    ids = list(_stored(file.parent / SUBMISSION_FILE))
    tasks = {task.id: task for task in tasks_with_ids(data, ids)}
    return [tasks[task_id] for task_id in evaluated or ids], [tasks[task_id] for task_id in ids]


def _data_of(file: Path) -> DataConfig:
    # In a checkpoint sweep, each checkpoint has a sub-folder of the evaluation's folder.
    folder = next((place for place in file.parents[:2] if (place / RUN_FILE).is_file()), None)
    stored = read_run_yaml(folder) if folder is not None else {}
    if folder is None or stored.get("job") != "evaluate":
        raise ConfigError([NEEDS_TASKS])
    config = read_stored(EvaluateConfig, stored.get("config", {}), folder / RUN_FILE)
    if not config.data.is_held_out:
        return config.data
    if config.predictions is not None:
        given = [config.predictions] if isinstance(config.predictions, str) else config.predictions
        return _data_of(prediction_files(given)[0])
    if config.checkpoint is None:
        return default_data()
    if config.adapters is not None:
        raise ConfigError([f"{folder}: each adapter has answered its own tasks; {NEEDS_TASKS}"])
    checkpoint = Path(config.checkpoint)
    if is_pattern(config.checkpoint):
        paths = matching_checkpoints(config.checkpoint)
        checkpoint = dict(zip(distinct_names(paths), paths, strict=True)).get(file.parent.name, checkpoint)
    try:
        return read_stored(TrainConfig, read_run_yaml(checkpoint).get("config", {}), checkpoint / RUN_FILE).data
    except ArcftError as error:
        raise CheckpointError(f"{error}. {folder} took its tasks from there; name them with data=...") from error


def _stored(path: Path) -> dict[str, Any]:
    """A file of a finished evaluation."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(
            f"{path}: can't be read ({reason}), so the evaluation is not finished; resume it with resume=, or name "
            "the tasks with data=..."
        ) from error


def check_scores(
    groups: Mapping[TestKey, Sequence[Prediction]],
    selection: ScoreConfig,
    explicit: Collection[str],
    name: str,
    noun: str,
) -> None:
    """Raise ConfigError where selection=score has no scores, or fewer than the keys in `explicit` ask for.

    `groups` are the predictions of each test, `name` is where they come from, `noun` is what an answer is called.
    Prints how many tests have answers without scores, where others have some.
    """
    open_groups = [group for group in groups.values() if _has_choice(group)]
    scored = [[one for one in group if one.scores is not None] for group in open_groups]
    if open_groups and not any(scored):
        raise ConfigError(
            [
                f"selection=score: no prediction of {name} has scores; predict with checkpoint=RUN "
                "selection=score, which keeps them, or use selection=vote or selection=verify"
            ]
        )
    most = max((len(one.scores) for group in scored for one in group if one.scores is not None), default=0)
    if scored and "selection.num_augmentations" in explicit and selection.num_augmentations > most:
        raise ConfigError(
            [
                f"selection.num_augmentations={selection.num_augmentations}: the predictions of {name} were scored "
                f"under at most {count(most, 'augmentation')}; ask for fewer, or predict again with checkpoint=RUN"
            ]
        )
    partly = sum(_without_scores(group) > 0 for group in open_groups)
    if partly:
        note(
            f"in {partly} of {count(len(groups), 'test')} some {noun}s have no scores: they come after those that have"
        )


def _has_choice(group: Sequence[Prediction]) -> bool:
    return len({one.answer.key for one in group if one.answer is not None}) > 1


def _without_scores(group: Sequence[Prediction]) -> int:
    """The number of distinct answers that no prediction has scores for."""
    answers = {one.answer.key for one in group if one.answer is not None}
    return len(answers - {one.answer.key for one in group if one.answer is not None and one.scores is not None})
