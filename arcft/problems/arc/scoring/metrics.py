"""Metrics of ARC: how many predicted grids are right, and how close the others come."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from arcft.problems.arc.task import Grid, as_grid_answer
from arcft.protocols import Answer
from arcft.reporting.words import percent

METRICS = (
    "accuracy",
    "correct_pixels",
    "correct_size",
    "max_correct_pixels",
    "any_correct_size",
    "pass_n",
    "unanswered",
    "vote_1",
    "vote_2",
)


class ArcMetrics:
    """The MetricSet of ARC: two attempts a test, a task is solved if one of them is right in every test."""

    names: Sequence[str] = METRICS
    primary: str = "vote_2"
    score_over_tests: str = "how Kaggle scores"
    any_correct: str = "pass_n"
    attempts: int = 2
    by_rank: Mapping[str, int | None] = {"pass_n": None, "vote_1": 1, "vote_2": 2}
    best: Sequence[str] = tuple(name for name in METRICS if name not in ("any_correct_size", "unanswered"))
    grow: Sequence[str] = ("max_correct_pixels", "any_correct_size", "pass_n", "vote_1", "vote_2")
    closeness: Sequence[str] = ("accuracy", "max_correct_pixels")
    definitions: Mapping[str, str] = {
        "accuracy": "predictions that are exactly right",
        "correct_pixels": "right cells; none if the size is wrong",
        "correct_size": "predictions of the right size",
        "max_correct_pixels": "right cells of the best prediction",
        "any_correct_size": "tests with a grid of the right size",
        "pass_n": "tests solved by any prediction",
        "unanswered": "predictions without a valid grid",
        "vote_1": "tests solved by the first attempt",
        "vote_2": "tests solved by either of two attempts",
    }
    headlines: Mapping[str, str] = {
        "vote_2": "solved in two attempts",
        "pass_n": "solved by any prediction",
        "accuracy": "of predictions exact",
        "correct_pixels": "of pixels right",
        "correct_size": "of sizes right",
        "unanswered": "unanswered",
    }
    compared: Mapping[str, str] = {
        "accuracy": "accuracy",
        "correct_pixels": "correct\npixels",
        "correct_size": "correct\nsize",
        "pass_n": "pass\nn",
        "unanswered": "un-\nanswered",
        "vote_1": "vote\n1",
        "vote_2": "vote\n2",
    }
    charts: Mapping[str, Sequence[str]] = {
        "Solved": ("pass_n", "vote_2", "accuracy"),
        "Grids": ("correct_size", "correct_pixels", "unanswered"),
    }
    # From Okabe and Ito, so that colour-blind readers can tell them apart.
    colors: Mapping[str, str] = {
        "pass_n": "#7cc4f0",
        "vote_1": "#cc79a7",
        "vote_2": "#1f86cc",
        "accuracy": "#009e73",
        "correct_size": "#cc79a7",
        "correct_pixels": "#d55e00",
        "unanswered": "#8c8c8c",
    }

    def in_words(self, metrics: Mapping[str, float]) -> str:
        """For example `25.0% of predictions right, best prediction 75.0% of cells`."""
        words = f"{percent(metrics['accuracy'])} of predictions right"
        if metrics["accuracy"] < 1:
            words += f", best prediction {percent(metrics['max_correct_pixels'])} of cells"
        return words

    def score_test(
        self, truth: Answer, predictions: Sequence[Answer | None], attempts: Sequence[Answer]
    ) -> dict[str, float]:
        """Score the k predictions of one test, and the `attempts` selected from them, against the true output.

        - accuracy, correct_size: share of the k that are exact, that have the right shape
        - correct_pixels: mean over the k of the share of equal cells; 0 for one of another shape
        - max_correct_pixels, any_correct_size: the best of the k
        - pass_n: 1 if any is exact; vote_1, vote_2: 1 if the first, one of the first two `attempts` is
        - unanswered: share without a valid grid; 1, and all else 0, if there is no prediction at all
        """
        true = as_grid_answer(truth).grid
        grids = [None if prediction is None else as_grid_answer(prediction).grid for prediction in predictions]
        pixels = [_share_of_equal_cells(true, grid) for grid in grids]
        sizes = [grid is not None and grid.shape == true.shape for grid in grids]
        missing = [grid is None for grid in grids] or [True]
        exact = [share == 1 for share in pixels]
        exact_attempts = [attempt.key == truth.key for attempt in attempts]
        return {
            "accuracy": _mean(exact),
            "correct_pixels": _mean(pixels),
            "correct_size": _mean(sizes),
            "max_correct_pixels": max(pixels, default=0.0),
            "any_correct_size": float(any(sizes)),
            "pass_n": float(any(exact)),
            "unanswered": _mean(missing),
            "vote_1": float(any(exact_attempts[:1])),
            "vote_2": float(any(exact_attempts[:2])),
        }


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0


def _share_of_equal_cells(truth: Grid, grid: Grid | None) -> float:
    if grid is None or grid.shape != truth.shape:
        return 0.0
    return float(np.mean(grid == truth))
