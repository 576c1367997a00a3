"""The commands arcft-train and arcft-evaluate: a checked config, then the run. Loads no model library itself.

So a wrong key is answered at once, --help is quick, and unsloth can be imported before transformers, as it wants.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from arcft.checkpoints import MANIFEST_FILE, RUN_FILE, CheckpointError, last_checkpoint, read_run_yaml
from arcft.cli import hydra_app as edge
from arcft.config.lora import LoraConfig
from arcft.config.run import EvaluateConfig, TrainConfig
from arcft.config.schema import ConfigError, from_dict, to_dict
from arcft.config.stored import from_stored
from arcft.config.ttft import TtftConfig
from arcft.models.backend import import_backend
from arcft.runs.adaptation.run_folder import start_evaluation_folder
from arcft.runs.common.paths import absolute, evaluation_with_absolute_paths, with_absolute_paths
from arcft.runs.setup.checkpoint_config import contradictions, open_checkpoint
from arcft.runs.setup.ttft_settings import refuse_without_effect, resolve_ttft

Config = TypeVar("Config", TrainConfig, EvaluateConfig)

# What may change when a run is gone on with: nothing that decides its outcome, but how much time it has.
RESUMABLE = {
    "train": ("resume", "preview", "training.max_time", "training.num_workers", "tracking.mode"),
    "evaluate": ("resume", "ttft.budget", "ttft.workers", "ttft.num_workers", "tracking.mode"),
}


def train() -> None:
    """The command arcft-train, and train.py."""
    edge.run_from_command_line(_train, "train", TrainConfig)


def evaluate() -> None:
    """The command arcft-evaluate, and evaluate.py."""
    edge.run_from_command_line(_evaluate, "evaluate", EvaluateConfig)


def _train(cfg: DictConfig) -> None:
    values = edge.plain_config(cfg)
    explicit = edge.explicit_keys()
    folder = Path(HydraConfig.get().runtime.output_dir)
    if values["resume"] is not None:
        folder = Path(absolute(str(values["resume"])))
        config = _resumed(TrainConfig, "train", folder, values, explicit)
    else:
        config = with_absolute_paths(from_dict(TrainConfig, values))
        if isinstance(config.lora, LoraConfig) and config.lora.start is not None:
            config = _started(config, config.lora.start, explicit)
    import_backend(config.model)
    from arcft.runs.train import train

    train(config, folder)


def _evaluate(cfg: DictConfig) -> None:
    values = edge.plain_config(cfg)
    explicit = edge.explicit_keys()
    folder = Path(HydraConfig.get().runtime.output_dir)
    if values["resume"] is None:
        config = from_dict(EvaluateConfig, values)
    else:
        folder = Path(absolute(str(values["resume"])))
        config = _resumed(EvaluateConfig, "evaluate", folder, values, explicit)
        explicit = {key: text for key, text in explicit.items() if key.startswith("ttft.")}
    refuse_without_effect(config, list(explicit))
    if not isinstance(config.ttft, TtftConfig):
        if config.model is not None:
            import_backend(config.model)
        from arcft.runs.evaluate import evaluate

        evaluate(config, folder, explicit=list(explicit))
        return
    settings = resolve_ttft(evaluation_with_absolute_paths(config), list(explicit))
    with contextlib.nullcontext() if config.dry_run else start_evaluation_folder(settings, folder):
        from arcft.runs.evaluate import evaluate

        evaluate(settings.config, folder, explicit=list(explicit), settings=settings)


def _stored(config_class: type[Config], job: str, folder: Path, explicit: dict[str, str]) -> Config:
    """The config in the run.yaml of `folder`, which `resume=` goes on with unchanged."""
    others = [key for key in explicit if key not in RESUMABLE[job] and not key.startswith("hydra")]
    if others:
        raise ConfigError(
            [f"{key}={explicit[key]} has no effect with resume=, which keeps its config; drop it" for key in others]
        )
    if (folder / MANIFEST_FILE).is_file():
        raise CheckpointError(f"resume={folder}: is a checkpoint; give its run: resume={folder.parent}")
    if not (folder / RUN_FILE).is_file():
        what = f"holds no {RUN_FILE}, so no run was begun there" if folder.is_dir() else "there is no such folder"
        raise CheckpointError(f"resume={folder}: {what}; give the folder of a run, e.g. outputs/{job}/...")
    stored = read_run_yaml(folder)
    if stored.get("job") != job:
        other = {"train": "evaluate.py", "evaluate": "train.py"}[job]
        raise CheckpointError(f"resume={folder}: holds no {job} run; if it is the other kind, use {other}")
    if not isinstance(stored.get("config"), dict):
        raise CheckpointError(f"{folder / RUN_FILE}: holds no config; was it changed by hand?")
    return from_stored(config_class, stored["config"], folder / RUN_FILE)


def _resumed(
    config_class: type[Config], job: str, folder: Path, asked: Mapping[str, Any], explicit: dict[str, str]
) -> Config:
    """The stored config with what may change on resuming, where the command line set it.

    `asked` is what the command line composes to; the rest of it is no matter, and so is not checked.
    """
    stored = to_dict(_stored(config_class, job, folder, explicit))
    for key in set(RESUMABLE[job]) & set(explicit) - {"resume"}:
        group, _, name = key.rpartition(".")
        target, source = (stored[group], asked[group]) if group else (stored, asked)
        target[name] = source[name]
    if config_class is TrainConfig:
        stored["resume"] = str(folder)
    return from_dict(config_class, stored)


def _started(config: TrainConfig, start: str, explicit: dict[str, str]) -> TrainConfig:
    """`config` with model, encoder, prompt and adapter of the run at `start`, which may not be contradicted."""
    run = open_checkpoint(Path(start))
    if not isinstance(run.config.lora, LoraConfig):
        raise ConfigError(
            [
                f"lora.start={start}: that run trained the whole model (lora=none); go on from it with "
                f"model=local model.path={last_checkpoint(Path(start))}"
            ]
        )
    stored = dataclasses.replace(run.config, lora=dataclasses.replace(run.config.lora, start=start))
    if "model.path" in explicit:
        # The same base model may lie elsewhere now; its fingerprint will tell.
        stored = dataclasses.replace(stored, model=dataclasses.replace(stored.model, path=config.model.path))
    problems = contradictions(explicit, config, stored, ("model", "encoder", "prompt", "lora"))
    if problems:
        raise ConfigError(problems)
    # Where training took what the model recommends, it now is the model of `start` that recommends.
    recommended = {
        name: getattr(stored.model, name)
        for name in ("learning_rate", "max_seq_length", "loss_on")
        if f"training.{name}" not in explicit and getattr(config.training, name) == getattr(config.model, name)
    }
    data = config.data
    if "data.max_tokens" not in explicit and data.max_tokens == config.model.max_task_tokens:
        data = dataclasses.replace(data, max_tokens=stored.model.max_task_tokens)
    showcase = config.showcase
    if showcase is not None and "showcase.tasks" not in explicit and showcase.tasks == config.model.showcase_tasks:
        showcase = dataclasses.replace(showcase, tasks=stored.model.showcase_tasks)
    return dataclasses.replace(
        config,
        data=data,
        model=stored.model,
        encoder=stored.encoder,
        prompt=stored.prompt,
        lora=stored.lora,
        training=dataclasses.replace(config.training, **recommended),
        showcase=showcase,
    )
