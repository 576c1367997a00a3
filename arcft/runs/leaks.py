"""Which of the tasks to be scored a model was trained on: by id, and by content under another id."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from arcft.arc.contamination import overlap
from arcft.arc.task import Task, TaskError
from arcft.checkpoints import CheckpointError
from arcft.runs.choose import items_named
from arcft.runs.trained import TrainedRun, open_checkpoint

console = Console()


def trained_on(run: TrainedRun, tasks: Sequence[Task]) -> list[str]:
    """Ids of those of `tasks` that `run`, or a run that it was started from, has seen with their answers, or practised
    on pairs generated for their type.

    Tasks of a run that learned from demonstrations alone don't count. Where the earlier tasks or runs are no longer to
    be had, a note says what could not be compared.
    """
    seen: set[str] = set()
    for earlier in _lineage(run):
        if earlier.tasks.get("adapted_to"):
            continue
        ids = list(earlier.tasks.get("train", ()))
        seen.update(ids)
        try:
            learned = items_named(earlier, ids)
        except TaskError as error:
            console.print(f"[yellow]note:[/] tasks are compared with those trained on by id alone: {error}")
            continue
        shared = overlap(learned, tasks)
        seen.update(task_id for _, task_id in shared.tasks_up_to_symmetry + shared.types)
    return [task.id for task in tasks if task.id in seen]


def _lineage(run: TrainedRun) -> Iterator[TrainedRun]:
    """The run, the one that it was started from, and so on."""
    visited = set()
    while run.checkpoint.path not in visited:
        visited.add(run.checkpoint.path)
        yield run
        start = run.config.lora.start
        if start is None:
            return
        try:
            run = open_checkpoint(Path(start))
        except CheckpointError as error:
            console.print(f"[yellow]note:[/] what the model was trained on before is not known: {error}")
            return
