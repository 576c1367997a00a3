"""What a training run took, from its history."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def training_costs(history: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """`seconds` of training and evaluations together, `tokens`, and `tokens_per_second` of training; empty where the
    history has no throughput.

    Of a run that was stopped and resumed the time of all its parts, but for steps that were made twice.
    """
    tokens, training, evaluating = 0.0, 0.0, 0.0
    for line in history:
        rate = line.get("tokens_per_second")
        if rate:
            training += (line["tokens"] - tokens) / rate
            tokens = line["tokens"]
        evaluating += line.get("eval_seconds", 0.0)
    if training == 0:
        return {}
    return {"seconds": training + evaluating, "tokens": tokens, "tokens_per_second": tokens / training}
