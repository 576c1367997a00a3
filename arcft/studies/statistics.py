"""Intervals and tests for studies in which every seed meets every task.

A setting was trained with some seeds, and each of its runs answered the same tasks. Both are samples: of the runs that
might have been made, and of the tasks that might have been asked. With x[i, t] the score of seed i on task t,

    x[i, t] = mean + task[t] + run[i] + rest[i, t],

a mean over S seeds and T tasks has the variance var(task) / T + var(run) / S + var(rest) / (S T): that of crossed
random effects (Searle, Casella, McCulloch: Variance Components, 1992, chapter 4). A difference of two settings is taken
task by task, so the difficulty of tasks cancels.

var(run) rests on two or three seeds a setting. Resampling seeds and tasks independently, widened by sqrt(S / (S - 1))
over seeds, gives 95% intervals that hold the truth in 91% of studies where runs differ much and in 98% where they
differ little (`benchmarks/study.py`): few seeds have short tails, and single scores are counted twice, for which no
bootstrap of crossed effects is exact (Owen: The pigeonhole bootstrap, Annals of Applied Statistics 1, 2007). Here
var(run) is estimated from all settings of a study together, relative to p (1 - p) for a setting that solves the share p
(a common overdispersion: McCullagh, Nelder: Generalized Linear Models, 1989, section 4.5), and the intervals have the
quantiles of Student's t with Satterthwaite's degrees of freedom (Biometrics Bulletin 2, 1946). These are too many where
var(run) happens to be estimated low, as of few runs it often is. So the mean square between runs is multiplied by
d / median(chi2 with d degrees of freedom), 1.44 for two and 1.09 for eight, after which it is too low as often as too
high (median-unbiased: Brown, Annals of Mathematical Statistics 18, 1947).

All functions work on arrays with any leading dimensions, so that many studies are computed at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from arcft.scoring.metrics import wilson

Array = NDArray[np.float64]

LEVEL = 0.95
"""Of all intervals; 1 - LEVEL is the error rate of a study's claims."""

POWER = 0.8
"""Share of studies that find the difference for which they are planned."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """The scores of one setting, reduced to what the formulas need; arrays are [...] unless said otherwise."""

    tasks: Array
    """Means over seeds, [..., tasks]."""

    seeds: int
    between: Array
    """Mean square between runs over tasks: the variance of their means; 0 with one seed."""

    rest: Array
    """Mean square of what neither task nor run explains, divided by the number of tasks; 0 with one seed."""

    @property
    def mean(self) -> Array:
        return np.asarray(self.tasks.mean(axis=-1))


@dataclasses.dataclass(frozen=True)
class RunNoise:
    """How much runs of one setting differ, as a multiple of p (1 - p)."""

    between: Array
    rest: Array
    """The part of `between` that comes from single tasks, and that averages over tasks contain already."""

    degrees: Array
    """Degrees of freedom of `between`; 0 where no setting has two seeds."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean or a difference with its interval."""

    value: Array
    low: Array
    high: Array
    p: Array
    """Of a difference: the probability of one as large without a true difference. NaN for a mean."""


def summarise(scores: Array) -> Sample:
    """`scores` are [..., seeds, tasks], from 0 to 1."""
    seeds, tasks = scores.shape[-2:]
    runs, by_task = scores.mean(axis=-1), scores.mean(axis=-2)
    nothing = np.zeros(scores.shape[:-2])
    if seeds == 1:
        return Sample(by_task, 1, nothing, nothing)
    mean = runs.mean(axis=-1)
    rest = nothing
    if tasks > 1:
        residuals = scores - runs[..., None] - by_task[..., None, :] + mean[..., None, None]
        rest = (residuals**2).sum(axis=(-1, -2)) / ((seeds - 1) * (tasks - 1)) / tasks
    return Sample(by_task, seeds, runs.var(axis=-1, ddof=1), rest)


def run_noise(samples: Sequence[Sample]) -> RunNoise:
    """The noise of runs, from all settings that have more than one seed."""
    repeated = [sample for sample in samples if sample.seeds > 1]
    if not repeated:
        zero = np.zeros(samples[0].mean.shape)
        return RunNoise(zero, zero, zero)
    scales = np.stack([_scale(sample) for sample in repeated])
    freedom = np.array([sample.seeds - 1 for sample in repeated]).reshape(-1, *[1] * (scales.ndim - 1))
    weights = scales * freedom
    total = weights.sum(axis=0)
    between = sum(sample.between * (sample.seeds - 1) for sample in repeated) / total
    rest = sum(sample.rest * (sample.seeds - 1) for sample in repeated) / total
    return RunNoise(np.asarray(between), np.asarray(rest), total**2 / (scales * weights).sum(axis=0))


