"""Copy the weights of a finished `experiment=pretrain_tiny` into the package: arcft/assets/tiny.

    python scripts/ship_tiny.py CHECKPOINT [FOLDER]

Writes model.safetensors in bfloat16, and bundle.json with the sha256 of architecture, tokenizer and weights, which are
verified from then on. Architecture and tokenizer must be those in the package; a checkpoint with others is refused, and
so is one whose run did not verify that its data is disjoint from ARC-1's and ARC-2's evaluation sets. CHECKPOINT is a
run folder or a single checkpoint. If the run started from another run's checkpoint (model.init=pretrained
model.path=CHECKPOINT), the whole chain is checked, back to random weights, and bundle.json lists the steps and tokens
of each leg.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoConfig

from arcft import __version__
from arcft.checkpoints import CheckpointError
from arcft.cli.hydra_app import plain_config
from arcft.config.lora import LoraConfig
from arcft.config.run import TrainConfig
from arcft.config.schema import to_dict
from arcft.errors import ArcftError
from arcft.files import atomic_path
from arcft.models.bundled import ASSETS, TOKENIZER_FILES, WEIGHTS_FILE, write_bundle
from arcft.models.fingerprint import architecture_values
from arcft.reporting.charts.curves import HISTORY_FILE
from arcft.reporting.words import count
from arcft.runs.common.config_folder import config_folder
from arcft.runs.setup.checkpoint_config import TrainedRun, open_checkpoint
from arcft.runs.setup.kinds import read_config

MOST_BYTES = 8_000_000
DISJOINT_FROM = ("arcagi:evaluation", "arcagi2:evaluation")
"""The run must have been checked against these sets, on which the bundled model is scored."""


class ShipError(ArcftError):
    """A checkpoint that must not become the bundled model."""


def main(checkpoint: Path, folder: Path) -> None:
    """Check everything, then write; every ArcftError is raised before anything is written."""
    legs = _legs(open_checkpoint(checkpoint))
    run = legs[-1]
    problems = [problem for leg in legs for problem in _problems_of_run(leg)]
    if run.checkpoint.step < run.config.training.max_steps:
        problems.append(f"its run was not finished: step {run.checkpoint.step} of {run.config.training.max_steps}")
    problems += _problems_of_files(run.checkpoint.path, folder)
    if problems:
        raise ShipError("\n  - ".join([f"{run.checkpoint.path} can't be shipped:", *problems]))
    weights = {
        name: tensor.to(torch.bfloat16).contiguous()
        for name, tensor in load_file(run.checkpoint.path / WEIGHTS_FILE).items()
    }
    broken = [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise ShipError(f"{run.checkpoint.path / WEIGHTS_FILE}: not finite: {', '.join(broken)}")
    with atomic_path(folder / WEIGHTS_FILE) as partial:
        save_file(weights, partial, metadata={"format": "pt"})
        size = partial.stat().st_size
        if size > MOST_BYTES:
            raise ShipError(f"{WEIGHTS_FILE} would have {size:,} bytes, more than {MOST_BYTES:,}; ship a smaller model")
    about = _about(legs, sum(tensor.numel() for tensor in weights.values()))
    write_bundle(folder, about)
    print(f"{folder}: {about['parameters']:,} parameters, {size:,} bytes of weights, {count(len(legs), 'leg')}")
    print(f"Now commit the folder, with its figures in {folder / 'README.md'}.")


def _legs(run: TrainedRun) -> list[TrainedRun]:
    """The chain of runs that produced the weights, starting from random ones; only the last must be finished."""
    legs = [run]
    while (model := legs[0].config.model).init != "random":
        try:
            legs.insert(0, open_checkpoint(Path(str(model.path))))
        except CheckpointError as error:
            raise ShipError(
                f"{legs[0].checkpoint.path} can't be shipped: it started from {model.path}, and what that was trained "
                f"on is not known: {error}"
            ) from error
    return legs


def _problems_of_run(run: TrainedRun) -> list[str]:
    """Why the run's settings or checks disqualify it."""
    config, problems = run.config, []
    if isinstance(config.lora, LoraConfig):
        problems.append("an adapter is no whole model: train with lora=none, as experiment=pretrain_tiny does")
    checked = run.tasks.get("disjoint_from") or {}
    missing = [name for name in DISJOINT_FROM if name not in checked]
    if missing:
        problems.append(
            f"its run did not check that it shares nothing with {' and '.join(missing)}; train again with "
            f"data.disjoint_from=[{','.join(DISJOINT_FROM)}]"
        )
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        recommended = to_dict(read_config(TrainConfig, plain_config(compose("train", ["model=tiny"]))))
    stored = to_dict(config)
    if stored["model"]["positions"] != recommended["model"]["positions"]:
        problems.append(f"it was trained with model.positions={config.model.positions}, unlike conf/model/tiny.yaml")
    problems += [
        f"it was trained with another {group} than conf/model/tiny.yaml recommends"
        for group in ("encoder", "prompt")
        if stored[group] != recommended[group]
    ]
    return problems


def _problems_of_files(checkpoint: Path, folder: Path) -> list[str]:
    """Which of the checkpoint's files differ from the package's."""
    problems = []
    if not (checkpoint / WEIGHTS_FILE).is_file():
        problems.append(f"there is no {WEIGHTS_FILE}")
    if not (checkpoint / "config.json").is_file():
        return [*problems, "there is no config.json"]
    stored, own = (architecture_values(AutoConfig.from_pretrained(place)) for place in (checkpoint, folder))
    different = sorted(name for name in stored.keys() | own.keys() if stored.get(name) != own.get(name))
    if different:
        problems.append(f"another architecture than {folder / 'config.json'}: {', '.join(different)}")
    words = [Tokenizer.from_file(str(place / TOKENIZER_FILES[0])).to_str() for place in (checkpoint, folder)]
    if words[0] != words[1]:
        problems.append(f"another tokenizer than {folder / TOKENIZER_FILES[0]}, whose token ids the weights don't know")
    return problems


def _about(legs: Sequence[TrainedRun], parameters: int) -> dict[str, Any]:
    """The provenance of the weights, without any path of the machine that trained them."""
    run = legs[-1]
    return {
        "arcft": __version__,
        "parameters": parameters,
        "dtype": "bfloat16",
        "checkpoint_sha256": run.checkpoint.digest,
        "legs": [
            {
                "checkpoint_sha256": leg.checkpoint.digest,
                "seed": leg.checkpoint.manifest["seed"],
                "steps": leg.checkpoint.step,
                "tokens": _tokens(leg),
                "data_fingerprint": leg.checkpoint.manifest["data_fingerprint"],
            }
            for leg in legs
        ],
        # Other sets may be named by a path.
        "disjoint_from": {name: run.tasks["disjoint_from"][name] for name in DISJOINT_FROM},
        "trained_on": sorted({task_id for leg in legs for task_id in leg.tasks["train"]}),
        "versions": run.checkpoint.manifest["versions"],
    }


def _tokens(run: TrainedRun) -> int | None:
    """Tokens trained on up to this checkpoint, from the run's history; None if the history is missing."""
    path = run.folder / HISTORY_FILE
    if not path.is_file():
        return None
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    seen = [line["tokens"] for line in lines if "tokens" in line and line.get("step", math.inf) <= run.checkpoint.step]
    return int(max(seen)) if seen else None


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path, nargs="?", default=ASSETS / "tiny")
    arguments = parser.parse_args()
    try:
        main(arguments.checkpoint, arguments.folder)
    except ArcftError as error:
        sys.exit(f"error: {error}")
