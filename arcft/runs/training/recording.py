"""What a training run records: its tracker, its run.yaml, and what its checkpoints say about it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from arcft import __version__, ranks
from arcft.checkpoints import Origin, lock_run, remove_leftovers, write_run_yaml
from arcft.config.run import TrainConfig
from arcft.config.schema import ConfigError
from arcft.runs.common.tracking import tracked
from arcft.runs.setup.kinds import kind_of
from arcft.runs.training.preparation import Prepared
from arcft.runs.training.step_plan import StepPlan
from arcft.tracking import NoTracker, Tracker
from arcft.training import collectives
from arcft.training.saving import Saving


def make_saving(
    config: TrainConfig, values: Mapping[str, Any], prepared: Prepared, fingerprint: str, plan: StepPlan
) -> Saving:
    """What checkpoints hold beside the weights; `values` is the config as plain data.

    Raise ConfigError where ranks have different tasks or base models, as on nodes with files of their own.
    """
    saving = Saving(
        tokenizer=prepared.tokenizer,
        run_config={
            "arcft": __version__,
            "job": "train",
            "ranks": plan.started_with,
            "config": values,
            "tasks": prepared.tasks,
        },
        origin=Origin(
            base_model=str(config.model.path),
            base_fingerprint=fingerprint,
            data_fingerprint=kind_of(config.data).fingerprint(
                item for _, items in prepared.sets.train for item in items
            ),
            seed=config.training.seed,
        ),
        save_total_limit=config.training.save_total_limit,
    )
    first, *others = collectives.gathered(saving.origin)
    for number, origin in enumerate(others, 1):
        if origin != first:
            what = f"rank {number} reads different tasks or another base model than rank 0"
            raise ConfigError([f"{what}; give all nodes the same files"])
    return saving


@contextlib.contextmanager
def recorded(config: TrainConfig, values: Mapping[str, Any], folder: Path, saving: Saving) -> Iterator[Tracker]:
    """Hold the lock of the run's folder and yield the run's tracker, both on rank 0 only."""
    if ranks.rank() > 0:
        yield NoTracker()
        return
    with lock_run(folder), tracked(config.tracking, values, folder, job="train") as tracker:
        remove_leftovers(folder)
        write_run_yaml(folder, saving.run_config)
        yield tracker
