"""The adapter. Options: conf/lora/*.yaml."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import ClassVar, Literal

INITIAL_WEIGHTS: tuple[bool | str, ...] = (True, False, "gaussian", "pissa", "olora", "orthogonal")
"""The values of init_lora_weights. PEFT's others need data, packages or settings that nothing here gives them."""

DENSE_ONLY = ("pissa", "orthogonal")
"""Those that PEFT can't compute for quantised weights."""


@dataclasses.dataclass(kw_only=True)
class LoraChoice:
    """A choice: an adapter, or none."""

    renamed: ClassVar[dict[str, str]] = {"enabled": "name"}

    name: str


@dataclasses.dataclass(kw_only=True)
class NoLoraConfig(LoraChoice):
    """The whole model is trained and saved."""

    name: Literal["none"] = "none"


@dataclasses.dataclass(kw_only=True)
class LoraConfig(LoraChoice):
    """Low-rank adaptation (Hu et al. 2021)."""

    name: Literal["default"] = "default"

    r: int
    """Rank. The learned update is scaled by alpha / r, or alpha / sqrt(r) with use_rslora."""

    alpha: float
    """Scale numerator. If it is fixed in a sweep over r, the scale changes with r; alpha='${lora.r}' holds it."""

    dropout: float
    """Probability that an input feature of the adapter is dropped."""

    target_modules: list[str] | str
    """`all-linear`, or the names of the linear layers to adapt, e.g. [q_proj,k_proj,v_proj,o_proj]."""

    use_rslora: bool
    """Rank-stabilised scale (Kalajdzievski 2023)."""

    use_dora: bool
    """Weight-decomposed adaptation (Liu et al. 2024)."""

    init_lora_weights: bool | str
    """As in PEFT: true (B is zero), false (both random), gaussian, pissa, olora or orthogonal."""

    start: str | None = None
    """A trained run or checkpoint to continue from: its adapter is loaded, its model, encoder and prompt are taken."""

    def problems(self) -> Iterator[str]:
        if self.r < 1:
            yield f"lora.r={self.r}: the rank must be at least 1; to train without an adapter use lora=none"
        if self.alpha <= 0:
            yield f"lora.alpha={self.alpha}: must be above 0, or the adapter has no effect"
        if not 0 <= self.dropout < 1:
            yield f"lora.dropout={self.dropout}: a probability from 0 to below 1"
        if isinstance(self.target_modules, list) and not self.target_modules:
            yield "lora.target_modules=[]: name at least one linear layer, or use all-linear"
        # PEFT takes any other text for a regular expression.
        if isinstance(self.target_modules, str) and self.target_modules != "all-linear":
            yield f"lora.target_modules={self.target_modules}: write a list, [{self.target_modules}], or all-linear"
        if self.init_lora_weights not in INITIAL_WEIGHTS:
            known = ", ".join(str(value).lower() for value in INITIAL_WEIGHTS)
            yield f"lora.init_lora_weights={self.init_lora_weights}: one of {known}"
