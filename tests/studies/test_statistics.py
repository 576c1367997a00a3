"""The statistics of studies: against cases worked by hand, and against simulated studies whose truth is known."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from arcft.scoring.metrics import wilson, wilson_interval
from arcft.studies.statistics import (
    RunNoise,
    are_enough,
    difference,
    difference_over_seeds,
    holm,
    mean_estimate,
    run_noise,
    spread,
    summarise,
)
from tests.support.study_runs import simulate

NO_NOISE = RunNoise(np.array(0.0), np.array(0.0), np.array(0.0))


def test_components_of_two_seeds_and_three_tasks() -> None:
    """x = [[1, 1, 0], [1, 0, 0]]: means of runs 2/3 and 1/3, of tasks 1, 1/2 and 0."""
    sample = summarise(np.array([[1.0, 1, 0], [1, 0, 0]]))
    assert sample.tasks.tolist() == [1, 0.5, 0]
    assert sample.between == pytest.approx(1 / 18)  # ((1/6)^2 + (1/6)^2) / 1
    # Residuals x - run - task + mean: (-1/6, 1/3, -1/6) and its negative; their squares sum to 1/3, over 1 * 2, over 3.
    assert sample.rest == pytest.approx(1 / 18)
    noise = run_noise([sample])
    # The mean is 1/2; with half a task on either side still, so p (1 - p) is 1/4.
    assert (noise.between, noise.rest, noise.degrees) == pytest.approx((4 / 18, 4 / 18, 1))


def test_noise_is_that_of_settings_with_several_seeds() -> None:
    one = summarise(np.array([[1.0, 1, 0, 0]]))
    two = summarise(np.array([[1.0, 1, 0, 0], [1, 0, 0, 0]]))
    alone, both = run_noise([two]), run_noise([one, two])
    assert both == alone
    assert run_noise([one]).degrees == 0


def test_a_difference_by_hand() -> None:
    """Of 10 tasks, the setting solves 3 that the baseline does not, and 1 the other way round."""
    setting = summarise(np.array([[1.0, 1, 1, 0, 1, 1, 0, 0, 0, 0]]))
    baseline = summarise(np.array([[0.0, 0, 0, 1, 1, 1, 0, 0, 0, 0]]))
    found = difference(setting, baseline, NO_NOISE)
    # Agresti and Min: 12 pairs, 3.5 and 1.5 of them discordant.
    error = math.sqrt((3.5 + 1.5 - (3.5 - 1.5) ** 2 / 12) / 12**2)
    assert found.value == pytest.approx(0.2)
    reach = stats.t.ppf(0.975, 9) * error
    assert (found.low, found.high) == pytest.approx((2 / 12 - reach, 2 / 12 + reach))
    assert found.p == pytest.approx(2 * stats.t.sf(2 / 12 / error, 9))


def test_agreement_on_few_tasks_proves_nothing() -> None:
    same = summarise(np.zeros((1, 4)))
    found = difference(same, same, NO_NOISE)
    assert (found.value, found.p) == (0, 1)
    assert found.low < -0.5
    assert found.high > 0.5
    solved = difference(summarise(np.ones((1, 4))), same, NO_NOISE)
    assert solved.p > 0.05
    assert solved.high == 1


def test_the_difference_of_what_is_no_rate_may_be_small() -> None:
    rng = np.random.default_rng(0)
    baseline = rng.random((1, 8))
    setting = summarise(baseline + 0.02 + 0.001 * rng.random((1, 8)))
    found = difference(setting, summarise(baseline), NO_NOISE, is_rate=False)
    assert found.p < 0.01
    assert difference(setting, summarise(baseline), NO_NOISE).p > 0.5


def test_runs_widen_the_interval() -> None:
    """Nearly all of the variance lies between runs: two runs of 0.55 and 0.45 against two of 0.5."""
    scores = np.zeros((2, 2, 400))
    scores[0, 0, :220] = scores[0, 1, :180] = 1
    scores[1, :, :200] = 1
    samples = [summarise(one) for one in scores]
    noise = run_noise(samples)
    # A variance of 0.1^2 / 2 in one of two settings, and none in the other; p (1 - p) is 1/4 for both.
    assert noise.between == pytest.approx(0.01)
    assert noise.degrees == pytest.approx(2)
    found = difference(samples[0], samples[1], noise)
    assert (found.value, found.p) == (0, 1)
    # The variance of the difference is 0.01 / 4 * (1 / 2 + 1 / 2); the median of chi2 with 2 degrees is 2 log 2.
    assert found.high == pytest.approx(stats.t.ppf(0.975, 2) * 0.05 / math.sqrt(math.log(2)), rel=0.1)


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),
        ([0.5], [0.5]),
        ([0.6, 0.7], [1, 1]),
        ([0.02, math.nan, 0.04], [0.04, math.nan, 0.04]),
    ],
)
def test_holm(p: list[float], expected: list[float]) -> None:
    assert holm(np.array(p)) == pytest.approx(expected, nan_ok=True)


def test_wilson_is_that_of_reports_and_of_scipy() -> None:
    quantile = np.array(stats.norm.ppf(0.975))
    for solved, number in ((0, 4), (3, 7), (100, 400), (5, 5)):
        mine = [float(one) for one in wilson(np.array(solved / number), np.array(number), quantile)]
        theirs = stats.binomtest(solved, number).proportion_ci(method="wilson")
        assert mine == pytest.approx([theirs.low, theirs.high], abs=1e-12)
        assert mine == pytest.approx(wilson_interval(solved / number, number), abs=1e-12)
    found = mean_estimate(summarise(np.zeros((3, 4))), NO_NOISE)
    assert (float(found.low), float(found.high)) == pytest.approx(wilson_interval(0, 4))


def test_a_loss_is_compared_over_seeds() -> None:
    found = difference_over_seeds([1.0, 1.2], [1.5, 1.7])
    assert found.value == pytest.approx(-0.5)
    # Both have a variance of 0.02, so Welch's degrees of freedom are 2.
    reach = stats.t.ppf(0.975, 2) * math.sqrt(0.02)
    assert (found.low, found.high) == pytest.approx((-0.5 - reach, -0.5 + reach))
    assert math.isnan(difference_over_seeds([1.0], [1.5, 1.7]).p)


def estimated(scores: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Lower and upper ends and p-values of the differences to the first setting, [comparisons, studies]."""
    samples = [summarise(scores[:, index]) for index in range(scores.shape[1])]
    noise = run_noise(samples)
    found = [difference(sample, samples[0], noise) for sample in samples[1:]]
    return (
        np.stack([one.low for one in found]),
        np.stack([one.high for one in found]),
        np.stack([one.p for one in found]),
    )


