"""The size of each model's workload."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from adaptation.prepare import Plan

RANDOM_ARCHITECTURES = ("qwen2_5_0_5b", "qwen3_4b")
# The reference setups are slow with large models; tasks are ordered so that the first few have average length.
FEWER_ON_GPU: Mapping[str, int] = MappingProxyType({"a": 2, "b": 2, "c": 2, "d1": 2, "d2": 4, "d4": 4})


def tiny(*, quick: bool) -> Plan:
    """Five blocks, for five paired comparisons. Positions are consecutive, because `generate` supports no others."""
    return Plan(
        model="tiny",
        overrides=("model.positions=none",),
        note="consecutive positions",
        dtype="float32",
        max_tokens=512 if quick else 1024,
        blocks=1 if quick else 5,
        tasks=4 if quick else 8,
        fewer={"a": 1 if quick else 2},
        steps=4 if quick else 16,
        predictions=2 if quick else 4,
    )


def smollm2(path: Path) -> Plan:
    """Half an hour on two cores."""
    return Plan(
        model="smollm2_135m",
        overrides=(f"model.path='{path}'",),
        note=f"weights of {path.name}",
        dtype="bfloat16",
        max_tokens=512,
        blocks=1,
        tasks=4,
        steps=32,
        predictions=4,
    )


def on_gpu(model: str) -> Plan:
    """Rank 256 and 128 steps, as in the best published adaptation to ARC tasks (NVARC 2025)."""
    return Plan(
        model=model,
        overrides=("lora.r=256", "prompt=grid_only"),
        dtype="bfloat16",
        max_tokens=2048,
        blocks=1,
        tasks=16,
        fewer=FEWER_ON_GPU,
        steps=128,
        predictions=8,
        batch_size=64,
    )


def growth(*, quick: bool) -> Plan:
    """Many small tasks with little work each: what remains is the engine's own overhead."""
    return Plan(
        model="tiny",
        dtype="float32",
        max_tokens=1536,
        split="all",
        blocks=1,
        tasks=40 if quick else 400,
        steps=2,
        predictions=1,
        new_tokens=16,
    )
