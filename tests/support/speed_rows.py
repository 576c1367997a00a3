"""Rows of a speed study with figures that can be worked out by hand."""

from __future__ import annotations

from arcft.config.speed import Setting
from arcft.reporting.speed.rows import Loaded, Outcome, Row, Run


def setting(
    model: str = "small", *, quantization: str = "none", batch: int = 1, input: int = 100, output: int = 11
) -> Setting:
    return Setting(model=model, dtype="auto", quantization=quantization, batch=batch, input=input, output=output)


def measured(of: Setting, *times: tuple[float, float], parameters: int = 1_000_000, load_seconds: float = 10.0) -> Row:
    """Each of `times` is a run: seconds to the first token, and in all."""
    return Row(
        setting=of,
        outcome="measured",
        runs=tuple(Run(first_token_seconds=first, seconds=seconds) for first, seconds in times),
        peak_bytes=2**30,
        loaded=Loaded(seconds=load_seconds, parameters=parameters, dtype="float32", decoder="arcft's decoder"),
    )


def missing(of: Setting, outcome: Outcome, reason: str) -> Row:
    return Row(setting=of, outcome=outcome, reason=reason)
