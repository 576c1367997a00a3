"""Stands in for the module of this name."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass
class LoRARequest:
    """An adapter; different ones have different numbers, from 1."""

    lora_name: str
    lora_int_id: int
    lora_path: str

    def __post_init__(self) -> None:
        assert self.lora_int_id > 0