def are_enough(seeds: Sequence[int]) -> bool:
    """Whether settings with so many seeds say how much runs differ.

    A variance with one degree of freedom is often far too low, and claims follow: with 1, 1, 1 and 2 seeds, 9%
    of studies of equal settings would make one (tests/studies/test_statistics.py).
    """
    return sum(seeds) - len(seeds) >= 2


def mean_estimate(sample: Sample, noise: RunNoise) -> Estimate:
    """The mean of a setting: Wilson's interval with as many tasks as would give independent scores the same variance
    (Franco, Little, Louis, Slud: Journal of Survey Statistics and Methodology 7, 2019); without any variance, the tasks
    themselves."""
    mean, tasks = sample.mean, sample.tasks.shape[-1]
    own = sample.tasks.var(axis=-1, ddof=1) / tasks if tasks > 1 else np.zeros(mean.shape)
    # Wilson's interval does not estimate the variance over tasks.
    variance, degrees = _with_runs(own, np.inf, _scale(sample) / sample.seeds, noise)
    binomial = mean * (1 - mean)
    known = (variance > 0) & (binomial > 0)
    number = np.where(known, binomial / np.where(known, variance, 1), tasks)
    low, high = wilson(mean, np.clip(number, 1, sample.seeds * tasks), _quantile(degrees))
    return Estimate(mean, low, high, np.full(mean.shape, np.nan))


def difference(sample: Sample, baseline: Sample, noise: RunNoise, *, is_rate: bool = True) -> Estimate:
    """`sample` minus `baseline`, paired over tasks.

    Two tasks are added in which the settings differ half of the time, in either direction alike (Agresti, Min:
    Statistics in Medicine 24, 2005): where they agree on all of a few tasks, that does not prove that they are equal.
    With `is_rate` False a task may differ as much as the largest difference there is, instead of 1.
    """
    gaps = sample.tasks - baseline.tasks
    tasks = gaps.shape[-1]
    widest = 1.0 if is_rate else (gaps**2).max(axis=-1)
    # Averages over seeds differ by less than single runs.
    added = widest * (1 / sample.seeds + 1 / baseline.seeds) / 2
    total = gaps.sum(axis=-1)
    squares = (gaps**2).sum(axis=-1) + added - total**2 / (tasks + 2)
    own = np.maximum(squares, widest) / (tasks + 2) ** 2
    scale = _scale(sample) / sample.seeds + _scale(baseline) / baseline.seeds
    variance, degrees = _with_runs(own, tasks - 1, scale, noise)
    center, error = total / (tasks + 2), np.sqrt(variance)
    reach = _quantile(degrees) * error
    t = np.abs(center) / np.where(error > 0, error, 1)
    low, high = np.maximum(center - reach, -1), np.minimum(center + reach, 1)
    return Estimate(total / tasks, low, high, 2 * stats.t.sf(t, degrees))


def seeds_alone(values: Sequence[float]) -> tuple[float, float]:
    """A mean over seeds with its standard error, for what has no value per task, such as a loss; the error of a single
    one is NaN."""
    return float(np.mean(values)), float(stats.sem(values)) if len(values) > 1 else float("nan")


def difference_over_seeds(values: Sequence[float], baseline: Sequence[float]) -> Estimate:
    """For what has no value per task: Welch's t-test (Biometrika 34, 1947); NaN where one of the two has one seed."""
    gap = float(np.mean(values) - np.mean(baseline))
    if min(len(values), len(baseline)) < 2 or (np.ptp(values) == 0 and np.ptp(baseline) == 0):
        return Estimate(*(np.asarray(value) for value in (gap, np.nan, np.nan, np.nan)))
    test = stats.ttest_ind(values, baseline, equal_var=False)
    interval = test.confidence_interval(LEVEL)
    return Estimate(*(np.asarray(value) for value in (gap, interval.low, interval.high, test.pvalue)))


def holm(p: Array) -> Array:
    """p-values corrected for the number of comparisons, [..., comparisons] (Holm: Scandinavian Journal of Statistics 6,
    1979). NaN stands for a comparison that was not made."""
    p = np.asarray(p, dtype=np.float64)
    order = np.argsort(p, axis=-1)
    remaining = (~np.isnan(p)).sum(axis=-1, keepdims=True) - np.arange(p.shape[-1])
    corrected = np.maximum.accumulate(np.take_along_axis(p, order, -1) * remaining, axis=-1)
    result = np.empty_like(p)
    np.put_along_axis(result, order, np.minimum(corrected, 1), -1)
    return result


def _scale(sample: Sample) -> Array:
    """p (1 - p), with half a task more on either side, so that it is never 0."""
    number = sample.tasks.shape[-1]
    share = (sample.mean * number + 0.5) / (number + 1)
    return np.asarray(share * (1 - share))