@pytest.mark.parametrize(("seeds", "noise"), [(1, 0.0), (2, 0.02), (2, 0.05), (3, 0.01), (3, 0.03), (5, 0.03)])
def test_intervals_cover_the_truth(seeds: int, noise: float) -> None:
    """95% intervals of a difference of 5 points hold it in 93 to 97% of 2,000 studies, those of a mean too."""
    rng = np.random.default_rng(seeds)
    scores = simulate(rng, studies=2000, settings=3, seeds=seeds, tasks=400, noise=noise, gain=0.05)
    low, high, _ = estimated(scores)
    assert 0.93 <= np.mean((low <= 0.05) & (high >= 0.05)) <= 0.97
    samples = [summarise(scores[:, index]) for index in range(3)]
    means = mean_estimate(samples[0], run_noise(samples))
    assert 0.93 <= np.mean((means.low <= 0.2) & (means.high >= 0.2)) <= 0.97


@pytest.mark.parametrize("settings", [2, 4])
@pytest.mark.parametrize(("seeds", "noise"), [(2, 0.02), (2, 0.03), (3, 0.03), (5, 0.03)])
def test_a_difference_is_rarely_claimed_without_one(settings: int, seeds: int, noise: float) -> None:
    """In at most 6% of 2,000 studies of equal settings any comparison is significant, or the best setting better than
    each of the others."""
    rng = np.random.default_rng(10 + seeds)
    scores = simulate(rng, studies=2000, settings=settings, seeds=seeds, tasks=400, noise=noise)
    samples = [summarise(scores[:, index]) for index in range(settings)]
    pooled = run_noise(samples)
    p = np.array([[difference(one, other, pooled).p for other in samples] for one in samples])
    claimed = (holm(p[0, 1:].T) < 0.05).any(axis=-1)
    best = np.argmax([sample.mean for sample in samples], axis=0)
    for index in range(settings):
        others = np.delete(p[index], index, axis=0)
        claimed |= (best == index) & (holm(others.T) < 0.05).all(axis=-1)
    assert np.mean(claimed) <= 0.06


def is_claimed(p: NDArray[np.float64], seeds: Sequence[int]) -> NDArray[np.bool_]:
    """Whether each study claims a difference, from p-values [comparisons, studies]."""
    return np.asarray((holm(p.T) < 0.05).any(axis=-1) & are_enough(seeds))


@pytest.mark.parametrize("seeds", [(1, 1, 1, 1), (1, 1, 1, 2), (1, 1, 2, 2), (1, 3, 3, 3), (1, 1, 1, 3)])
def test_unequal_seeds_claim_rarely_without_a_difference(seeds: Sequence[int]) -> None:
    rng = np.random.default_rng(20)
    scores = simulate(rng, studies=2000, settings=4, seeds=max(seeds), tasks=400, noise=0.03)
    samples = [summarise(scores[:, index, :number]) for index, number in enumerate(seeds)]
    noise = run_noise(samples)
    p = np.stack([difference(one, samples[0], noise).p for one in samples[1:]])
    assert np.mean(is_claimed(p, seeds)) <= 0.06
    if not are_enough(seeds):
        # Why nothing may be claimed.
        assert np.mean((holm(p.T) < 0.05).any(axis=-1)) > 0.06


