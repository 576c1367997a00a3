"""Which model to start from. Options: conf/model/*.yaml."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import ClassVar, Literal

from arcft.config.recommended import RecommendedConfig

QUANTIZATION_SKIP = ("lm_head", "embed_out", "gate", "shared_expert_gate", "router")
"""Errors hurt most in the logits and in what chooses the experts of a mixture. `gate_proj`, an ordinary
layer of dense models, is quantised."""


@dataclasses.dataclass(kw_only=True)
class ModelConfig:
    renamed: ClassVar[dict[str, str]] = {
        "learning_rate": "recommended.training.learning_rate",
        "max_seq_length": "recommended.training.max_seq_length",
        "loss_on": "recommended.training.loss_on",
        "max_task_tokens": "recommended.data.max_tokens",
        "lora_r": "recommended.lora.r",
        "lora_alpha": "recommended.lora.alpha",
        "ttft_learning_rate": "recommended.ttft.learning_rate",
        "ttft_max_steps": "recommended.ttft.max_steps",
        "showcase_tasks": "recommended.showcase.tasks",
    }

    name: str
    """What reports call the model."""

    path: str | None = None
    """A hub id, a local folder, a .gguf file, or `bundled:NAME` for a folder of arcft/assets."""

    tokenizer: str | None = None
    """Where the tokenizer is, if not at `path`; the same forms, except .gguf."""

    init: Literal["pretrained", "random"] = "pretrained"
    """`random` takes only the architecture (config.json) from `path` and draws weights from `seed`."""

    seed: int = 0
    """Seed of random weights; it belongs to the base model's identity, so it is apart from training.seed."""

    backend: Literal["transformers", "unsloth"] = "transformers"
    """`unsloth` needs a CUDA GPU and the extra of that name."""

    quantization: Literal["none", "int8", "nf4", "fp4"] = "none"
    """Quantisation of the frozen base weights by bitsandbytes; nf4 and fp4 have 4 bits."""

    quantization_skip: list[str] = dataclasses.field(default_factory=lambda: list(QUANTIZATION_SKIP))
    """Modules that are not quantised, with all that is in them, by the last part of their name; `lm_head` is the output
    layer under whatever name. Layers that an architecture uses otherwise than by calling them are never quantised."""

    positions: str = "none"
    """How tokens get their positions: `none` counts them, other values are the kind's. `grid`, ARC's, tells the model
    grid, row and column of each token instead of its number, for models made for it, with encoder=minimal
    prompt=grid_only. It belongs to the model, as its context does."""

    attn_implementation: str = "auto"
    """As in transformers: sdpa, eager, flash_attention_2, flex_attention, ... `auto` is flash_attention_2 in 16 bits on
    a GPU, if the package is there and the architecture has it; else sdpa; else eager."""

    train_modules: list[str] = dataclasses.field(default_factory=list)
    """Modules trained and saved whole beside the adapter (PEFT's modules_to_save), by the end of their name."""

    prune_vocabulary: bool = False
    """Keep only the rows of embedding and head for tokens that the run's texts can have. Checkpoints hold all rows."""

    trust_remote_code: bool = False
    """Run Python code that comes with the model. Also asks for ARCFT_TRUST_REMOTE_CODE=1 in the environment."""

    recommended: RecommendedConfig = dataclasses.field(default_factory=RecommendedConfig)
    """What works with this model: other groups take it unless they are set."""

    def problems(self) -> Iterator[str]:
        if not self.path:
            yield "model.path is not set: give a hub id, a folder or a .gguf file, e.g. model.path=/models/my-model"
            return
        yield from self.recommended.problems_at("model.recommended")
        if self.quantization == "none" and self.quantization_skip != list(QUANTIZATION_SKIP):
            yield (
                f"model.quantization_skip={self.quantization_skip} has no effect with model.quantization=none; drop "
                "it, or use int8, nf4 or fp4"
            )
        if self.backend == "unsloth" and self.quantization == "fp4":
            yield "model.quantization=fp4: unsloth has nf4 only; use that, or model.backend=transformers"
        if self.backend == "unsloth" and self.quantization_skip != list(QUANTIZATION_SKIP):
            yield "model.quantization_skip: unsloth chooses by itself; drop it, or use model.backend=transformers"
        if self.init == "pretrained" and self.seed != 0:
            yield f"model.seed={self.seed} has no effect with model.init=pretrained; drop it, or use model.init=random"
        if self.path.endswith(".gguf"):
            if self.init == "random":
                yield "model.init=random needs a folder or hub id with a config.json, not a .gguf file"
            if self.backend == "unsloth":
                yield "model.backend=unsloth cannot read a .gguf file; use model.backend=transformers"
        if self.tokenizer is not None and self.tokenizer.endswith(".gguf"):
            yield f"model.tokenizer={self.tokenizer}: give a folder or a hub id; a .gguf file is read as model.path"
        if self.backend == "unsloth" and self.init == "random":
            yield "model.backend=unsloth loads pretrained weights only; use model.backend=transformers"
        if self.backend == "unsloth" and self.prune_vocabulary:
            yield (
                "model.prune_vocabulary=true: unsloth's kernels need the whole vocabulary; use "
                "model.backend=transformers or model.prune_vocabulary=false"
            )
        if self.backend == "unsloth" and self.positions != "none":
            yield (
                f"model.positions={self.positions}: unsloth only counts positions; use model.backend=transformers or "
                "model.positions=none"
            )
