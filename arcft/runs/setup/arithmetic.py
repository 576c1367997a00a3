"""The dtype that `auto` stands for, of a run or of an evaluation, which keeps the one that it was started with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from arcft.checkpoints import RUN_FILE, read_run_yaml
from arcft.config.inference import InferenceConfig, VllmConfig
from arcft.config.lora import LoraConfig
from arcft.config.model import ModelConfig
from arcft.console import note
from arcft.models.load import fast_bfloat16, resolve_dtype
from arcft.runs.setup.build import choose_device
from arcft.runs.setup.checkpoint_config import TrainedRun


def auto_dtype(model: ModelConfig, device: torch.device, *, frozen: bool) -> torch.dtype:
    """What `auto` stands for: bfloat16 on a CPU that multiplies it fast, for `frozen` weights of a model that
    recommends it (cpu_dtype=auto); else what `resolve_dtype` says."""
    recommends = model.recommended.training.cpu_dtype == "auto"
    if device.type == "cpu" and frozen and recommends and fast_bfloat16():
        return torch.bfloat16
    return resolve_dtype("auto", device)


def auto_in_words(key: str, dtype: torch.dtype, device: torch.device) -> str:
    """What `key`=auto stands for, and why."""
    if device.type == "cpu" and dtype == torch.bfloat16:
        return f"{key}=auto: bfloat16, which this CPU multiplies fast; {key}=float32 rounds less"
    return f"{key}=auto: {dtype_name(dtype)} on {device}"


def dtype_name(dtype: torch.dtype) -> str:
    """The name of `dtype` in configs."""
    return str(dtype).removeprefix("torch.")


@dataclasses.dataclass(frozen=True)
class Arithmetic:
    """The dtype of an evaluation's forward passes, and the kind of device that it was chosen for."""

    dtype: str
    device: str
    """`cpu` or `cuda`."""

    @property
    def in_key(self) -> dict[str, str]:
        """What it adds to the key of an evaluation with inference.dtype=auto: nothing where version 0.1.0 would have
        computed the same, so that its evaluations are found again."""
        return {"dtype": self.dtype} if (self.dtype, self.device) == ("bfloat16", "cpu") else {}


class Arithmetics:
    """Chooses the arithmetic of each target of an evaluation; one that was started before keeps its own."""

    def __init__(self, inference: InferenceConfig, folder: Path, *, delegates: bool = False) -> None:
        """`folder` is the evaluation's, whether it exists or not. With `delegates`, workers compute, which have the GPU
        to themselves."""
        self._inference = inference
        self._delegates = delegates
        self._stored = _stored(folder) if inference.dtype == "auto" else None
        self._said: set[str] = set()

    def of(self, target: str, models: Sequence[TrainedRun | ModelConfig]) -> Arithmetic | None:
        """The arithmetic of the target of this name, which `models` answer.

        None where another process chooses it: vLLM's, or workers with a GPU.
        """
        device = choose_device()
        delegated = self._delegates and device.type == "cuda"
        if isinstance(self._inference, VllmConfig):
            return None
        if self._inference.dtype != "auto":
            return None if delegated else Arithmetic(self._inference.dtype, device.type)
        stored = self._stored_of(target)
        if stored is not None:
            self._say(f"inference.dtype=auto: {stored.dtype}, as when this evaluation was started")
            return stored
        if delegated:
            return None
        if self._stored is not None:
            dtype = resolve_dtype("auto", device)  # what version 0.1.0 did, which stored no dtype
        else:
            found = {_auto(model, device) for model in models}
            dtype = found.pop() if len(found) == 1 else resolve_dtype("auto", device)
        self._say(auto_in_words("inference.dtype", dtype, device))
        return Arithmetic(dtype_name(dtype), device.type)

    def _stored_of(self, target: str) -> Arithmetic | None:
        """What was stored for a target, or, for a checkpoint saved since, for the others where they agree."""
        if not self._stored:
            return None
        others = set(self._stored.values())
        return self._stored.get(target, others.pop() if len(others) == 1 else None)

    def _say(self, words: str) -> None:
        if words not in self._said:
            self._said.add(words)
            note(words)


def _auto(model: TrainedRun | ModelConfig, device: torch.device) -> torch.dtype:
    if isinstance(model, ModelConfig):
        return auto_dtype(model, device, frozen=True)
    # Whole models, and adapters trained in float32, keep the precision of their training.
    frozen = isinstance(model.config.lora, LoraConfig) and model.config.training.dtype != "float32"
    return auto_dtype(model.config.model, device, frozen=frozen)


def _stored(folder: Path) -> Mapping[str, Arithmetic] | None:
    """By target, the arithmetic of the evaluation in `folder`: none of them where version 0.1.0 started it, and None
    where there is no evaluation, its targets were not known yet, or its workers chose."""
    if not (folder / RUN_FILE).is_file():
        return None
    stored: dict[str, Any] = read_run_yaml(folder)
    if stored.get("job") != "evaluate" or not stored.get("keys"):
        return None
    if stored.get("arithmetic") == {}:
        return None  # workers chose
    return {name: Arithmetic(**values) for name, values in stored.get("arithmetic", {}).items()}
