"""How answers are generated, and how two are chosen. Options: conf/inference/*.yaml, conf/selection/*.yaml."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Literal

_OWNERS = {
    "temperature": ("sample",),
    "top_p": ("sample",),
    "grammar": ("greedy", "sample", "search"),
    "speculate": ("greedy",),
    "threshold": ("search",),
    "max_nodes": ("search",),
    "restart_seconds": ("vllm",),
}
"""The ways of predicting that a key is for; the others refuse it, and numbers are needed where they are for."""

_RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "temperature": (lambda value: value > 0, "above 0; for the likeliest token use inference=greedy"),
    "top_p": (lambda value: 0 < value <= 1, "above 0, at most 1"),
    "threshold": (lambda value: 0 < value < 1, "a probability, above 0 and below 1"),
    "max_nodes": (lambda value: value >= 1, "at least 1"),
    "restart_seconds": (lambda value: value > 0, "above 0"),
}
"""Which numbers such a key takes, where it is for the way of predicting."""

ONLY_SPEED = ("batch_size", "speculate", "restart_seconds")
"""Keys of inference that decide how fast it goes, and not what comes out."""


@dataclasses.dataclass(kw_only=True)
class InferenceConfig:
    name: Literal["greedy", "sample", "search", "generate", "vllm"]
    """`greedy`: the likeliest token each time. `sample`: tokens drawn from the model's distribution. `search`: every
    answer that is likelier than `threshold`. `generate`: greedy, by transformers' own generate, as a reference. `vllm`:
    greedy, by vLLM on a GPU (the extra of that name)."""

    predictions_per_test: int
    """Augmented prompts for each test, dealt round-robin over the 8 symmetries; the first is un-augmented. With search
    each may give several predictions, the likeliest first."""

    batch_size: int
    """Prompts that are decoded together; with search, answers."""

    augment_geometric: bool
    augment_colors: bool
    augment_pair_order: bool
    """What the prompts after the first are varied by; undone on the answer."""

    grammar: bool
    """Let the model choose shape and cells only, and write what lies between them: every answer is a grid. Of
    log-probabilities, each is then a token's share of those that may come."""

    speculate: bool = False
    """For greedy: take what most of a test's earlier prompts came to as a guess for the later ones, and its input for
    the first where demonstrations change little. Changes how long it takes, and not what is predicted."""

    threshold: float | None = None
    """For search: the least probability of an answer. Where none reaches it, the greedy one is taken."""

    max_nodes: int | None = None
    """For search: tokens with a choice that the model is asked about, for each prompt at most."""

    max_new_tokens: int | None = None
    """Tokens of an answer at most; null allows for a 30x30 grid."""

    max_seq_length: int | None = None
    """Tokens of prompt and answer; null for what the model was trained with. Demonstrations are dropped to fit."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Arithmetic of the forward passes, as in training.dtype."""

    seed: int = 0
    """Seed of augmentation and sampling."""

    temperature: float | None = None
    """For sample: divides the logits."""

    top_p: float | None = None
    """For sample: keep the likeliest tokens that together reach this probability."""

    restart_seconds: float | None = None
    """For vllm: an engine that has not answered a batch by then, or not begun, is ended, and another one started."""

    def problems(self) -> Iterator[str]:
        for name in ("predictions_per_test", "batch_size", "max_new_tokens", "max_seq_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                yield f"inference.{name}={value}: at least 1"
        if self.seed < 0:
            yield f"inference.seed={self.seed}: at least 0"
        for name, owners in _OWNERS.items():
            value = getattr(self, name)
            if self.name not in owners:
                if value is not None and value is not False:
                    said = "true" if value is True else value
                    yield f"inference.{name}={said} has no effect with inference={self.name}; use {_any_of(owners)}"
            elif value is None:
                yield f"inference.{name} is null: inference={self.name} needs it"
            elif name in _RANGES and not _RANGES[name][0](value):
                yield f"inference.{name}={value}: {_RANGES[name][1]}"

    def problems_with(self, positions: str) -> Iterator[str]:
        """What a model with such model.positions can't do."""
        if positions == "grid" and self.name in ("generate", "vllm"):
            yield (
                f"inference={self.name} only counts positions, and this model's jump (model.positions=grid); use "
                "inference=greedy, with inference.grammar=false if need be"
            )


def _any_of(names: tuple[str, ...]) -> str:
    return " or ".join(f"inference={name}" for name in names)
