"""Runs adapted to single tasks, as named by adapters=, and their tasks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from arcft.checkpoints import RUN_FILE, CheckpointError, find_checkpoints
from arcft.config.run import EvaluateConfig, TrainConfig
from arcft.config.schema import to_dict
from arcft.console import note
from arcft.files import data_sha256
from arcft.protocols import Problem
from arcft.runs.setup.checkpoint_config import OWN_FORMAT, TrainedRun, contradictions, matching_folders, open_checkpoint
from arcft.runs.setup.tasks import tasks_named


def adapted_runs(
    pattern: str, start: TrainConfig | EvaluateConfig, name: str, base_model: str | None
) -> dict[str, TrainedRun]:
    """By task id, the run that was adapted to it, among those that match the absolute `pattern`.

    `start` has the model, encoder and prompt that they must have, and `name` says what it is. `base_model` is as in
    `open_checkpoint`. Raises CheckpointError if two runs have the same task, if one does not belong to `start`, or if
    there is none.
    """
    adapted: dict[str, TrainedRun] = {}
    for adapter in _adapters(pattern, start, name, base_model):
        for task_id in adapter.tasks["adapted_to"]:
            if task_id in adapted:
                raise CheckpointError(
                    f"adapters: {adapted[task_id].folder} and {adapter.folder} were both adapted to task "
                    f"{task_id}; narrow the pattern, or evaluate them apart and vote over both with predictions="
                )
            adapted[task_id] = adapter
    return adapted


def tasks_adapted_to(adapted: Mapping[str, TrainedRun]) -> list[Problem]:
    """The tasks that the runs were adapted to, in their order; each data set is read only once."""
    groups: dict[str, tuple[TrainedRun, list[str]]] = {}
    for task_id, run in adapted.items():
        data = dataclasses.replace(run.config.data, task_ids=None)
        groups.setdefault(data_sha256(to_dict(data)), (run, []))[1].append(task_id)
    tasks = {task.id: task for run, ids in groups.values() for task in tasks_named(run, ids)}
    return [tasks[task_id] for task_id in adapted]


def _adapters(pattern: str, start: TrainConfig | EvaluateConfig, name: str, base_model: str | None) -> list[TrainedRun]:
    adapters = []
    for folder in matching_folders("adapters", pattern):
        if not (folder / RUN_FILE).is_file():
            continue
        if not find_checkpoints(folder) and folder not in find_checkpoints(folder.parent):
            note(f"{folder} has no complete checkpoint; skipped")
            continue
        assert start.model is not None  # EvaluateConfig.problems
        adapter = open_checkpoint(folder, base_model, start.model.prune_vocabulary)
        if not adapter.tasks.get("adapted_to"):
            raise CheckpointError(f"adapters: {folder} was not adapted to tasks; make one with data=leave_one_out")
        groups = (*OWN_FORMAT, "model")
        # What a model recommends for other groups is no part of it.
        model = dataclasses.replace(start.model, recommended=adapter.config.model.recommended)
        problems = contradictions(groups, adapter.config, dataclasses.replace(start, model=model), groups)
        if problems:
            raise CheckpointError(f"adapters: {folder} does not belong to {name}: {'; '.join(problems)}")
        adapters.append(adapter)
    if not adapters:
        raise CheckpointError(f"adapters={pattern}: no match is a training run with a checkpoint")
    return adapters
