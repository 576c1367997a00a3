"""`arcft export`: a checkpoint as merged weights, a plain adapter or a GGUF file, checked against what was trained."""

from __future__ import annotations

import os
from pathlib import Path

from arcft.config.export import ExportConfig
from arcft.config.lora import LoraConfig
from arcft.config.schema import ConfigError
from arcft.console import say
from arcft.files import new_folder
from arcft.runs.common.paths import absolute
from arcft.runs.setup.checkpoint_config import TrainedRun, open_checkpoint


def export(config: ExportConfig) -> Path:
    """Write what `config` asks for into a new folder, and return it.

    Raise ArcftError where the checkpoint can't be exported in that way, or where what was written does not compute what
    was trained; the folder is there whole or not at all.
    """
    out = Path(absolute(str(config.out)))
    if os.path.lexists(out):
        raise ConfigError([f"out={config.out}: exists already; name a new folder, or delete that one"])
    # Checkpoints hold all rows of a vocabulary that was pruned for training.
    base_model = config.base_model
    if base_model is not None and base_model.startswith("~"):
        base_model = absolute(base_model)
    run = open_checkpoint(Path(absolute(str(config.checkpoint))), base_model, prune_vocabulary=False)
    _refuse(config, run)
    # Imported only now: it takes seconds.
    from arcft.runs.exporting.hub import check_hub, upload
    from arcft.runs.exporting.write import write_export

    if config.push_to_hub is not None:
        check_hub(config.push_to_hub)
    with new_folder(out) as partial:
        summary = write_export(config, run, partial, out)
    say(f"{out}: {summary}")
    if config.push_to_hub is not None:
        say(f"uploaded to {upload(out, config.push_to_hub, private=config.private)}")
    return out


def _refuse(config: ExportConfig, run: TrainedRun) -> None:
    whole = not isinstance(run.config.lora, LoraConfig)
    if config.format == "adapter" and whole:
        raise ConfigError(
            [
                f"format=adapter: {run.checkpoint.path} has no adapter, its run trained the whole model (lora=none); "
                "use format=merged"
            ]
        )