@pytest.mark.parametrize("trainings", [1, 3])
def test_repeated_evaluations_are_no_seeds(trainings: int) -> None:
    """Two equal settings, each training run evaluated with 5 seeds: taken as 5 runs they would claim far too much."""
    rng = np.random.default_rng(30)
    scores = evaluated(rng, studies=2000, trainings=trainings, each=5, tasks=200, noise=0.03)
    samples = [summarise(scores[:, index].mean(axis=2)) for index in (0, 1)]
    p = difference(samples[1], samples[0], run_noise(samples)).p[None]
    assert np.mean(is_claimed(p, [trainings] * 2)) <= 0.06
    wrong = [summarise(scores[:, index].reshape(2000, trainings * 5, 200)) for index in (0, 1)]
    assert np.mean(difference(wrong[1], wrong[0], run_noise(wrong)).p < 0.05) > 0.15


def evaluated(
    rng: np.random.Generator, *, studies: int, trainings: int, each: int, tasks: int, noise: float
) -> NDArray[np.float64]:
    """Two equal settings whose training runs are evaluated `each` times, [studies, 2, trainings, each, tasks]: a run
    has a chance for each task, of which the evaluations are draws."""
    chance = rng.beta(0.1, 0.4, (studies, 1, 1, tasks))
    weight = chance * (1 - chance) / (0.2 * 0.8 / 3)
    runs = chance + weight * noise * rng.standard_normal((studies, 2, trainings, 1))
    return (rng.random((studies, 2, trainings, each, tasks)) < runs[:, :, :, None]).astype(np.float64)


def test_a_large_difference_is_found() -> None:
    rng = np.random.default_rng(0)
    scores = simulate(rng, studies=500, settings=2, seeds=5, tasks=400, noise=0.02, gain=0.08)
    _, _, p = estimated(scores)
    assert np.mean(p < 0.05) > 0.9


def test_planned_errors_are_those_of_such_a_study() -> None:
    """What a study with 3 seeds and 200 tasks predicts for 6 seeds and 800 tasks, on average."""
    rng = np.random.default_rng(1)
    small = simulate(rng, studies=200, settings=2, seeds=3, tasks=200, noise=0.03)
    predicted = []
    for scores in small:
        samples = [summarise(one) for one in scores]
        error, degrees = spread(samples[1:], samples[0], run_noise(samples)).standard_error(800, 6)
        predicted.append(stats.t.ppf(0.975, degrees) * error)
    low, high, _ = estimated(simulate(rng, studies=60, settings=2, seeds=6, tasks=800, noise=0.03))
    mean_square = np.mean(np.square(predicted)), np.mean(np.square(high - low)) / 4
    assert mean_square[0] == pytest.approx(mean_square[1], rel=0.25)


@pytest.mark.parametrize(("settings", "seeds"), [(2, 3), (2, 6), (3, 4)])
def test_the_difference_of_the_plan_is_found_in_80_percent_of_studies(settings: int, seeds: int) -> None:
    rng = np.random.default_rng(3)
    pilot = simulate(rng, studies=100, settings=settings, seeds=seeds, tasks=400, noise=0.02)
    plans = []
    for scores in pilot:
        samples = [summarise(one) for one in scores]
        plans.append(spread(samples[1:], samples[0], run_noise(samples)).detectable(400, seeds))
    gain = float(np.sqrt(np.mean(np.square(plans))))
    scores = simulate(rng, studies=1000, settings=settings, seeds=seeds, tasks=400, noise=0.02, gain=gain)
    _, _, p = estimated(scores)
    assert np.mean(holm(p.T) < 0.05) == pytest.approx(0.8, abs=0.07)


def test_how_many_tasks_and_seeds_it_takes() -> None:
    rng = np.random.default_rng(2)
    scores = simulate(rng, studies=1, settings=2, seeds=5, tasks=400, noise=0.03)[0]
    samples = [summarise(one) for one in scores]
    planned = spread(samples[1:], samples[0], run_noise(samples))
    seeds, tasks = planned.seeds_for(0.02, 4000), planned.tasks_for(0.04, 20)
    assert seeds is not None
    assert tasks is not None
    assert planned.detectable(4000, seeds) <= 0.02 < planned.detectable(4000, seeds - 1)
    assert planned.detectable(tasks, 20) <= 0.04 < planned.detectable(tasks - 1, 20)
    assert planned.tasks_for(1e-9, 3) is None
