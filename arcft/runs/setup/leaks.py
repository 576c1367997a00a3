"""Find scored tasks that a model was trained on: by id, and by content under another id."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from arcft.checkpoints import MANIFEST_FILE, CheckpointError
from arcft.config.lora import LoraConfig
from arcft.config.model import ModelConfig
from arcft.console import note
from arcft.models.bundled import BUNDLED, pretrained_on
from arcft.protocols import Item, Kind, Problem, ProblemError
from arcft.runs.setup.checkpoint_config import TrainedRun, open_checkpoint
from arcft.runs.setup.kinds import kind_of
from arcft.runs.setup.tasks import items_named


def trained_on(kind: Kind, of: TrainedRun | ModelConfig, tasks: Sequence[Problem]) -> list[str]:
    """Ids of those of `tasks` whose answers, or generated pairs of whose type, were trained on by one of the runs, by a
    run that it started from, or by their base model.

    Tasks of a run that only learned from demonstrations don't count. The training data of third-party models is
    unknown. If earlier tasks or runs can't be read any more, a note says what was not compared.
    """
    seen: set[str] = set()
    for learned in _lineage(kind, of):
        seen.update(learned.ids)
        shared = kind.overlap(learned.items, tasks)
        seen.update(task_id for _, task_id in shared.same + shared.types)
    return [task.id for task in tasks if task.id in seen]


def warn_trained_on(
    kind: Kind, of: TrainedRun | ModelConfig, tasks: Sequence[Problem], what: str = "tasks"
) -> list[str]:
    """`trained_on`, with a warning on the console, because a score on such tasks means nothing."""
    seen = trained_on(kind, of, tasks)
    if seen:
        note(
            f"{len(seen)} of {len(tasks)} {what} were trained on ({', '.join(seen[:5])}"
            f"{', ...' if len(seen) > 5 else ''}): their scores only show how well they were memorised"
        )
    return seen


@dataclasses.dataclass(frozen=True)
class _Learned:
    """The training data of one run in a model's history."""

    ids: list[str]
    items: Sequence[Item]


def _lineage(kind: Kind, of: TrainedRun | ModelConfig) -> Iterator[_Learned]:
    """The training data of a run, of the run that it started from, and so on, down to the base model."""
    visited = set()
    while True:
        if isinstance(of, TrainedRun):
            if of.checkpoint.path in visited:
                return
            visited.add(of.checkpoint.path)
            if not of.tasks.get("adapted_to") and kind_of(of.config.data).name == kind.name:
                yield _of_run(of)
            lora = of.config.lora
            if not isinstance(lora, LoraConfig) or lora.start is None:
                of = of.config.model
                continue
            earlier = Path(lora.start)
        else:
            if of.init != "pretrained" or of.path is None:
                return
            if of.path.startswith(BUNDLED):
                yield _pretraining(kind, of.path)
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
    except ProblemError as error:
        note(f"tasks are compared with those trained on by id alone: {error}")
        return _Learned(ids, [])


def _pretraining(kind: Kind, path: str) -> _Learned:
    """For a bundled model, the tasks that it was trained on, and those that its generated pairs are named after."""
    ids = pretrained_on(path)
    return _Learned(ids, kind.bundled_items(ids))
