"""The chart of a study: the metric of each setting, and its difference to the baseline."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from arcft.reporting.charts.charts import Panel, charts_png
from arcft.reporting.charts.speed_chart import COLORS
from arcft.studies.runs import LOSSES
from arcft.studies.settings import is_number, shown
from arcft.studies.study import Row, Study
from arcft.studies.words import title

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DIFFERENCE = "Difference to the baseline"
_SEED_COLOR = "#8c8c8c"
_ROW_PIXELS = 26
_LEAST_PIXELS = 380
_MOST_ROWS = 60
"""Settings drawn as dots: the best of more."""

_LONGEST_NAME = 40
_FEW = 12
"""Values of an axis that are each written on it."""

_MANY = 40
"""Values of an axis of which more are drawn as a band, without bars and seeds."""

_ASIDE = 0.008
"""Between the points of several lines, as a share of the axis, so that their bars don't cover each other."""


def study_png(study: Study) -> bytes:
    """A line over the values of a numeric setting, one for each of the other settings; dots for all else."""
    axis = _numeric_axis(study)
    if axis is not None:
        draw = functools.partial(_draw_lines, study, axis)
        panels = [Panel(_plain(title(study)), study.grouping.by[axis], functools.partial(draw, False))]
        if any(row.difference for row in study.rows):
            panels.append(Panel(_DIFFERENCE, study.grouping.by[axis], functools.partial(draw, True)))
        return charts_png(panels, pixel_size=(620 * len(panels), 420))
    rows = study.rows if len(study.rows) <= _MOST_ROWS else _best_rows(study)
    panels = [Panel(_plain(title(study)), _unit(study), functools.partial(_draw_dots, study, rows, False))]
    if any(row.difference for row in rows):
        panels.append(Panel(_DIFFERENCE, _against(study), functools.partial(_draw_dots, study, rows, True)))
    return charts_png(panels, pixel_size=(700 * len(panels), max(_LEAST_PIXELS, 120 + _ROW_PIXELS * len(rows))))


def _numeric_axis(study: Study) -> int | None:
    """The key with the most values, if all of them are numbers and there are few lines."""
    best: tuple[int, int] | None = None
    for index in range(len(study.grouping.by)):
        values = {shown(row.setting.values[index]) for row in study.rows}
        if len(values) > 1 and all(is_number(row.setting.values[index]) for row in study.rows):
            lines = {_others(row, index) for row in study.rows}
            if len(lines) <= len(COLORS) and (best is None or len(values) > best[0]):
                best = len(values), index
    return None if best is None else best[1]


def _others(row: Row, axis: int) -> tuple[str, ...]:
    return tuple(shown(value) for index, value in enumerate(row.setting.values) if index != axis)


def _best_rows(study: Study) -> Sequence[Row]:
    sign = 1 if study.lower_is_better else -1
    return sorted(study.rows, key=lambda row: sign * row.value.value)[:_MOST_ROWS]


def _unit(study: Study) -> str:
    return "nats per token" if study.metric in LOSSES else "%"


def _against(study: Study) -> str:
    unit = "" if study.metric in LOSSES else "points "
    return f"{unit}against {_shortened(' '.join(map(shown, study.baseline.values)))}"


def _factor(study: Study) -> int:
    return 1 if study.metric in LOSSES else 100


def _bars(study: Study, row: Row, of_difference: bool) -> tuple[float, float, float]:
    """Value, and how far the interval reaches below and above it; the baseline's own difference is 0."""
    factor = _factor(study)
    interval = row.difference if of_difference else row.value
    if interval is None:
        return 0.0, 0.0, 0.0
    reach = interval.value - interval.low, interval.high - interval.value
    below, above = (0.0 if math.isnan(one) else max(one, 0.0) * factor for one in reach)
    return factor * interval.value, below, above


def _draw_lines(study: Study, axis: int, of_difference: bool, axes: Axes) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    lines: dict[tuple[str, ...], list[Row]] = {}
    for row in study.rows:
        lines.setdefault(_others(row, axis), []).append(row)
    numbers = sorted({row.setting.values[axis] for row in study.rows})
    is_log = numbers[0] > 0 and numbers[-1] / numbers[0] > 3
    if is_log:
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
    for number, ((names, rows), color) in enumerate(zip(lines.items(), COLORS, strict=False)):
        rows = sorted(rows, key=lambda row: row.setting.values[axis])
        aside = (number - (len(lines) - 1) / 2) * _ASIDE
        places = [_moved(row.setting.values[axis], aside, numbers, is_log) for row in rows]
        values, below, above = map(np.array, zip(*(_bars(study, row, of_difference) for row in rows), strict=True))
        name = _shortened(" ".join(names)) or None
        if len(numbers) > _MANY:
            axes.plot(places, values, color=color, label=name)
            axes.fill_between(places, values - below, values + above, color=color, alpha=0.2, linewidth=0)
        else:
            axes.errorbar(places, values, [below, above], color=color, label=name, marker="o", markersize=4, capsize=3)
        if not of_difference and len(numbers) <= _MANY:
            for row, place in zip(rows, places, strict=True):
                _draw_seeds(study, row, place, color, axes)
    if len(numbers) <= _FEW:
        axes.xaxis.set_major_locator(FixedLocator(numbers))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    if of_difference:
        axes.axhline(0, color=_SEED_COLOR, linewidth=0.8)
        axes.set_ylabel(_against(study))
        return
    axes.set_ylabel(_unit(study))
    if study.metric not in LOSSES:
        # From 0, so that a small difference does not look like a large one.
        top = max(axes.get_ylim()[1], 1)
        axes.set_ylim(-0.03 * top, top)


def _moved(value: float, aside: float, numbers: Sequence[float], is_log: bool) -> float:
    """`value` on the axis of `numbers`, moved by the share `aside` of its length."""
    if is_log:
        return float(value * (numbers[-1] / numbers[0]) ** aside)
    return value + aside * (numbers[-1] - numbers[0])


def _draw_seeds(study: Study, row: Row, place: float, color: str, axes: Axes) -> None:
    if len(row.by_seed) > 1:
        seeds = [_factor(study) * value for value in row.by_seed]
        axes.plot([place] * len(seeds), seeds, color=color, linestyle="", marker="o", markersize=4, alpha=0.4)


def _draw_dots(study: Study, rows: Sequence[Row], of_difference: bool, axes: Axes) -> None:
    for place, row in enumerate(rows):
        value, below, above = _bars(study, row, of_difference)
        axes.errorbar(value, place, xerr=[[below], [above]], color=COLORS[0], marker="o", markersize=4, capsize=3)
        if not of_difference and len(row.by_seed) > 1:
            seeds = [_factor(study) * one for one in row.by_seed]
            axes.plot(seeds, [place] * len(seeds), color=_SEED_COLOR, linestyle="", marker="o", markersize=3, alpha=0.7)
    names = [] if of_difference else [_shortened(" ".join(map(shown, row.setting.values))) for row in rows]
    axes.set_yticks(range(len(rows)), names if names else [""] * len(rows))
    axes.set_ylim(len(rows) - 0.5, -0.5)
    if of_difference:
        axes.axvline(0, color=_SEED_COLOR, linewidth=0.8)


def _shortened(name: str) -> str:
    return _plain(name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…")


def _plain(text: str) -> str:
    """`text` as matplotlib draws it, which takes dollars for formulas."""
    return text.replace("$", r"\$")
