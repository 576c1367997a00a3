"""The adapter. Options: conf/lora/*.yaml."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator


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
    """As in PEFT: true (B is zero), gaussian, pissa, olora, ..."""

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
        if isinstance(self.target_modules, list) and not self.target_modules:
            yield "lora.target_modules=[]: name at least one linear layer, or use all-linear"
