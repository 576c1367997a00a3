"""How a grid is written as text. Options: conf/encoder/*.yaml."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any


@dataclasses.dataclass(kw_only=True)
class EncoderConfig:
    grid: dict[str, Any]
    """The encoder as nested `_target_` nodes, each a class of arcft.problems.arc.format.encoders."""

    allow_uneven_tokens: bool = False
    """Warn instead of refusing when the model's tokenizer writes cells in a varying number of tokens."""

    def problems(self) -> Iterator[str]:
        if "_target_" not in self.grid:
            yield f"encoder.grid={self.grid}: needs a _target_, e.g. MinimalGridEncoder"
