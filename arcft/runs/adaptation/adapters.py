"""Save the adapters of test-time fine-tuning, each in a run folder like those of train.py."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from arcft import __version__
from arcft.checkpoints import find_checkpoints, write_checkpoint, write_run_yaml
from arcft.config.lora import LoraConfig
from arcft.config.optimizer import AdamWConfig
from arcft.config.run import TrainConfig
from arcft.config.schema import to_dict
from arcft.names import file_name
from arcft.runs.adaptation.base_model import AdaptationBase, learning_rate
from arcft.runs.setup.kinds import kind_of
from arcft.runs.setup.ttft_settings import TtftSettings
from arcft.ttft.units import Unit

ADAPTERS_FOLDER = "adapters"

Write = Callable[[Path], None]
"""Writes adapter_config.json and adapter_model.safetensors into a folder."""


@dataclasses.dataclass(frozen=True)
class AdapterSaver:
    """Saves the adapters of an evaluation for `evaluate.py checkpoint=... adapters='FOLDER/adapters/*'`; adapters of a
    base model (model=) become PEFT's two files alone."""

    settings: TtftSettings
    start: AdaptationBase
    folder: Path
    """The folder of the evaluation."""

    def __call__(self, unit: Unit, steps: int, write: Write) -> str:
        """Save the adapter of `unit` after `steps` steps in place of an earlier one; returns its folder."""
        place = self.folder / ADAPTERS_FOLDER / file_name(unit.name)
        stored = self._run(unit, steps)
        if stored is None:
            return str(_write_plain(place, write))
        ids: dict[str, Any] = {"train": [], "held_out": [], "adapted_to": [task.id for task in unit.problems]}
        about = {"arcft": __version__, "job": "train", "config": to_dict(stored), "tasks": ids}
        earlier = find_checkpoints(place)
        origin = self.start.origin(kind_of(stored.data).fingerprint(unit.problems), stored.training.seed)
        with write_checkpoint(place, steps, origin) as partial:
            write(partial)
            self.start.tokenizer.save_pretrained(partial)
            write_run_yaml(partial, about)
        write_run_yaml(place, about)
        kept = place / f"checkpoint-{steps}"
        for path in earlier:
            if path != kept:
                shutil.rmtree(path)
        return str(kept)

    def _run(self, unit: Unit, steps: int) -> TrainConfig | None:
        """The config of a training run that would give this adapter; None for a base model."""
        run, config, ttft = self.settings.run, self.settings.config, self.settings.ttft
        if run is None or not isinstance(run.config.lora, LoraConfig):
            return None
        data = run.config.data if config.data.is_held_out else config.data
        training = dataclasses.replace(
            run.config.training,
            max_steps=max(steps, 1),
            learning_rate=learning_rate(self.settings),
            per_device_train_batch_size=ttft.batch_size,
            gradient_accumulation_steps=1,
            max_grad_norm=ttft.max_grad_norm,
            seed=ttft.seed,
        )
        ids = [task.id for task in unit.problems]
        start = str(run.checkpoint.path) if ttft.start == "trained" else None
        return dataclasses.replace(
            run.config,
            data=dataclasses.replace(data, view="leave_one_out", held_out=0.0, limit=None, task_ids=ids),
            lora=dataclasses.replace(self.settings.lora, start=start),
            augmentation=config.augmentation,
            optimizer=AdamWConfig(weight_decay=0.0, beta1=0.9, beta2=0.999, eps=1e-8),
            scheduler=ttft.schedule(),
            training=training,
        )


def _write_plain(place: Path, write: Write) -> Path:
    """Write an adapter, whole or not at all."""
    partial = place.with_name(f".{place.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write(partial)
    shutil.rmtree(place, ignore_errors=True)
    partial.rename(place)
    return place
