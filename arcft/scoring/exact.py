"""Metrics for kinds of problems in which an answer is right or wrong and nothing in between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from arcft.protocols import Answer


class ExactMetrics:
    """A MetricSet of exact matches: one answer is submitted for a test, by default the most frequent one."""

    names: Sequence[str] = ("accuracy", "pass_n", "unanswered", "vote")
    primary: str = "vote"
    score_over_tests: str = ""
    any_correct: str = "pass_n"
    attempts: int = 1
    by_rank: Mapping[str, int | None] = {"pass_n": None, "vote": 1}
    best: Sequence[str] = ("accuracy", "pass_n", "vote")
    grow: Sequence[str] = ("pass_n", "vote")
    closeness: Sequence[str] = ("accuracy",)
    definitions: Mapping[str, str] = {
        "accuracy": "predictions that are exactly right",
        "pass_n": "tests solved by any prediction",
        "unanswered": "predictions without a valid answer",
        "vote": "tests solved by the submitted answer",
    }
    headlines: Mapping[str, str] = {
        "vote": "solved",
        "pass_n": "solved by any prediction",
        "accuracy": "of predictions exact",
        "unanswered": "unanswered",
    }
    compared: Mapping[str, str] = {
        "accuracy": "accuracy",
        "pass_n": "pass\nn",
        "unanswered": "un-\nanswered",
        "vote": "vote",
    }
    charts: Mapping[str, Sequence[str]] = {"Solved": ("pass_n", "vote", "accuracy"), "Answers": ("unanswered",)}
    # From Okabe and Ito, so that colour-blind readers can tell them apart.
    colors: Mapping[str, str] = {
        "pass_n": "#7cc4f0",
        "vote": "#1f86cc",
        "accuracy": "#009e73",
        "unanswered": "#8c8c8c",
    }

    def in_words(self, metrics: Mapping[str, float]) -> str:
        """For example `25.0% of predictions right`."""
        return f"{100 * metrics['accuracy']:.1f}% of predictions right"

    def score_test(
        self, truth: Answer, predictions: Sequence[Answer | None], attempts: Sequence[Answer]
    ) -> dict[str, float]:
        """Shares of the `predictions` that are exact (accuracy) and missing (unanswered; 1 where there is none);
        pass_n and vote are 1 if any prediction, or the first of `attempts`, is exact."""
        exact = [prediction is not None and prediction.key == truth.key for prediction in predictions]
        count = len(predictions)
        return {
            "accuracy": sum(exact) / count if count else 0.0,
            "pass_n": float(any(exact)),
            "unanswered": sum(prediction is None for prediction in predictions) / count if count else 1.0,
            "vote": float(bool(attempts) and attempts[0].key == truth.key),
        }
