"""Save the adapters of test-time fine-tuning, each in a run folder like those of train.py."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from arcft import __version__
from arcft.checkpoints import find_checkpoints, write_checkpoint, write_run_yaml
from arcft.config.optimizer import AdamWConfig
from arcft.config.run import EvaluateConfig, TrainConfig
from arcft.config.scheduler.constant import ConstantConfig
from arcft.config.schema import to_dict
from arcft.config.tracking import NoTrackingConfig
from arcft.config.training import TrainingConfig
from arcft.names import file_name
from arcft.runs.adaptation.base_model import AdaptationBase, learning_rate
from arcft.runs.common.config_folder import config_folder
from arcft.runs.setup.checkpoint_config import TrainedRun
from arcft.runs.setup.kinds import kind_of
from arcft.runs.setup.restore import base_of_adapters
from arcft.runs.setup.tasks import default_data
from arcft.runs.setup.ttft_settings import TtftSettings
from arcft.ttft.units import Unit

ADAPTERS_FOLDER = "adapters"

Write = Callable[[Path], None]
"""Writes adapter_config.json and adapter_model.safetensors into a folder."""


@dataclasses.dataclass(frozen=True)
class AdapterSaver:
    """Saves the adapters of an evaluation for `evaluate.py checkpoint=... adapters='FOLDER/adapters/*'`, or with model=
    in place of checkpoint= as the evaluation had it."""

    settings: TtftSettings
    start: AdaptationBase
    folder: Path
    """The folder of the evaluation."""

    def __call__(self, unit: Unit, steps: int, write: Write) -> str:
        """Save the adapter of `unit` after `steps` steps in place of an earlier one; returns its folder."""
        place = self.folder / ADAPTERS_FOLDER / file_name(unit.name)
        stored = self._run(unit, steps)
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

    def _run(self, unit: Unit, steps: int) -> TrainConfig:
        """The config of a training run that would give this adapter."""
        settings, config, ttft = self.settings, self.settings.config, self.settings.ttft
        run = settings.run
        base = _run_of_base_model(config) if run is None else _run_from(run)
        data = base.data if config.data.is_held_out else config.data
        training = dataclasses.replace(
            base.training,
            max_steps=max(steps, 1),
            learning_rate=learning_rate(settings),
            per_device_train_batch_size=ttft.batch_size,
            gradient_accumulation_steps=1,
            max_grad_norm=ttft.max_grad_norm,
            seed=ttft.seed,
        )
        ids = [task.id for task in unit.problems]
        start = str(run.checkpoint.path) if run is not None and ttft.start == "trained" else None
        return dataclasses.replace(
            base,
            data=dataclasses.replace(data, view="leave_one_out", held_out=0.0, limit=None, task_ids=ids),
            lora=dataclasses.replace(settings.lora, start=start),
            augmentation=config.augmentation,
            optimizer=AdamWConfig(weight_decay=0.0, beta1=0.9, beta2=0.999, eps=1e-8),
            scheduler=ttft.schedule(),
            training=training,
        )


def _run_from(run: TrainedRun) -> TrainConfig:
    """The config of a run that starts from `run`."""
    return dataclasses.replace(run.config, model=base_of_adapters(run))


def _run_of_base_model(config: EvaluateConfig) -> TrainConfig:
    """The config of a run that starts from the base model of `config`, with train.py's default options."""
    model = config.model
    assert model is not None  # EvaluateConfig.problems: there is a checkpoint or a model
    options = OmegaConf.load(config_folder() / "training" / "default.yaml")
    resolved: Any = OmegaConf.to_container(
        OmegaConf.create({"model": to_dict(model), "training": options}), resolve=True
    )
    own = {
        "learning_rate": model.recommended.ttft_learning_rate,
        "gradient_checkpointing": False,
        "best_metric": kind_of(config.data).metrics.best[0],
    }
    return TrainConfig(
        model=model,
        lora=config.lora,
        encoder=config.encoder,
        prompt=config.prompt,
        data=default_data() if config.data.is_held_out else config.data,
        augmentation=config.augmentation,
        optimizer=AdamWConfig(weight_decay=0.0, beta1=0.9, beta2=0.999, eps=1e-8),
        scheduler=ConstantConfig(warmup_ratio=0.0, min_lr_ratio=0.0),
        training=TrainingConfig(**(resolved["training"] | own)),
        # inference.max_seq_length may exceed the model's own context, and is no part of an adapter.
        inference=dataclasses.replace(config.inference, max_seq_length=None),
        selection=config.selection,
        tracking=NoTrackingConfig(),
    )
