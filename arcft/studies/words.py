"""What a study says, in sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence

from arcft.reporting.words import count, duration, percent
from arcft.studies.coverage import Coverage
from arcft.studies.runs import LOSSES
from arcft.studies.statistics import POWER
from arcft.studies.study import Interval, Row, Study

RESOLVED = 0.02
"""The difference that a study is planned for: 2 points."""

SEEDS_ADVISED = 3

METHOD = (
    "Differences are paired over tasks. Seeds and tasks are crossed random effects; intervals are 95%, with Student's "
    "t for the few seeds, and p-values are corrected for the number of settings (Holm)."
)


def title(study: Study) -> str:
    """For example `vote_2 by lora.r`."""
    return f"{study.metric} by {', '.join(study.grouping.by)}" if study.grouping.by else study.metric


def size(study: Study) -> str:
    """For example `3 settings, 9 runs, 3 seeds each, 400 tasks`."""
    seeds = sorted(set(study.seeds))
    runs = sum(len(row.setting.runs) for row in study.rows)
    each = count(seeds[0], "seed") if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
    each += " each" if len(study.rows) > 1 else ""
    words = [count(len(study.rows), "setting"), count(runs, "run"), each]
    return ", ".join(words + ([count(study.num_tasks, "task")] if study.num_tasks else []))


def value_words(study: Study, interval: Interval) -> str:
    """For example `23.5% (20.1 to 27.3)`; a loss is no percentage."""
    if study.metric in LOSSES:
        spread = "" if math.isnan(interval.low) else f" ({interval.low:.3f} to {interval.high:.3f})"
        return f"{interval.value:.3f}{spread}"
    spread = "" if math.isnan(interval.low) else f" ({100 * interval.low:.1f} to {100 * interval.high:.1f})"
    return f"{percent(interval.value)}{spread}"


def difference_words(study: Study, interval: Interval) -> str:
    """For example `+4.2 (+1.0 to +7.4)`, in points."""
    factor, digits = (1, 3) if study.metric in LOSSES else (100, 1)
    # Rounded before, and without the sign of a negative zero.
    numbers = (round(factor * number, digits) + 0.0 for number in (interval.value, interval.low, interval.high))
    value, low, high = (f"{number:+.{digits}f}" for number in numbers)
    return value if math.isnan(interval.low) else f"{value} ({low} to {high})"


def p_words(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def verdict(study: Study) -> str:
    """What can be said about the settings, in a sentence or two."""
    others = [row for row in study.rows if row.difference is not None]
    if not others:
        return f"There is one setting, at {value_words(study, study.rows[0].value)}; nothing is compared."
    base = study.baseline.label
    best = study.best
    if all(row.p_holm is None for row in others):
        return f"{best.setting.label} has the best {study.metric}, but whether that is more than noise can't be said."
    if not study.can_claim:
        return _of_these_runs(study, others, best)
    claimed = [row for row in others if row.is_claimed]
    if not claimed:
        return _nothing_claimed(study, others, best)
    better = [row for row in claimed if _is_better(study, row)]
    worse = [row for row in claimed if row not in better]
    parts = []
    if better:
        parts.append(f"{_named(study, better)} {_does(better, 'beats', 'beat')} {base}")
    if worse:
        parts.append(f"{_named(study, worse)} {_does(worse, 'is', 'are')} worse than {base}")
    rest = len(others) - len(claimed)
    words = "; ".join(parts) + "."
    if rest:
        others_words = f"other {rest} don't differ" if rest > 1 else "other one does not differ"
        words += f" The {others_words} from it by more than noise."
    if best.is_best:
        words += f" {best.setting.label} is the best of all."
    elif len(study.rows) > 2:
        words += f" {best.setting.label} has the best {study.metric}, but does not stand out from all others."
    return words


def plan(study: Study) -> str:
    """How many tasks and seeds would resolve 2 points; empty where that is not known."""
    if study.spread is None or study.metric in LOSSES:
        return ""
    points = f"{100 * RESOLVED:.0f} points"
    if not study.can_claim:
        return (
            f"How many tasks and seeds it takes to find a difference of {points} can't be said before it is known how "
            f"much runs differ: train {SEEDS_ADVISED} or more seeds of each setting."
        )
    tasks, seeds = study.num_tasks, max(study.seeds)
    found = study.spread.detectable(tasks, seeds)
    each = "a setting" if min(study.seeds) == seeds else "in every setting"
    now = (
        f"With {count(tasks, 'task')} and {count(seeds, 'seed')} {each}, a true difference of {100 * found:.1f} points "
        f"is found in {POWER:.0%} of studies"
    )
    if found <= RESOLVED:
        return f"{now}."
    more_seeds, more_tasks = study.spread.seeds_for(RESOLVED, tasks), study.spread.tasks_for(RESOLVED, seeds)
    ways = []
    if more_seeds is not None:
        ways.append(f"{count(more_seeds, 'seed')} with these tasks")
    if more_tasks is not None:
        ways.append(f"{count(more_tasks, 'task')} with {count(seeds, 'seed')}")
    if not ways:
        both = _both(study)
        ways = [both] if both else []
    return f"{now}; to find {points} takes {' or '.join(ways)}." if ways else f"{now}."


def coverage_words(study: Study) -> str:
    """The share of tests with a right answer among the candidates, over all runs; empty where it is not known."""
    if study.pooled is None:
        return ""
    pooled: Coverage = study.pooled
    at_least = "" if study.is_exact else "at least "
    return (
        f"A right answer was submitted for {percent(pooled.submitted)} of tests and was among the candidates of a run "
        f"for {percent(pooled.candidates)}, on average; for {at_least}{percent(pooled.pooled)}, at least one of all "
        "runs has it."
    )


def cost_words(name: str, value: float) -> str:
    """One of the COSTS with its unit."""
    match name:
        case "seconds" | "evaluation_seconds":
            return duration(value)
        case "peak_bytes":
            return f"{value / 2**30:.2f} GiB"
        case "trainable_parameters":
            return f"{value / 1e6:.2f}M"
    return f"{value:,.0f}"


def _both(study: Study) -> str:
    """The fewest runs times tasks that are enough, with more of both."""
    assert study.spread is not None
    found = []
    for seeds in range(2, 101):
        tasks = study.spread.tasks_for(RESOLVED, seeds)
        if tasks is not None:
            found.append((seeds * tasks, seeds, tasks))
    if not found:
        return ""
    _, seeds, tasks = min(found)
    return f"{count(seeds, 'seed')} with {count(tasks, 'task')}"


def _nothing_claimed(study: Study, others: Sequence[Row], best: Row) -> str:
    base = study.baseline.label
    if len({row.value.value for row in study.rows}) == 1:
        return f"All settings have the same {study.metric}."
    equal = [row.setting.label for row in study.rows if row.value.value == best.value.value]
    if len(equal) > 1 and base in equal:
        names = f"{', '.join(equal[:-1])} and {equal[-1]}"
        return f"{names} have the best {study.metric}, and no other differs from {base} by more than noise."
    if best.difference is None:
        return f"{base} has the best {study.metric}, but no other differs from it by more than noise."
    if best.p_holm is None:
        few = ", but has one seed, so" if len(best.by_seed) == 1 else ", but"
        return (
            f"{best.setting.label} has the best {study.metric}{few} whether that is more than noise can't be said. No "
            f"other setting differs from {base} by more than noise."
        )
    assert best.difference is not None
    unit = "" if study.metric in LOSSES else " points"
    gap = difference_words(study, best.difference).replace(" (", f"{unit} (").removesuffix(")")
    corrected = "" if len(others) == 1 else f" after correction for {len(others)} comparisons"
    words = f"{gap}{'; ' if '(' in gap else ' ('}p {_equals(best.p_holm)}{corrected})"
    if len(others) == 1:
        return f"{best.setting.label} does not differ from {base} by more than noise: {words}."
    return f"No setting differs from {base} by more than noise. The best, {best.setting.label}, is at {words}."


def _of_these_runs(study: Study, others: Sequence[Row], best: Row) -> str:
    """What can be said of the runs where too few seeds say how much runs differ."""
    apart = [row for row in others if row.is_apart]
    if not apart:
        return _nothing_claimed(study, others, best)
    base = study.rows[[row.setting for row in study.rows].index(study.baseline)]
    parts = []
    for word in ("higher", "lower"):
        rows = [row for row in apart if row.difference and (row.difference.value > 0) == (word == "higher")]
        if rows:
            parts.append(
                f"{_runs(rows).capitalize()} of {_named(study, rows)} had a {word} {study.metric} than {_runs([base])} "
                f"of {base.setting.label}"
            )
    return f"{'; '.join(parts)}. That is a difference of runs; it takes more seeds to say whether the settings differ."


def _runs(rows: Sequence[Row]) -> str:
    return "this run" if sum(len(row.setting.replicates) for row in rows) == 1 else "these runs"


def _is_better(study: Study, row: Row) -> bool:
    assert row.difference is not None
    return (row.difference.value < 0) == study.lower_is_better


def _named(study: Study, rows: Sequence[Row]) -> str:
    unit = "" if study.metric in LOSSES else " points"
    named = []
    for row in rows:
        assert row.difference is not None
        gap = difference_words(study, row.difference).replace(" (", f"{unit}, ").removesuffix(")")
        p = "" if row.p_holm is None else f"; p {_equals(row.p_holm)}"
        named.append(f"{row.setting.label} ({gap}{p})")
    return named[0] if len(named) == 1 else f"{', '.join(named[:-1])} and {named[-1]}"


def _equals(p: float) -> str:
    return p_words(p) if p < 0.001 else f"= {p_words(p)}"


def _does(rows: Sequence[Row], one: str, several: str) -> str:
    return one if len(rows) == 1 else several
