"""Numbers and metrics in words, the same in report and pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence

from arcft.protocols import MetricSet
from arcft.reporting.outcomes import Result
from arcft.scoring.metrics import Scores, wilson_interval


def count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + "s" * (number != 1)


def spelled(number: int) -> str:
    """A small number as a word."""
    words = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    return words[number] if number < len(words) else f"{number:,}"


def percent(value: float) -> str:
    """A fraction as a percentage with one decimal; 0 and 1 are exact and need none."""
    return f"{100 * value:.0f}%" if value in (0, 1) else f"{100 * value:.1f}%"


def plus_minus(error: float) -> str:
    """A standard error in points of a hundred; nothing where it is not known."""
    if math.isnan(error):
        return ""
    return "± <0.1" if 0 < 100 * error < 0.05 else f"± {100 * error:.1f}"


def spread(value: float, error: float, number: int) -> str:
    """How certain the mean `value` of `number` values from 0 to 1 is: its standard error as `plus_minus` has it, or
    Wilson's 95% interval, such as `(0–49%)`, where all are equal and the error is 0."""
    return interval(value, number) if error == 0 and number > 1 else plus_minus(error)


def interval(value: float, number: int) -> str:
    """Wilson's 95% interval of a mean of `number` values from 0 to 1, e.g. `(2.0–43%)`."""
    low, high = wilson_interval(value, number)
    return f"({_bound(low)}–{_bound(high)}%)"


def _bound(share: float) -> str:
    return f"{100 * share:.1f}" if 0 < share < 0.1 else f"{100 * share:.0f}"


SPREAD = "± is the standard error over tasks, a range is a 95% interval"


def over_tests(scores: Scores, metric_set: MetricSet) -> str:
    """The primary metric over all tests, e.g. `over tests: 1 of 9 solved, 11.1% (2.0–43%); this is how Kaggle scores`;
    empty if it is not known."""
    if metric_set.primary not in scores.over_tests:
        return ""
    share = scores.over_tests[metric_set.primary]
    solved = f"{round(share * scores.num_tests):,} of {count(scores.num_tests, 'test')} solved"
    named = f"; this is {metric_set.score_over_tests}" if metric_set.score_over_tests else ""
    return f"{metric_set.primary} over tests: {solved}, {percent(share)} {interval(share, scores.num_tests)}{named}"


def points(difference: float) -> str:
    """A difference of fractions in points of a hundred, with its sign."""
    return "0" if difference == 0 else f"{100 * difference:+.1f}"


def duration(seconds: float) -> str:
    """A time of any length in two units at most, e.g. `0.32 s`, `4.1 s`, `12 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 0.995:
        return f"{seconds:.2f} s"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    large, small, names = (whole // 60, whole % 60, ("min", "s"))
    if whole >= 3600:
        minutes = round(seconds / 60)
        large, small, names = (minutes // 60, minutes % 60, ("h", "min"))
    return f"{large:,} {names[0]}" + (f" {small} {names[1]}" if small else "")


def describe(results: Sequence[Result]) -> str:
    """The size of an evaluation, e.g. `400 tasks, 419 tests, 8 predictions a test`."""
    tests = [len(group) for result in results for group in result.predictions]
    low, high = min(tests, default=0), max(tests, default=0)
    each = count(low, "prediction") if low == high else f"{low} to {high} predictions"
    return f"{count(len(results), 'task')}, {count(len(tests), 'test')}, {each} a test"
