"""How answers are generated, and how two are chosen. Options: conf/inference/*.yaml, conf/selection/*.yaml."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Literal


@dataclasses.dataclass(kw_only=True)
class InferenceConfig:
    do_sample: bool
    """Draw each token from the model's distribution instead of taking the likeliest."""

    predictions_per_test: int
    """Augmented prompts for each test, dealt round-robin over the 8 symmetries; the first is un-augmented."""

    batch_size: int
    """Prompts that are decoded together."""

    augment_geometric: bool
    augment_colors: bool
    augment_pair_order: bool
    """What the prompts after the first are varied by; undone on the answer."""

    max_new_tokens: int | None = None
    """Tokens of an answer at most; null allows for a 30x30 grid."""

    max_seq_length: int | None = None
    """Tokens of prompt and answer; null for what the model was trained with. Demonstrations are dropped to fit."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Arithmetic of the forward passes, as in training.dtype."""

    seed: int = 0
    """Seed of augmentation and sampling."""

    temperature: float | None = None
    """For sampling: divides the logits."""

    top_p: float | None = None
    """For sampling: keep the likeliest tokens that together reach this probability."""

    def problems(self) -> Iterator[str]:
        for name in ("predictions_per_test", "batch_size", "max_new_tokens", "max_seq_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                yield f"inference.{name}={value}: at least 1"
        if self.seed < 0:
            yield f"inference.seed={self.seed}: at least 0"
        for name in ("temperature", "top_p"):
            value = getattr(self, name)
            if self.do_sample and value is None:
                yield f"inference.{name} is null: inference=sample needs it"
            if not self.do_sample and value is not None:
                yield f"inference.{name}={value} has no effect with inference=greedy; use inference=sample"
        if self.temperature is not None and self.temperature <= 0:
            yield f"inference.temperature={self.temperature}: above 0; for the likeliest token use inference=greedy"
        if self.top_p is not None and not 0 < self.top_p <= 1:
            yield f"inference.top_p={self.top_p}: above 0, at most 1"


@dataclasses.dataclass(kw_only=True)
class SelectionConfig:
    name: Literal["vote", "score", "verify"]
    """`vote`: most frequent grid first, ties by mean log-probability a token. `score`: the grid first that the model
    finds the most probable under several augmentations. `verify`: the grid first that has most of what the
    demonstrations have in common. Ties of the last two go by the vote."""

    views: int | None = None
    """For score: augmentations of a test, dealt as those of the predictions, under which each grid is scored."""

    def problems(self) -> Iterator[str]:
        if self.name == "score":
            if self.views is None:
                yield "selection.views is null: selection=score needs it"
            elif self.views < 1:
                yield f"selection.views={self.views}: at least 1"
        elif self.views is not None:
            yield f"selection.views={self.views} has no effect with selection={self.name}; use selection=score"
