"""The learning-rate factor: exact tables, bounds for random settings, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arcft.config.scheduler import SchedulerConfig
from arcft.config.scheduler.constant import constant_factor
from arcft.config.scheduler.cosine import cosine_factor
from arcft.config.scheduler.cosine_with_restarts import CosineWithRestartsConfig, cosine_with_restarts_factor
from arcft.config.scheduler.linear import LinearConfig, linear_factor
from arcft.config.scheduler.warmup_stable_decay import WarmupStableDecayConfig, warmup_stable_decay_factor
from arcft.config.schema import options


def restarts(steps: int, **settings: float) -> list[float]:
    return [round(cosine_with_restarts_factor(step, **settings), 6) for step in range(steps)]


def test_two_cycles_with_warmup_and_floor() -> None:
    # Cycles of 5 steps, one of them (round(0.2 * 5)) warm-up; peaks 1 and 0.5; 4 steps from the peak to the floor.
    half = math.sqrt(2) / 2
    expected = [0.1, 1.0, 0.1 + 0.45 * (1 + half), 0.55, 0.1 + 0.45 * (1 - half)]
    expected += [0.1, 0.5, 0.1 + 0.2 * (1 + half), 0.3, 0.1 + 0.2 * (1 - half)]
    expected += [0.1, 0.1]
    table = restarts(12, total_steps=10, num_cycles=2, decay=0.5, warmup_ratio=0.2, min_lr_ratio=0.1)
    assert table == [round(value, 6) for value in expected]


def test_four_cycles_of_uneven_length_without_warmup() -> None:
    # Boundaries round(k * 10 / 4): 0, 2 (2.5 rounds to even), 5, 8 (7.5 rounds to even), 10.
    d = 0.707
    third = (0.75, 0.25)  # (1 + cos(pi / 3)) / 2 and (1 + cos(2 pi / 3)) / 2
    expected = [1, 0.5, d, d * third[0], d * third[1], d**2, d**2 * third[0], d**2 * third[1], d**3, d**3 * 0.5, 0, 0]
    table = restarts(12, total_steps=10, num_cycles=4, decay=d, warmup_ratio=0.0, min_lr_ratio=0.0)
    assert table == [round(value, 6) for value in expected]


def test_three_cycles_of_even_peaks() -> None:
    # Cycles of 4 steps, two of them warm-up, no decay.
    table = restarts(13, total_steps=12, num_cycles=3, decay=1.0, warmup_ratio=0.5, min_lr_ratio=0.0)
    assert table == [0.0, 0.5, 1.0, 0.5] * 3 + [0.0]


def test_one_cycle_is_the_cosine_schedule() -> None:
    options = {"total_steps": 8, "warmup_ratio": 0.25, "min_lr_ratio": 0.2}
    expected = [0.2, 0.6, 1.0, *(0.2 + 0.4 * (1 + math.cos(math.pi * i / 6)) for i in range(1, 6)), 0.2]
    assert [cosine_factor(step, **options) for step in range(9)] == pytest.approx(expected)


def test_linear_and_constant() -> None:
    options = {"total_steps": 5, "warmup_ratio": 0.4, "min_lr_ratio": 0.1}
    assert [linear_factor(step, **options) for step in range(7)] == pytest.approx([0.1, 0.55, 1.0, 0.7, 0.4, 0.1, 0.1])
    assert [constant_factor(step, **options) for step in range(7)] == pytest.approx([0.1, 0.55, 1, 1, 1, 1, 1])


def test_warmup_stable_decay() -> None:
    # 2 of 10 steps climb, 4 fall: 3/4, 2/4 and 1/4 of the way are left at steps 7, 8 and 9.
    options = {"total_steps": 10, "warmup_ratio": 0.2, "decay_ratio": 0.4, "min_lr_ratio": 0.2}
    expected = [0.2, 0.6, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2, 0.2]
    assert [warmup_stable_decay_factor(step, **options) for step in range(12)] == pytest.approx(expected)
    # The whole run, without a stable part, and a decay that rounds to no step at all.
    options |= {"warmup_ratio": 0.5, "decay_ratio": 0.5, "total_steps": 4, "min_lr_ratio": 0.0}
    assert [warmup_stable_decay_factor(step, **options) for step in range(6)] == [0, 0.5, 1, 0.5, 0, 0]
    options |= {"warmup_ratio": 0.0, "decay_ratio": 0.1}
    assert [warmup_stable_decay_factor(step, **options) for step in range(6)] == [1, 1, 1, 1, 0, 0]
    # round(1.5) + round(3.5) is one more than there are: the warm-up has its 2, the decay 3 of its 4.
    options |= {"total_steps": 5, "warmup_ratio": 0.3, "decay_ratio": 0.7}
    assert [warmup_stable_decay_factor(step, **options) for step in range(6)] == pytest.approx(
        [0, 0.5, 1, 2 / 3, 1 / 3, 0]
    )


def test_warmup_stable_decay_of_one_share_is_the_linear_schedule() -> None:
    for warmup_ratio in (0.0, 0.25, 0.8):
        options = {"total_steps": 20, "warmup_ratio": warmup_ratio, "min_lr_ratio": 0.1}
        for step in range(22):
            assert warmup_stable_decay_factor(step, decay_ratio=1 - warmup_ratio, **options) == pytest.approx(
                linear_factor(step, **options)
            )


@pytest.mark.parametrize("decay_ratio", [0.0, 0.91, math.nan])
def test_a_decay_that_is_none_or_too_long_is_refused(decay_ratio: float) -> None:
    with pytest.raises(ValueError, match=f"^decay_ratio={decay_ratio}"):
        warmup_stable_decay_factor(0, total_steps=9, decay_ratio=decay_ratio, warmup_ratio=0.1, min_lr_ratio=0)


@settings(max_examples=200, deadline=None)
@given(
    total_steps=st.integers(1, 400),
    num_cycles=st.integers(1, 9),
    decay=st.floats(0.3, 1.0),
    warmup_ratio=st.floats(0, 0.99),
    floor=st.floats(0, 1),
    data=st.data(),
)
def test_factors_stay_between_floor_and_peak(
    total_steps: int, num_cycles: int, decay: float, warmup_ratio: float, floor: float, data: st.DataObject
) -> None:
    min_lr_ratio = floor * decay ** (num_cycles - 1)
    step = data.draw(st.integers(0, total_steps + 3))
    factor = cosine_with_restarts_factor(
        step,
        total_steps=total_steps,
        num_cycles=num_cycles,
        decay=decay,
        warmup_ratio=warmup_ratio,
        min_lr_ratio=min_lr_ratio,
    )
    cycle = next((k for k in range(num_cycles) if step < round((k + 1) * total_steps / num_cycles)), None)
    peak = min_lr_ratio if cycle is None else decay**cycle
    assert min_lr_ratio - 1e-12 <= factor <= peak + 1e-12


GOOD = {"total_steps": 10, "num_cycles": 2, "decay": 0.5, "warmup_ratio": 0.1, "min_lr_ratio": 0.1}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("total_steps", 0),
        ("num_cycles", 0),
        ("decay", 0.0),
        ("decay", 1.1),
        ("warmup_ratio", 1.0),
        ("warmup_ratio", -0.1),
        ("warmup_ratio", math.nan),
        ("min_lr_ratio", 0.51),
        ("min_lr_ratio", -0.01),
    ],
)
def test_values_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"^{name}={value}"):
        cosine_with_restarts_factor(0, **(GOOD | {name: value}))


def test_a_negative_step_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^step=-1"):
        cosine_with_restarts_factor(-1, **GOOD)
    with pytest.raises(ValueError, match=r"^min_lr_ratio=1\.5"):
        linear_factor(0, total_steps=3, warmup_ratio=0, min_lr_ratio=1.5)


def test_the_configured_factor_drives_an_optimizer() -> None:
    config = CosineWithRestartsConfig(num_cycles=2, decay=0.5, warmup_ratio=0.2, min_lr_ratio=0.1)
    factor = config.factors(10)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    rates = []
    for _ in range(10):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == [2.0 * factor(step) for step in range(10)]
    assert rates[6] == 1.0


@pytest.mark.parametrize("name", ["linear", "cosine", "constant"])
def test_every_schedule_of_one_cycle(name: str) -> None:
    factor = options(SchedulerConfig)[name](warmup_ratio=0.5, min_lr_ratio=0.2).factors(4)
    assert [factor(0), factor(1), factor(2)] == pytest.approx([0.2, 0.6, 1.0])


def test_factors_passes_the_decay_on() -> None:
    config = WarmupStableDecayConfig(warmup_ratio=0, min_lr_ratio=0.5, decay_ratio=0.5)
    assert [config.factors(4)(step) for step in range(5)] == [1, 1, 1, 0.75, 0.5]


def test_factors_refuses_at_once() -> None:
    config = CosineWithRestartsConfig(num_cycles=3, decay=0.5, warmup_ratio=0, min_lr_ratio=0.3)
    with pytest.raises(ValueError, match=r"min_lr_ratio=0\.3"):
        config.factors(10)


def test_warnings_name_the_cycle() -> None:
    def warnings(total_steps: int, num_cycles: int, warmup_ratio: float) -> list[str]:
        config = CosineWithRestartsConfig(num_cycles=num_cycles, decay=1.0, warmup_ratio=warmup_ratio, min_lr_ratio=0)
        return config.warnings(total_steps)

    assert warnings(100, 4, 0.1) == []
    assert warnings(8, 2, 0.1) == [
        "scheduler.warmup_ratio=0.1: the warm-up of cycle 1 of 2 (4 steps) rounds to none",
        "scheduler.warmup_ratio=0.1: the warm-up of cycle 2 of 2 (4 steps) rounds to none",
    ]
    assert warnings(2, 2, 0.9) == [
        "scheduler.warmup_ratio=0.9: cycle 1 of 2 (1 steps) ends in its warm-up and never reaches its peak",
        "scheduler.warmup_ratio=0.9: cycle 2 of 2 (1 steps) ends in its warm-up and never reaches its peak",
    ]
    assert warnings(1, 2, 0.0) == ["scheduler.num_cycles=2: cycle 1 of 2 has no step in training.max_steps=1"]
    linear = LinearConfig(warmup_ratio=0.05, min_lr_ratio=0)
    assert linear.warnings(5) == ["scheduler.warmup_ratio=0.05: the warm-up of the run (5 steps) rounds to none"]
    stable = WarmupStableDecayConfig(warmup_ratio=0, min_lr_ratio=0, decay_ratio=0.1)
    assert stable.warnings(4) == ["scheduler.decay_ratio=0.1: the decay of the run (4 steps) rounds to none"]
    assert stable.warnings(40) == []
