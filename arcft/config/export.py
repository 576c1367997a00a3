"""The whole config of `arcft export`. conf/export.yaml."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Literal


@dataclasses.dataclass(kw_only=True)
class ExportConfig:
    checkpoint: str | None = None
    """A run (its last complete checkpoint) or a checkpoint."""

    format: Literal["merged", "adapter", "gguf"] = "merged"
    """`merged`: a folder of weights that transformers loads; `adapter`: PEFT's, on a base model; `gguf`: a file for
    llama.cpp."""

    out: str | None = None
    """The new folder; it must not exist."""

    dtype: Literal["float32", "bfloat16", "float16", "q8_0"] = "float32"
    """Of the written weights; an adapter itself is always float32. `q8_0`, 8 bits in blocks of 32, is GGUF's."""

    base_model: str | None = None
    """The current path of the checkpoint's base model, if it has moved since training; its fingerprint must match."""

    push_to_hub: str | None = None
    """Also upload the folder to this repository of the hub, OWNER/NAME."""

    private: bool = True
    """Whether a repository that push_to_hub creates is private."""

    def problems(self) -> Iterator[str]:
        if self.checkpoint is None:
            yield "checkpoint is not set: give a run or a checkpoint, checkpoint=RUN"
        if self.out is None:
            yield "out is not set: give the folder to write, out=DIR"
        if self.dtype == "q8_0" and self.format != "gguf":
            yield f"dtype=q8_0 with format={self.format}: only GGUF has it; use float32, bfloat16 or float16"
        if self.push_to_hub is not None and self.push_to_hub.count("/") != 1:
            yield f"push_to_hub={self.push_to_hub}: a repository is OWNER/NAME"
        if self.push_to_hub is None and not self.private:
            yield "private=false has no effect without push_to_hub=OWNER/NAME"
