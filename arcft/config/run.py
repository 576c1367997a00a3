"""The two programs' whole configs. conf/train.yaml and conf/evaluate.yaml."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from arcft.config.data import DataConfig
from arcft.config.inference import InferenceConfig, VllmConfig
from arcft.config.lora import DENSE_ONLY, LoraChoice, LoraConfig
from arcft.config.model import ModelConfig
from arcft.config.optimizer import OptimizerConfig
from arcft.config.scheduler import SchedulerConfig
from arcft.config.schema import OF_KIND
from arcft.config.selection import ScoreConfig, SelectionConfig
from arcft.config.showcase import ShowcaseConfig
from arcft.config.tracking import NoTrackingConfig, TrackingConfig
from arcft.config.training import TrainingConfig
from arcft.config.ttft import TtftChoice, TtftConfig


@dataclasses.dataclass(kw_only=True)
class TrainConfig:
    model: ModelConfig
    lora: LoraChoice
    encoder: Any = dataclasses.field(metadata=OF_KIND)
    prompt: Any = dataclasses.field(metadata=OF_KIND)
    data: DataConfig = dataclasses.field(metadata=OF_KIND)
    augmentation: Any = dataclasses.field(metadata=OF_KIND)
    optimizer: OptimizerConfig
    scheduler: SchedulerConfig
    training: TrainingConfig
    inference: InferenceConfig
    """For the generation metrics while training and at the end."""

    selection: SelectionConfig
    tracking: TrackingConfig

    showcase: ShowcaseConfig | None = None
    """New tasks that the trained model is adapted to at the end."""

    resume: str | None = None
    """A run folder to resume; its own config is used."""

    optimized_metric: str | None = None
    """The metric that the program returns to Hydra's sweepers: train/loss, eval/loss, eval/accuracy, ..."""

    preview: bool = True
    """Show the first training example with its loss mask."""

    dry_run: bool = False
    """Compose, load, tokenise, preview, estimate memory and steps, and exit."""

    def problems(self) -> Iterator[str]:
        if self.data.is_held_out:
            yield "data=held_out belongs to the command evaluate; train needs a set of tasks, e.g. data=arc1"
        if self.model.quantization != "none" and not isinstance(self.lora, LoraConfig):
            yield (
                f"model.quantization={self.model.quantization} with lora=none: quantised weights can't be trained; "
                "use lora=default, or model.quantization=none"
            )
        yield from _problems_with_quantised(self.model, self.lora)
        yield from _problems_with_unsloth(self.model, self.lora)
        yield from self._sharding_problems()
        if isinstance(self.inference, VllmConfig):
            yield "inference=vllm belongs to the command evaluate: it reads models that are saved; use inference=greedy"
        yield from self.inference.problems_with(self.model.positions)
        limit = self.inference.max_seq_length
        if limit is not None and limit > self.training.max_seq_length:
            yield (
                f"inference.max_seq_length={limit} is above training.max_seq_length={self.training.max_seq_length}, "
                "and while training no more is read; drop it, or raise training.max_seq_length"
            )
        if self.showcase is not None and self.showcase.tasks:
            for problem in showcase_evaluation(self, self.showcase, "RUN").problems():
                yield f"showcase: {problem}"
            for problem in self.showcase.inference.problems_with(self.model.positions):
                yield f"showcase: {problem}"

    def _sharding_problems(self) -> Iterator[str]:
        if self.training.fsdp is None:
            return
        asked = f"training.fsdp={self.training.fsdp}"
        whole = "use training.fsdp=null, which keeps a whole model in each process"
        if self.model.quantization != "none":
            yield f"{asked} with model.quantization={self.model.quantization}: packed weights can't be split; {whole}"
        if self.optimizer.name != "adamw":
            yield f"{asked} with optimizer={self.optimizer.name}: it needs whole matrices; use optimizer=adamw"
        if self.training.dtype == "float16":
            yield f"{asked} with training.dtype=float16: its loss scaling is not shared out; use bfloat16"


