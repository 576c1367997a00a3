"""Coverage: the share of tests with a right answer among the candidates, of one run and of several together."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import comb

from arcft.protocols import MetricSet
from arcft.studies.runs import Run


@dataclasses.dataclass(frozen=True)
class Coverage:
    """Shares of tests."""

    submitted: float
    """Solved by what was submitted, on average over runs."""

    candidates: float
    """With a right answer among the candidates, on average over runs: what a perfect selection would solve."""

    pooled: float
    """With a right answer among the candidates of any of `runs` runs, on average over all choices of so many."""

    runs: int


def coverage(runs: Sequence[Run], ids: Sequence[str], metric_set: MetricSet, together: int) -> Coverage | None:
    """With so many runs `together`; None where results of single tests are not known of all runs."""
    names = (metric_set.primary, metric_set.any_correct)
    solved: dict[str, list[NDArray[np.bool_]]] = {name: [] for name in names}
    for run in runs:
        if run.scores is None or not all(name in run.scores.by_test for name in names):
            return None
        for name in names:
            digits = "".join(str(run.scores.by_test[name].get(task, "")) for task in ids)
            solved[name].append(np.frombuffer(digits.encode(), dtype=np.uint8) == ord("1"))
    submitted, candidates = (solved[name] for name in names)
    if not ids or len({len(tests) for tests in (*submitted, *candidates)}) != 1 or not len(submitted[0]):
        return None
    return Coverage(
        submitted=float(np.mean([tests.mean() for tests in submitted])),
        candidates=float(np.mean([tests.mean() for tests in candidates])),
        # Of all choices of so many runs, those of none that has a right answer.
        pooled=float(np.mean(1 - comb(len(runs) - np.sum(candidates, axis=0), together) / comb(len(runs), together))),
        runs=together,
    )
