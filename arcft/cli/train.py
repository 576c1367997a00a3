"""`arcft train`, `python train.py`: a checked config, then the run. Loads no model library itself.

So a wrong key is reported at once, --help is quick, and unsloth can be imported before transformers, as it requires.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from omegaconf import DictConfig

from arcft import ranks
from arcft.checkpoints import last_checkpoint, refuse_damaged
from arcft.cli.hydra_app import explicit_keys, plain_config, run_from_command_line
from arcft.cli.rank_words import output_folder
from arcft.cli.resume import resumed_config
from arcft.config.lora import LoraConfig
from arcft.config.recommended import with_recommendations
from arcft.config.run import TrainConfig
from arcft.config.schema import ConfigError
from arcft.models.backend import import_backend
from arcft.runs.common.command import command
from arcft.runs.common.optimized_metric import value_of
from arcft.runs.common.paths import absolute, override, with_absolute_paths
from arcft.runs.setup.checkpoint_config import contradictions, open_checkpoint
from arcft.runs.setup.kinds import read_config


def main() -> None:
    """Train as the command line says."""
    run_from_command_line(_train, "train", TrainConfig)


def _train(cfg: DictConfig) -> float | None:
    values = plain_config(cfg)
    explicit = explicit_keys()
    folder = output_folder()
    if values["resume"] is not None:
        folder = Path(absolute(str(values["resume"])))
        config = resumed_config(TrainConfig, "train", folder, values, explicit)
        if ranks.rank() == 0:
            refuse_damaged(folder)
    else:
        config = with_absolute_paths(read_config(TrainConfig, values))
        if isinstance(config.lora, LoraConfig) and config.lora.start is not None:
            config = _started(config, config.lora.start, explicit)
    import_backend(config.model)
    from arcft.runs.train import train

    metrics = train(config, folder)
    if config.dry_run or ranks.rank() > 0:
        return None
    return value_of(config.optimized_metric, metrics, f"resume with: {command('train')} {override('resume', folder)}")


def _started(config: TrainConfig, start: str, explicit: dict[str, str]) -> TrainConfig:
    """`config` with model, encoder, prompt and adapter of the run at `start`; explicit keys may not contradict them."""
    run = open_checkpoint(Path(start))
    if not isinstance(run.config.lora, LoraConfig):
        raise ConfigError(
            [
                f"lora.start={start}: that run trained the whole model (lora=none); continue from it with "
                f"model=local model.path={last_checkpoint(Path(start))}"
            ]
        )
    stored = dataclasses.replace(run.config, lora=dataclasses.replace(run.config.lora, start=start))
    if "model.path" in explicit:
        # The same base model may lie elsewhere now; its fingerprint is checked when it is loaded.
        stored = dataclasses.replace(stored, model=dataclasses.replace(stored.model, path=config.model.path))
    problems = contradictions(explicit, config, stored, ("model", "encoder", "prompt", "lora"))
    if problems:
        raise ConfigError(problems)
    # Where the config took the model's recommendations, the model of `start` now recommends.
    config = with_recommendations(config, config.model.recommended, stored.model.recommended, explicit)
    return dataclasses.replace(
        config, model=stored.model, encoder=stored.encoder, prompt=stored.prompt, lora=stored.lora
    )