def _with_runs(own: Array, freedom: float, scale: Array, noise: RunNoise) -> tuple[Array, Array]:
    """The variance over tasks, `own`, which has this `freedom`, with that of runs; and the degrees of freedom of both.

    The variance of runs counts fully in the degrees of freedom, also where less of it is left after that of single
    tasks: intervals were too narrow otherwise where it happens to be estimated low.
    """
    runs = noise.between * _median_unbiased(noise.degrees) * scale
    variance = own + np.maximum(runs - noise.rest * scale, 0)
    shares = own**2 / max(freedom, 1) + np.where(noise.degrees > 0, runs**2 / np.maximum(noise.degrees, 1e-9), 0)
    degrees = np.where(shares > 0, variance**2 / np.where(shares > 0, shares, 1), np.inf)
    return variance, np.maximum(degrees, 1)


def _median_unbiased(degrees: Array) -> Array:
    """The factor of a mean square with so many degrees of freedom that makes it too low as often as too high."""
    known = np.where(degrees > 0, degrees, 1.0)
    return np.asarray(np.where(degrees > 0, known / stats.chi2.median(known), 1.0))


def _quantile(degrees: Array) -> Array:
    return np.asarray(stats.t.ppf((1 + LEVEL) / 2, degrees))


@dataclasses.dataclass(frozen=True)
class Spread:
    """What the error of a difference of two settings consists of, for planning; variances of single scores."""

    tasks: float
    """By which the settings differ from task to task, with any number of seeds."""

    runs: float
    """Of runs of one setting over all tasks."""

    rest: float
    """Of single scores, beyond both."""

    settings: int
    """That share the estimate of `runs`, one of them the baseline."""

    widest: float
    """The largest difference that a task may have; see `difference`."""

    def standard_error(self, tasks: int, seeds: int) -> tuple[float, float]:
        """Of a difference with so many tasks and seeds a setting, and its degrees of freedom."""
        squares = tasks * (self.tasks + 2 * self.rest / seeds) + self.widest / seeds
        own = max(squares, self.widest) / (tasks + 2) ** 2
        freedom = self.settings * (seeds - 1)
        rest = 2 * self.rest / seeds / tasks
        between = (2 * self.runs / seeds + rest) * float(_median_unbiased(np.array(freedom)))
        runs = between - rest
        shares = own**2 / max(tasks - 1, 1) + (between**2 / freedom if freedom else 0.0)
        degrees = (own + runs) ** 2 / shares if shares > 0 else float("inf")
        return float(np.sqrt(own + runs)), float(max(degrees, 1))

    def detectable(self, tasks: int, seeds: int) -> float:
        """The true difference that is claimed in a share POWER of studies with so many tasks and seeds a setting
        (Cohen: Statistical Power Analysis, 1988; with quantiles of t). Bonferroni's correction stands for Holm's, which
        depends on the other differences."""
        error, degrees = self.standard_error(tasks, seeds)
        level = (1 - LEVEL) / (self.settings - 1)
        return float((stats.t.ppf(1 - level / 2, degrees) + stats.t.ppf(POWER, degrees)) * error)

    def tasks_for(self, difference: float, seeds: int) -> int | None:
        """The least number of tasks that detect `difference`; None where no number is enough."""
        return _least(lambda tasks: self.detectable(tasks, seeds) <= difference, 2, _MOST_TASKS)

    def seeds_for(self, difference: float, tasks: int) -> int | None:
        """The least number of seeds a setting; None where no number is enough."""
        return _least(lambda seeds: self.detectable(tasks, seeds) <= difference, 2, _MOST_SEEDS)


_MOST_TASKS = 1_000_000
_MOST_SEEDS = 10_000


def spread(samples: Sequence[Sample], baseline: Sample, noise: RunNoise, *, is_rate: bool = True) -> Spread:
    """The average over the differences of `samples` to `baseline`, of one study (no leading dimensions)."""
    number = baseline.tasks.shape[-1]
    both = [baseline, *samples]
    scale = float(np.mean([_scale(sample) for sample in both]))
    rest = float(noise.rest) * scale * number
    tasks = [
        float((sample.tasks - baseline.tasks).var(ddof=1)) - rest / sample.seeds - rest / baseline.seeds
        for sample in samples
    ]
    return Spread(
        tasks=max(float(np.mean(tasks)), 0.0),
        runs=max(float(noise.between - noise.rest), 0.0) * scale,
        rest=rest,
        settings=len(both),
        widest=1.0 if is_rate else max(float(((one.tasks - baseline.tasks) ** 2).max()) for one in samples),
    )


def _least(is_enough: Callable[[int], bool], low: int, most: int) -> int | None:
    """The least number for which `is_enough`, which holds for all above it too."""
    if not is_enough(most):
        return None
    high = low
    while not is_enough(high):
        low, high = high + 1, min(2 * high, most)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle + 1, high)
    return high
