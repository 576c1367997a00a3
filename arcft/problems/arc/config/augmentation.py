"""How tasks are varied while training. Options: conf/augmentation/*.yaml."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator


@dataclasses.dataclass(kw_only=True)
class AugmentationConfig:
    geometric: bool
    """Draw one of the 8 symmetries of the square, the same for all grids of the task."""

    colors: bool
    """Permute the colours 1 to 9, the same for all grids."""

    permute_background: float
    """Probability that colour 0 takes part in the permutation."""

    pair_order: bool
    """Shuffle the demonstrations."""

    swap_train_test: bool
    """Pool demonstrations and test pairs, shuffle, and refill: every pair may become the test."""

    composition: float
    """Probability of a new task made by transforming only the inputs or only the outputs."""

    composition_weights: dict[str, float]
    """Relative weights of the transformations: geometric, padding, upscale, mirror."""

    input_from_inputs: float
    """Share of examples that ask for another input of the task instead of an output."""

    def problems(self) -> Iterator[str]:
        for name in ("permute_background", "composition", "input_from_inputs"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                yield f"augmentation.{name}={value}: a probability from 0 to 1"
        known = {"geometric", "padding", "upscale", "mirror"}
        for name, weight in self.composition_weights.items():
            if name not in known:
                yield f"augmentation.composition_weights.{name}: unknown; known are {', '.join(sorted(known))}"
            if weight < 0:
                yield f"augmentation.composition_weights.{name}={weight}: at least 0"
        if self.composition and not any(self.composition_weights.values()):
            yield "augmentation.composition_weights: all are 0; give one of them a weight, or set composition=0"
