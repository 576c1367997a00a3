"""How a grid is written as text. Options: conf/encoder/*.yaml."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

_OLD_PREFIX = "arcft.text.encoders."


@dataclasses.dataclass(kw_only=True)
class EncoderConfig:
    grid: dict[str, Any]
    """The encoder as nested nodes, each with the `name` of a class of arcft.problems.arc.format.encoders and its
    arguments. `_target_`, and the module path that version 0.1.0 wrote, are read as `name`."""

    allow_uneven_tokens: bool = False
    """Warn instead of refusing when the model's tokenizer writes cells in a varying number of tokens."""

    def __post_init__(self) -> None:
        self.grid = _named(self.grid)

    def problems(self) -> Iterator[str]:
        if "name" not in self.grid:
            yield f"encoder.grid={self.grid}: needs a name, e.g. MinimalGridEncoder"


def _named(node: Mapping[str, Any]) -> dict[str, Any]:
    """The node, and those in it, with `name` in place of `_target_`, which wins: only a user writes both."""
    named = {key: _named(value) if isinstance(value, Mapping) else value for key, value in node.items()}
    target = named.pop("_target_", named.get("name"))
    if isinstance(target, str):
        target = target.removeprefix(_OLD_PREFIX)
    return named if target is None else {"name": target} | {k: v for k, v in named.items() if k != "name"}
