"""Which model to start from. Options: conf/model/*.yaml."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Literal

LossOn = Literal["completion", "all", "from_second_output"]
"""What is supervised: the answer, the whole text, or the outputs from the second demonstration on."""

PositionsName = Literal["none", "grid"]
"""How tokens get their positions: counted, or by grid, row and column."""


@dataclasses.dataclass(kw_only=True)
class ModelConfig:
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

    quantization: Literal["none", "nf4", "int8"] = "none"
    """bitsandbytes quantisation of the frozen base weights."""

    learning_rate: float = 1e-4
    """Recommended peak rate for an adapter; training.learning_rate takes it unless set."""

    max_seq_length: int = 4096
    """Recommended context in tokens; training.max_seq_length takes it unless set."""

    max_task_tokens: int | None = None
    """Recommended data.max_tokens for training: longer tasks are left out; null for all that fit the context."""

    loss_on: LossOn = "completion"
    """Recommended labels; training.loss_on takes it unless set."""

    positions: PositionsName = "none"
    """`grid` tells the model grid, row and column of each token instead of its number (grid_positions.py); for models
    made for it, with encoder=minimal prompt=grid_only. It belongs to the model, as its context does."""

    lora_r: int = 16
    lora_alpha: float = 32.0
    """Recommended rank and scale of a fresh adapter; lora=default takes them unless set."""

    ttft_learning_rate: float | None = None
    """Recommended peak rate of test-time fine-tuning; ttft.learning_rate=null takes it, or without it learning_rate."""

    ttft_max_steps: int = 64
    """Recommended steps for a task; ttft=per_task takes them unless set."""

    showcase_tasks: int = 0
    """Recommended showcase.tasks: new tasks that train.py adapts to and shows in the end."""

    attn_implementation: str = "sdpa"
    """As in transformers: sdpa, eager, flash_attention_2, ..."""

    train_modules: list[str] = dataclasses.field(default_factory=list)
    """Modules trained and saved whole beside the adapter (PEFT's modules_to_save), by the end of their name."""

    trust_remote_code: bool = False
    """Run Python code that comes with the model. Also asks for ARCFT_TRUST_REMOTE_CODE=1 in the environment."""

    def problems(self) -> Iterator[str]:
        if not self.path:
            yield "model.path is not set: give a hub id, a folder or a .gguf file, e.g. model.path=/models/my-model"
            return
        for name in ("lora_r", "ttft_max_steps"):
            if getattr(self, name) < 1:
                yield f"model.{name}={getattr(self, name)}: at least 1"
        if self.showcase_tasks < 0:
            yield f"model.showcase_tasks={self.showcase_tasks}: at least 0, which recommends none"
        if self.ttft_learning_rate is not None and not self.ttft_learning_rate > 0:
            yield f"model.ttft_learning_rate={self.ttft_learning_rate}: above 0, or null for model.learning_rate"
        if self.init == "random" and self.quantization != "none":
            yield f"model.quantization={self.quantization} has no effect on random weights; use model.quantization=none"
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
        if self.backend == "unsloth" and self.positions != "none":
            yield (
                f"model.positions={self.positions}: unsloth only counts positions; use model.backend=transformers or "
                "model.positions=none"
            )
