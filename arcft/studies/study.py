"""Settings compared: a row for each, with intervals, differences to a baseline, and coverage."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from arcft.protocols import MetricSet
from arcft.studies.coverage import Coverage, coverage
from arcft.studies.notes import study_notes
from arcft.studies.runs import COSTS, LOSSES, Run, Scores
from arcft.studies.settings import (
    Grouping,
    Setting,
    StudyError,
    find_setting,
)
from arcft.studies.statistics import (
    LEVEL,
    Sample,
    Spread,
    are_enough,
    difference,
    difference_over_seeds,
    holm,
    mean_estimate,
    run_noise,
    seeds_alone,
    spread,
    summarise,
)

LOWER_IS_BETTER = (*LOSSES, "unanswered")


@dataclasses.dataclass(frozen=True)
class Interval:
    """A value with its 95% interval, NaN where it is not known."""

    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One setting."""

    setting: Setting
    value: Interval
    by_seed: list[float]
    """The metric of each replicate."""

    difference: Interval | None = None
    """To the baseline; None for the baseline itself."""

    p: float | None = None
    """Of that difference; `p_holm` is corrected for the number of settings."""

    p_holm: float | None = None
    is_claimed: bool = False
    """Whether the difference to the baseline stands out of the noise, and enough runs tell how large that is."""

    metrics: Mapping[str, tuple[float, float]]
    """Mean over runs and its standard error, of every other metric, the LOSSES and the COSTS."""

    coverage: Coverage | None
    is_best: bool = False
    """Better than each of the others by more than the noise."""

    @property
    def is_apart(self) -> bool:
        """Whether these runs differ from those of the baseline by more than the noise that is known of."""
        return self.p_holm is not None and self.p_holm < 1 - LEVEL


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """What a set of runs says."""

    metric: str
    over: Literal["tasks", "seeds"]
    """Whether the metric has a value for each task; a loss has one for each run only."""

    can_claim: bool
    """Whether enough settings have several seeds to tell settings apart from runs."""

    num_tasks: int
    grouping: Grouping
    baseline: Setting
    rows: list[Row]
    spread: Spread | None
    """For planning; None where nothing is compared over tasks."""

    pooled: Coverage | None
    """Of all runs together."""

    is_exact: bool
    """Whether the pooled coverage is exact, or a lower bound."""

    lower_is_better: bool
    notes: list[str]

    @property
    def seeds(self) -> list[int]:
        """Of each setting."""
        return [len(row.setting.replicates) for row in self.rows]

    @property
    def best(self) -> Row:
        """The row with the best value."""
        sign = -1 if self.lower_is_better else 1
        return max(self.rows, key=lambda row: sign * row.value.value)


