"""What `arcft speed` measures: every combination of its lists. conf/speed/speed.yaml."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from arcft.config.duration import DurationError, parse_duration

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Quantization = Literal["none", "int8", "nf4", "fp4"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """One combination to be measured."""

    model: str
    dtype: str
    quantization: str

    batch: int
    """Prompts completed side by side."""

    input: int
    """Tokens of each prompt."""

    output: int
    """Tokens written after each."""

    @property
    def model_and_precision(self) -> tuple[str, str, str]:
        """Model, dtype and quantisation: what one process loads."""
        return self.model, self.dtype, self.quantization


@dataclasses.dataclass(kw_only=True)
class SpeedConfig:
    """Each of the first six keys takes a value or a list."""

    model: list[str] | str | None = None
    """Options of conf/model, hub ids, folders and .gguf files."""

    dtype: list[Dtype] | Dtype
    """Arithmetic of the forward passes, as in inference.dtype."""

    quantization: list[Quantization] | Quantization
    """As in model.quantization."""

    batch: list[int] | int
    input: list[int] | int
    output: list[int] | int

    paths: dict[str, str] | None = None
    """By option of conf/model, the folder or .gguf file to read in place of its hub id."""

    repeats: int = 3
    """Runs of each setting; prompts of each size are first read once without counting it."""

    clock: Literal["wall", "processor"] = "wall"
    """`processor`: CPU time of the process, summed over threads. On a busy machine, with one thread, it approximates
    the wall time on an idle one."""

    max_time: str = "10m"
    """Time limit per setting. One that takes longer is reported as such, and the larger ones are left out."""

    budget: str | None = None
    """Time for all samples; which settings fit is then reported."""

    samples: int | None = None
    """Samples to complete within the budget."""

    predictions: int = 1
    """Completions of each sample."""

    resume: str | None = None
    """The folder of a study to resume."""

    dry_run: bool = False
    """Check everything, list the settings, and exit."""

    @property
    def axes(self) -> dict[str, list[Any]]:
        """The values of each axis, in the order of the fields of Setting."""
        found = {}
        for field in dataclasses.fields(Setting):
            value = getattr(self, field.name)
            found[field.name] = list(value) if isinstance(value, list) else [] if value is None else [value]
        return found

    def settings(self) -> list[Setting]:
        """Every combination; the first axis changes slowest."""
        axes = self.axes
        return [Setting(**dict(zip(axes, values, strict=True))) for values in itertools.product(*axes.values())]

    def problems(self) -> Iterator[str]:
        for key, values in self.axes.items():
            yield from _axis_problems(key, values)
        if self.repeats < 1:
            yield f"repeats={self.repeats}: at least 1"
        for key in ("max_time", "budget"):
            value = getattr(self, key)
            if value is not None:
                try:
                    parse_duration(value)
                except DurationError as error:
                    yield f"{key}={value}: {error}"
        for key in ("samples", "predictions"):
            value = getattr(self, key)
            if value is not None and value < 1:
                yield f"{key}={value}: at least 1"
        if self.budget is not None and self.samples is None:
            yield f"budget={self.budget} needs samples=, how many have to be completed within that time"
        if self.samples is not None and self.budget is None:
            yield f"samples={self.samples} needs budget=, the time there is for them, e.g. budget=9h"
        if self.predictions != 1 and self.samples is None:
            yield f"predictions={self.predictions} has no effect without budget= and samples=; drop it"
        for name in self.paths or {}:
            if name not in self.axes["model"]:
                yield f"paths.{name}: {name} is not among model={self.axes['model']}; add it there, or drop the path"


def _axis_problems(key: str, values: Sequence[Any]) -> Iterator[str]:
    if key == "model" and not values:
        yield "model is not set: name options of conf/model, folders or .gguf files, e.g. model=[tiny,smollm2_135m]"
    elif not values:
        yield f"{key}=[]: give at least one value"
    twice = sorted({str(value) for value in values if values.count(value) > 1})
    if twice:
        yield f"{key}: {', '.join(twice)} is named twice; each value is measured once"
    for value in values:
        if isinstance(value, int) and value < 1:
            yield f"{key}={value}: at least 1"
        if key == "model" and value == "":
            yield "model: one of the names is empty (an unset shell variable?); drop it, or give a path"
