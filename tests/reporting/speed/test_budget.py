"""The budget question: hours, samples and measured times to what fits, against numbers worked out by hand."""

from __future__ import annotations

import pytest

from arcft.reporting.speed.budget import (
    Budget,
    interpolate_length,
    longest_output,
    same_but_for_output,
    seconds_needed,
    share_of_budget,
)
from tests.support.speed_rows import measured, missing, setting

NINE_HOURS = Budget(seconds=9 * 3600, samples=1300)


def test_nine_hours_are_24_9_seconds_per_sample() -> None:
    assert NINE_HOURS.seconds_per_sample == pytest.approx(24.923, abs=1e-3)


@pytest.mark.parametrize(
    ("budget", "batch", "batches"),
    [
        (NINE_HOURS, 1, 1300),
        (NINE_HOURS, 8, 163),  # 162 full ones hold 1296
        (NINE_HOURS, 2000, 1),
        (Budget(seconds=1, samples=1300, predictions=8), 8, 1300),
        (Budget(seconds=1, samples=3, predictions=3), 8, 2),
    ],
)
def test_the_last_batch_counts_whole(budget: Budget, batch: int, batches: int) -> None:
    assert budget.batches(batch) == batches


def test_the_model_is_loaded_once() -> None:
    assert seconds_needed(NINE_HOURS, batch=8, batch_seconds=2.0, load_seconds=10.0) == 10 + 163 * 2


def test_the_share_of_the_budget() -> None:
    # 100 batches of 8 s and 10 s of loading, in 1620 s.
    row = measured(setting(batch=4), (1.0, 8.0), (1.0, 9.0), (1.0, 7.0))
    assert share_of_budget(Budget(seconds=1620.0, samples=400), row) == 0.5


@pytest.mark.parametrize(
    ("allowed", "length", "is_longest"),
    [
        (0.5, 0, False),  # less than the first token
        (1.0, 1, False),
        (2.0, 6, False),  # half way from 1 to 11
        (3.0, 11, False),
        (3.999, 15, False),  # 4.995 of the ten tokens from 11 to 21
        (5.0, 21, True),
        (99.0, 21, True),
    ],
)
def test_lengths_between_those_measured(allowed: float, length: int, is_longest: bool) -> None:
    assert interpolate_length({1: 1.0, 11: 3.0, 21: 5.0}, allowed) == (length, is_longest)


def test_a_longer_output_that_seems_faster_is_not_believed() -> None:
    assert interpolate_length({1: 1.0, 11: 4.0, 21: 3.5}, 3.7) == (10, False)
    assert interpolate_length({1: 1.0, 11: 4.0, 21: 3.5}, 4.0) == (21, True)


def test_the_longest_output_of_measured_rows() -> None:
    # First token after 2 s, then a token a second: 11 tokens in 12 s, 21 in 22 s. 100 samples and 10 s of loading.
    rows = [measured(setting(output=21), (2.0, 22.0)), measured(setting(output=11), (2.0, 12.0))]
    assert longest_output(Budget(seconds=10 + 100 * 7.5, samples=100), rows).tokens == 6
    assert longest_output(Budget(seconds=10 + 100 * 15.5, samples=100), rows).tokens == 14
    far = longest_output(Budget(seconds=10 + 100 * 40.0, samples=100), rows)
    assert (far.tokens, far.is_longest_measured) == (21, True)
    assert longest_output(Budget(seconds=10 + 100 * 1.5, samples=100), rows).tokens == 0
    assert longest_output(Budget(seconds=5, samples=100), rows).tokens == 0


def test_only_outputs_are_interpolated() -> None:
    rows = [
        measured(setting(output=11), (1.0, 2.0)),
        measured(setting(output=21), (1.0, 3.0)),
        measured(setting(batch=8), (1.0, 2.0)),
        measured(setting(quantization="nf4"), (1.0, 2.0)),
        missing(setting(output=31), "too slow", "it took long"),
    ]
    found = same_but_for_output(rows)
    assert {key: [row.setting.output for row in own] for key, own in found.items()} == {
        ("small, float32", 1, 100): [11, 21],
        ("small, float32", 8, 100): [11],
        ("small, float32, nf4", 1, 100): [11],
    }