def compare(
    grouping: Grouping,
    metric_set: MetricSet,
    *,
    metric: str | None,
    baseline: str | None,
    tasks: Literal["all", "shared"],
) -> Study:
    """Compare the settings of `grouping`, whose runs are finished.

    Raise StudyError for runs of different tasks unless `tasks` is `shared`, and for a metric that the runs lack.
    """
    runs = [run for setting in grouping.settings for run in setting.runs]
    metric = _chosen_metric(metric, runs, metric_set)
    base = grouping.settings[0] if baseline is None else find_setting(grouping, baseline)
    per_task = metric not in LOSSES and all(run.scores is not None for run in runs)
    notes = study_notes(grouping, metric, per_task, runs)
    ids = _shared_tasks(runs, tasks) if any(run.scores is not None for run in runs) else ()
    values = {setting.label: _by_seed(setting, metric, ids, per_task) for setting in grouping.settings}
    can_claim = not per_task or are_enough([len(one.replicates) for one in grouping.settings])
    rate = metric in metric_set.by_rank
    if per_task:
        compared, planned = _over_tasks(grouping, base, metric, ids, rate)
    else:
        compared, planned = _over_seeds(grouping, base, values), None
    corrected = holm(np.array([one.p for one in compared]))
    # More runs cover more, so that settings are compared at as many as the one with the fewest has.
    fewest = min(len(setting.runs) for setting in grouping.settings)
    cover = {setting.label: coverage(setting.runs, ids, metric_set, fewest) for setting in grouping.settings}
    rows = []
    for setting, one, p_holm in zip(grouping.settings, compared, corrected, strict=True):
        is_base = setting is base
        rows.append(
            Row(
                setting=setting,
                value=one.value,
                by_seed=values[setting.label],
                difference=None if is_base else one.difference,
                p=None if is_base or np.isnan(one.p) else float(one.p),
                p_holm=None if is_base or np.isnan(p_holm) else float(p_holm),
                is_claimed=can_claim and not is_base and bool(p_holm < 1 - LEVEL),
                metrics=_other_metrics(setting, metric, ids, metric_set),
                coverage=cover[setting.label],
            )
        )
    study = Study(
        metric=metric,
        over="tasks" if per_task else "seeds",
        can_claim=can_claim,
        num_tasks=len(ids),
        grouping=grouping,
        baseline=base,
        rows=rows,
        spread=planned,
        pooled=coverage(runs, ids, metric_set, len(runs)),
        is_exact=all(run.scores is None or run.scores.is_exact for run in runs),
        lower_is_better=metric in LOWER_IS_BETTER,
        notes=notes,
    )
    return _with_best(study, ids, rate)


@dataclasses.dataclass(frozen=True)
class _Compared:
    value: Interval
    difference: Interval
    p: float
    """NaN for the baseline, and where nothing can be said."""


def _over_tasks(
    grouping: Grouping, base: Setting, metric: str, ids: Sequence[str], rate: bool
) -> tuple[list[_Compared], Spread | None]:
    samples = [_sample(setting, metric, ids) for setting in grouping.settings]
    noise = run_noise(samples)
    own = samples[grouping.settings.index(base)]
    compared = []
    for sample in samples:
        mean, gap = mean_estimate(sample, noise), difference(sample, own, noise, is_rate=rate)
        compared.append(_Compared(_interval(mean), _interval(gap), np.nan if sample is own else float(gap.p)))
    others = [sample for sample in samples if sample is not own]
    return compared, spread(others, own, noise, is_rate=rate) if others and len(ids) > 1 else None


def _over_seeds(grouping: Grouping, base: Setting, values: Mapping[str, list[float]]) -> list[_Compared]:
    compared = []
    for setting in grouping.settings:
        mean, _ = seeds_alone(values[setting.label])
        own = difference_over_seeds(values[setting.label], [0.0, 0.0])
        gap = difference_over_seeds(values[setting.label], values[base.label])
        value = Interval(mean, float(own.low), float(own.high))
        compared.append(_Compared(value, _interval(gap), np.nan if setting is base else float(gap.p)))
    return compared


def _with_best(study: Study, ids: Sequence[str], rate: bool) -> Study:
    """Mark the best setting if it is better than each of the others by more than the noise, Holm's correction for their
    number included."""
    best = study.best
    others = [row for row in study.rows if row is not best]
    if not others or not study.can_claim:
        return study
    if study.over == "tasks":
        samples = {row.setting.label: _sample(row.setting, study.metric, ids) for row in study.rows}
        noise = run_noise(list(samples.values()))
        own = samples[best.setting.label]
        p = [float(difference(own, samples[row.setting.label], noise, is_rate=rate).p) for row in others]
    else:
        p = [float(difference_over_seeds(best.by_seed, row.by_seed).p) for row in others]
    if not all(value < 1 - LEVEL for value in holm(np.array(p))):
        return study
    return dataclasses.replace(
        study, rows=[dataclasses.replace(row, is_best=True) if row is best else row for row in study.rows]
    )