@dataclasses.dataclass(kw_only=True)
class EvaluateConfig:
    """Exactly one of checkpoint, model, predictions and resume is given."""

    data: DataConfig = dataclasses.field(metadata=OF_KIND)
    inference: InferenceConfig
    selection: SelectionConfig
    tracking: TrackingConfig
    ttft: TtftChoice
    """Whether the model is adapted to the tasks before it predicts them."""

    lora: LoraChoice
    augmentation: Any = dataclasses.field(metadata=OF_KIND)
    """For ttft: a fresh adapter, and how its examples are varied."""

    model: ModelConfig | None = None
    """A base model, with its recommended encoder and prompt."""

    encoder: Any | None = dataclasses.field(default=None, metadata=OF_KIND)
    prompt: Any | None = dataclasses.field(default=None, metadata=OF_KIND)
    """With `model`; a checkpoint brings its own."""

    checkpoint: str | None = None
    """A run (its last complete checkpoint), a checkpoint, or a pattern that matches several."""

    base_model: str | None = None
    """With checkpoint: the current path of its base model, if it has moved since training; its fingerprint must
    match."""

    prune_vocabulary: bool | None = None
    """With checkpoint: model.prune_vocabulary for this evaluation; null for that of the training run."""

    adapters: str | None = None
    """With checkpoint or model: a pattern of runs adapted to single tasks; each predicts the tasks it was adapted
    to."""

    predictions: list[str] | str | None = None
    """Files of saved predictions; several are combined. Without data= they answer the tasks of the evaluation that
    wrote the first of them."""

    resume: str | None = None
    """An evaluation folder to resume; its own config is used."""

    optimized_metric: str | None = None
    """The metric that the program returns to Hydra's sweepers: eval/accuracy, eval/correct_pixels, ..."""

    dry_run: bool = False
    """Load, count tasks and prompts, and exit."""

    def problems(self) -> Iterator[str]:
        ways = {
            "checkpoint": self.checkpoint,
            "model": self.model,
            "predictions": self.predictions,
            "resume": self.resume,
        }
        given = [name for name, value in ways.items() if value is not None]
        if len(given) != 1:
            said = " and ".join(f"{name}=" for name in given) if given else "none"
            yield f"give exactly one of checkpoint=, model=, predictions=, resume= ({said} given)"
        if self.predictions == []:
            yield "predictions=[]: name a file of predictions, or several"
        if self.adapters is not None and self.checkpoint is None and self.model is None:
            yield "adapters= needs checkpoint= or model=: what the adapters were started from"
        if self.base_model is not None and self.checkpoint is None:
            yield f"base_model={self.base_model} has no effect without checkpoint=; with model= use model.path"
        if self.prune_vocabulary is not None and self.checkpoint is None:
            yield "prune_vocabulary= has no effect without checkpoint=; with model= use model.prune_vocabulary"
        if isinstance(self.inference, VllmConfig) and (
            self.prune_vocabulary or (self.model is not None and self.model.prune_vocabulary)
        ):
            yield (
                "inference=vllm with prune_vocabulary=true: vLLM loads models itself, with all tokens; use "
                "prune_vocabulary=false, or inference=greedy"
            )
        if isinstance(self.ttft, TtftConfig):
            if self.predictions is not None:
                yield f"ttft={self.ttft.name} has no effect with predictions=, which are made already; use ttft=none"
            if self.adapters is not None:
                yield f"ttft={self.ttft.name} with adapters=: those were adapted already; drop one of the two"
        if isinstance(self.inference, VllmConfig):
            if isinstance(self.ttft, TtftConfig):
                yield (
                    f"ttft={self.ttft.name} with inference=vllm: vLLM serves adapters that are saved; adapt with "
                    "inference=greedy ttft.keep_adapters=true, then predict with adapters='FOLDER/adapters/*' "
                    "inference=vllm"
                )
            if isinstance(self.selection, ScoreConfig):
                yield (
                    "selection=score with inference=vllm: it gives no log-probabilities of given answers; use "
                    "selection=vote or selection=verify, or inference=greedy"
                )
        if self.model is not None:
            yield from self.inference.problems_with(self.model.positions)
            if isinstance(self.ttft, TtftConfig):
                yield from _problems_with_quantised(self.model, self.lora)
        if self.data.held_out:
            yield f"data.held_out={self.data.held_out} has no effect in an evaluation; set it to 0"
        if self.data.only_trained_on:
            yield f"data.name={self.data.name} is for training; {self.data.only_trained_on}"
        if self.data.view != "test":
            yield f"data.view={self.data.view} is for training; an evaluation predicts the test pairs"
        if self.data.disjoint_from:
            yield f"data.disjoint_from={self.data.disjoint_from} has no effect in an evaluation; set it to []"


def _problems_with_quantised(model: ModelConfig, lora: LoraChoice) -> Iterator[str]:
    if model.quantization != "none" and isinstance(lora, LoraConfig) and lora.init_lora_weights in DENSE_ONLY:
        yield (
            f"lora.init_lora_weights={lora.init_lora_weights}: PEFT computes it from weights that are not quantised; "
            f"use true, gaussian or olora, or model.quantization=none instead of {model.quantization}"
        )


def _problems_with_unsloth(model: ModelConfig, lora: LoraChoice) -> Iterator[str]:
    if model.backend != "unsloth" or not isinstance(lora, LoraConfig):
        return
    if lora.use_dora:
        yield "lora.use_dora=true: unsloth has no DoRA; use model.backend=transformers or lora=default"
    if lora.init_lora_weights in ("pissa", "olora", "orthogonal"):
        yield (
            f"lora.init_lora_weights={lora.init_lora_weights}: unsloth has no such initial weights; use true, false or "
            "gaussian, or model.backend=transformers"
        )


def showcase_evaluation(config: TrainConfig, showcase: ShowcaseConfig, checkpoint: str) -> EvaluateConfig:
    """The evaluation of `checkpoint`, a checkpoint of a run of `config`, that `showcase` asks for; of all its tasks."""
    return EvaluateConfig(
        checkpoint=checkpoint,
        data=showcase.data,
        inference=showcase.inference,
        ttft=showcase.ttft,
        lora=showcase.lora,
        augmentation=showcase.augmentation,
        selection=config.selection,
        # The results are recorded with the training run.
        tracking=NoTrackingConfig(),
    )
