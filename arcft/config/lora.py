"""The adapter. Options: conf/lora/*.yaml."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

INITIAL_WEIGHTS: tuple[bool | str, ...] = (True, False, "gaussian", "pissa", "olora", "orthogonal")
"""The values of init_lora_weights. PEFT's others need data, packages or settings that nothing here gives them."""


@dataclasses.dataclass(kw_only=True)
class LoraConfig:
    """Low-rank adaptation (Hu et al. 2021). With `enabled` false the whole model is trained and the rest is null."""

    enabled: bool = True
    """False for full fine-tuning (lora=none)."""

    r: int | None = None
    """Rank. The learned update is scaled by alpha / r, or alpha / sqrt(r) with use_rslora."""

    alpha: float | None = None
    """Scale numerator. If it is fixed in a sweep over r, the scale changes with r; alpha='${lora.r}' holds it."""

    dropout: float | None = None
    """Probability that an input feature of the adapter is dropped."""

    target_modules: list[str] | str | None = None
    """`all-linear`, or the names of the linear layers to adapt, e.g. [q_proj,k_proj,v_proj,o_proj]."""

    use_rslora: bool | None = None
    """Rank-stabilised scale (Kalajdzievski 2023)."""

    use_dora: bool | None = None
    """Weight-decomposed adaptation (Liu et al. 2024)."""

    init_lora_weights: bool | str | None = None
    """As in PEFT: true (B is zero), false (both random), gaussian, pissa, olora or orthogonal."""

    start: str | None = None
    """A trained run or checkpoint to go on from: its adapter is loaded, its model, encoder and prompt are taken."""

    def problems(self) -> Iterator[str]:
        if not self.enabled:
            for field in dataclasses.fields(self):
                value = getattr(self, field.name)
                if field.name != "enabled" and value is not None:
                    yield f"lora.{field.name}={value} has no effect with lora=none; drop it, or use lora=default"
            return
        for name in ("r", "alpha", "dropout", "target_modules", "use_rslora", "use_dora", "init_lora_weights"):
            if getattr(self, name) is None:
                yield f"lora.{name} is null: an adapter needs it; to train without an adapter use lora=none"
        if self.r is not None and self.r < 1:
            yield f"lora.r={self.r}: the rank must be at least 1; to train without an adapter use lora=none"
        if self.alpha is not None and self.alpha <= 0:
            yield f"lora.alpha={self.alpha}: must be above 0, or the adapter has no effect"
        if self.dropout is not None and not 0 <= self.dropout < 1:
            yield f"lora.dropout={self.dropout}: a probability from 0 to below 1"
        yield from self._target_problems()
        if self.init_lora_weights is not None and self.init_lora_weights not in INITIAL_WEIGHTS:
            known = ", ".join(str(value).lower() for value in INITIAL_WEIGHTS)
            yield f"lora.init_lora_weights={self.init_lora_weights}: one of {known}"

    def _target_problems(self) -> Iterator[str]:
        if isinstance(self.target_modules, list) and not self.target_modules:
            yield "lora.target_modules=[]: name at least one linear layer, or use all-linear"
        # PEFT takes any other text for a regular expression.
        if isinstance(self.target_modules, str) and self.target_modules != "all-linear":
            yield f"lora.target_modules={self.target_modules}: write a list, [{self.target_modules}], or all-linear"
