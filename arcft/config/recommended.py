"""What a model recommends for other groups, under their names: model.recommended.GROUP.KEY.

The YAML files of those groups take it by interpolation (`${model.recommended.training.learning_rate}`), so whatever is
set explicitly wins.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Literal

LossOn = Literal["completion", "all", "from_second_output"]
"""What is supervised: the answer, the whole text, or the outputs from the second demonstration on."""


@dataclasses.dataclass(kw_only=True)
class RecommendedTraining:
    learning_rate: float = 1e-4
    """Peak rate for an adapter on many tasks."""

    max_seq_length: int = 4096
    """Context in tokens."""

    loss_on: LossOn = "completion"

    cpu_dtype: Literal["auto", "float32"] = "float32"
    """What training.dtype=auto means for an adapter on a CPU, and inference.dtype=auto for one and for its base model:
    `auto` is bfloat16 where the CPU multiplies it fast. The default is what runs without this key were made with."""

    per_device_train_batch_size: int | Literal["auto"] = 8
    gradient_checkpointing: bool | Literal["auto"] = False
    """As in TrainingConfig."""


@dataclasses.dataclass(kw_only=True)
class RecommendedData:
    max_tokens: int | None = None
    """For training: longer problems are left out; null for all that fit the context."""


@dataclasses.dataclass(kw_only=True)
class RecommendedLora:
    r: int = 16
    alpha: float = 32.0
    """Rank and scale of a fresh adapter."""


@dataclasses.dataclass(kw_only=True)
class RecommendedTtft:
    learning_rate: float | None = None
    """Peak rate for one task; null for training.learning_rate."""

    max_steps: int = 64
    """Steps for one task."""


@dataclasses.dataclass(kw_only=True)
class RecommendedShowcase:
    tasks: int = 0
    """New tasks that train.py adapts to in the end."""


@dataclasses.dataclass(kw_only=True)
class RecommendedConfig:
    training: RecommendedTraining = dataclasses.field(default_factory=RecommendedTraining)
    data: RecommendedData = dataclasses.field(default_factory=RecommendedData)
    lora: RecommendedLora = dataclasses.field(default_factory=RecommendedLora)
    ttft: RecommendedTtft = dataclasses.field(default_factory=RecommendedTtft)
    showcase: RecommendedShowcase = dataclasses.field(default_factory=RecommendedShowcase)

    @property
    def ttft_learning_rate(self) -> float:
        """Peak rate for one task."""
        return self.ttft.learning_rate or self.training.learning_rate

    def problems_at(self, prefix: str) -> Iterator[str]:
        """What is wrong; `prefix` is the key under which these stand."""
        for key, value in (("lora.r", self.lora.r), ("ttft.max_steps", self.ttft.max_steps)):
            if value < 1:
                yield f"{prefix}.{key}={value}: at least 1"
        if self.showcase.tasks < 0:
            yield f"{prefix}.showcase.tasks={self.showcase.tasks}: at least 0, which recommends none"
        if self.ttft.learning_rate is not None and not self.ttft.learning_rate > 0:
            yield (
                f"{prefix}.ttft.learning_rate={self.ttft.learning_rate}: above 0, or null for "
                f"{prefix}.training.learning_rate"
            )


def with_recommendations(
    config: Any, old: RecommendedConfig, new: RecommendedConfig, explicit: Collection[str] | Mapping[str, str]
) -> Any:
    """`config`, a dataclass of groups, with the recommendations of another model.

    Keys take what `new` recommends if they hold what `old` does and were not set by hand (`explicit`, dotted keys).
    Groups that are null, or that no option of `config` has, stay as they are.
    """
    changed = {}
    for group in dataclasses.fields(old):
        target = getattr(config, group.name, None)
        if target is None:
            continue
        before, after = getattr(old, group.name), getattr(new, group.name)
        keys = {field.name for field in dataclasses.fields(before)} & {
            field.name for field in dataclasses.fields(target)
        }
        taken = {
            key: getattr(after, key)
            for key in keys
            if f"{group.name}.{key}" not in explicit and getattr(target, key) == getattr(before, key)
        }
        changed[group.name] = dataclasses.replace(target, **taken)
    return dataclasses.replace(config, **changed)