def _chosen_metric(metric: str | None, runs: Sequence[Run], metric_set: MetricSet) -> str:
    there = [name for name in (*metric_set.names, *LOSSES) if all(_has(run, name) for run in runs)]
    if metric is None:
        metric = next((name for name in (metric_set.primary, *LOSSES) if name in there), None)
        if metric is None:
            raise StudyError("the runs share no metric and no loss; name only those of one kind with runs=")
    if metric not in there:
        lacking = [run for run in runs if not _has(run, metric)]
        known = metric in (*metric_set.names, *LOSSES)
        why = f"{lacking[0].folder} has no value of it" if known else "there is no such metric"
        why = "a cost is shown, but not compared" if metric in COSTS else why
        raise StudyError(f"metric={metric}: {why}; all runs have {', '.join(there) or 'none'}")
    return metric


def _has(run: Run, metric: str) -> bool:
    """Whether a run has a value of `metric`: of every task, where it has any of single tasks."""
    return metric in run.metrics and (metric in LOSSES or run.scores is None or metric in run.scores.metrics)


def _shared_tasks(runs: Sequence[Run], tasks: Literal["all", "shared"]) -> tuple[str, ...]:
    """Ids of the tasks that are compared, sorted."""
    scored = [run for run in runs if run.scores is not None]
    sets = {run.folder: set(run.scores.tasks) for run in scored if run.scores is not None}
    shared = set.intersection(*sets.values())
    if tasks == "shared":
        if not shared:
            raise StudyError("tasks=shared: no task was answered by all runs; name only some of them with runs=")
        return tuple(sorted(shared))
    first = scored[0]
    for run in scored[1:]:
        more, fewer = sets[run.folder] - sets[first.folder], sets[first.folder] - sets[run.folder]
        if more or fewer:
            example = sorted(more or fewer)[0]
            who = run.folder if more else first.folder
            raise StudyError(
                f"runs of different tasks: {first.folder} answered {len(sets[first.folder]):,}, {run.folder} "
                f"{len(sets[run.folder]):,}, and only {who} answered {example}; compare the {len(shared):,} that all "
                "have answered with tasks=shared, or name only some of the runs"
            )
    return tuple(sorted(shared))


def _sample(setting: Setting, metric: str, ids: Sequence[str]) -> Sample:
    """Runs that are not independent count as one, with their mean."""
    replicates = [
        np.mean([_of_tasks(_scores(run), metric, ids) for run in replicate], axis=0) for replicate in setting.replicates
    ]
    return summarise(np.stack(replicates))


def _scores(run: Run) -> Scores:
    assert run.scores is not None
    return run.scores


def _of_tasks(scores: Scores, metric: str, ids: Sequence[str]) -> NDArray[np.float64]:
    """The metric of the tasks `ids`, which are sorted as those of `scores` are."""
    values = scores.of(metric)
    if len(ids) == len(scores.tasks):
        return values
    return values[np.isin(scores.tasks, ids)]


def _by_seed(setting: Setting, metric: str, ids: Sequence[str], per_task: bool) -> list[float]:
    def value(run: Run) -> float:
        return float(_of_tasks(_scores(run), metric, ids).mean()) if per_task else run.metrics[metric]

    return [float(np.mean([value(run) for run in replicate])) for replicate in setting.replicates]


def _other_metrics(
    setting: Setting, metric: str, ids: Sequence[str], metric_set: MetricSet
) -> dict[str, tuple[float, float]]:
    found = {}
    for name in (*metric_set.names, *LOSSES, *COSTS):
        if name == metric:
            continue
        means = [float(np.mean([_value(run, name, ids) for run in one])) for one in setting.replicates]
        values = [value for value in means if not np.isnan(value)]
        if values:
            found[name] = seeds_alone(values)
    return found


def _value(run: Run, name: str, ids: Sequence[str]) -> float:
    """A metric, loss or cost; NaN where the run has none."""
    if run.scores is not None and name in run.scores.metrics:
        return float(_of_tasks(run.scores, name, ids).mean())
    return {**run.metrics, **run.costs}.get(name, np.nan)


def _interval(estimate: Any) -> Interval:
    return Interval(float(estimate.value), float(estimate.low), float(estimate.high))
