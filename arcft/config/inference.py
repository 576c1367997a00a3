"""How predictions are made. Options: conf/inference/*.yaml."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import ClassVar, Literal

ONLY_SPEED = ("batch_size", "speculate", "restart_seconds")
"""Keys that change speed but not predictions."""


@dataclasses.dataclass(kw_only=True)
class InferenceConfig:
    """What all ways of predicting share; a choice."""

    renamed: ClassVar[dict[str, str]] = dict.fromkeys(
        ("augment_geometric", "augment_colors", "augment_pair_order"), "augmentations"
    )

    name: str

    predictions_per_test: int
    """Augmented prompts for each test; the first is un-augmented. With search each may give several predictions, the
    likeliest first."""

    batch_size: int
    """Prompts decoded together; with search, answers."""

    augmentations: list[str] | Literal["all"]
    """What the prompts after the first are varied by, in the words of the kind of problem; undone on the answer."""

    max_new_tokens: int | None = None
    """The most tokens of an answer; null leaves room for the longest answer there is."""

    max_seq_length: int | None = None
    """The most tokens of prompt and answer; null for what the model was trained with. Demonstrations are dropped to
    fit."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Arithmetic of the forward passes. `auto` on a CPU: bfloat16 for base models and adapters that recommend
    cpu_dtype=auto, where the CPU multiplies it fast; otherwise float32."""

    seed: int = 0
    """Seed of augmentation and sampling."""

    @property
    def uses_grammar(self) -> bool:
        """Whether only valid answers are decoded."""
        return False

    @property
    def speculates(self) -> bool:
        """Whether earlier answers serve as drafts for later ones."""
        return False

    @property
    def jumping_positions(self) -> bool:
        """Whether models whose position ids jump are served."""
        return False

    def problems(self) -> Iterator[str]:
        for name in ("predictions_per_test", "batch_size", "max_new_tokens", "max_seq_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                yield f"inference.{name}={value}: at least 1"
        if self.seed < 0:
            yield f"inference.seed={self.seed}: at least 0"

    def problems_with(self, positions: str) -> Iterator[str]:
        """What a model with these model.positions can't do."""
        if positions != "none" and not self.jumping_positions:
            yield (
                f"inference={self.name} only counts positions, and this model's jump (model.positions={positions}); "
                "use inference=greedy, with inference.grammar=false if need be"
            )


@dataclasses.dataclass(kw_only=True)
class DecodingConfig(InferenceConfig):
    """Predictions by arcft's own decoder."""

    grammar: bool
    """Let the model choose only what an answer is free in, such as shape and cells, and write what is between: every
    answer is valid. Log-probabilities are then shares of the tokens that the grammar allows."""

    @property
    def uses_grammar(self) -> bool:
        return self.grammar

    @property
    def jumping_positions(self) -> bool:
        return True


@dataclasses.dataclass(kw_only=True)
class GreedyConfig(DecodingConfig):
    """The likeliest token each time."""

    name: Literal["greedy"] = "greedy"

    speculate: bool = False
    """Speculative decoding: a test's earlier answers are drafts for its later ones, and its input is the draft for the
    first where demonstrations change little. Changes the time that it takes, and not what is predicted."""

    @property
    def speculates(self) -> bool:
        return self.speculate


@dataclasses.dataclass(kw_only=True)
class SampleConfig(DecodingConfig):
    """Tokens drawn from the model's distribution."""

    name: Literal["sample"] = "sample"

    temperature: float
    """Divides the logits."""

    top_p: float
    """Keep the likeliest tokens that together reach this probability."""

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.temperature <= 0:
            yield f"inference.temperature={self.temperature}: above 0; for the likeliest token use inference=greedy"
        if not 0 < self.top_p <= 1:
            yield f"inference.top_p={self.top_p}: above 0, at most 1"


@dataclasses.dataclass(kw_only=True)
class SearchConfig(DecodingConfig):
    """Every answer likelier than a threshold, depth first."""

    name: Literal["search"] = "search"

    threshold: float
    """The least probability of an answer. Where none reaches it, the greedy one is taken."""

    max_nodes: int
    """For each prompt, the most tokens with a choice that the model is asked about."""

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if not 0 < self.threshold < 1:
            yield f"inference.threshold={self.threshold}: a probability, above 0 and below 1"
        if self.max_nodes < 1:
            yield f"inference.max_nodes={self.max_nodes}: at least 1"


@dataclasses.dataclass(kw_only=True)
class GenerateConfig(InferenceConfig):
    """The likeliest token each time, by transformers' own generate, as a reference."""

    name: Literal["generate"] = "generate"


@dataclasses.dataclass(kw_only=True)
class VllmConfig(InferenceConfig):
    """The likeliest token each time, by vLLM on a GPU (the extra of that name)."""

    name: Literal["vllm"] = "vllm"

    restart_seconds: float
    """An engine that has not answered a batch after this time, or not started, is ended, and another one started."""

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.restart_seconds <= 0:
            yield f"inference.restart_seconds={self.restart_seconds}: above 0"
