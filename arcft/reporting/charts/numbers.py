"""How scores grow with the number of predictions a test, as a chart."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from arcft.protocols import MetricSet
from arcft.reporting.charts.charts import Panel, charts_png, charts_svg
from arcft.scoring.resampling import DRAWS, SubsampledMetrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes

EXPLAINED = (
    f"Estimates for fewer predictions: those of each test are drawn {DRAWS} times without replacement and selected "
    "from anew. ± is the standard deviation over draws, the noise from which predictions are made; near the full "
    "number the draws have most predictions in common, so it is too small there. The choice of tasks is no part of it."
)


def numbers_svg(numbers: Sequence[SubsampledMetrics], metric_set: MetricSet) -> str:
    """The chart as an <svg> element to put into HTML."""
    return charts_svg(_panels(numbers, metric_set))


def numbers_png(numbers: Sequence[SubsampledMetrics], metric_set: MetricSet) -> bytes:
    """The chart as a PNG."""
    return charts_png(_panels(numbers, metric_set))


def _panels(numbers: Sequence[SubsampledMetrics], metric_set: MetricSet) -> list[Panel]:
    return [Panel("Solved", "predictions a test", functools.partial(_draw, numbers, metric_set))]


def _draw(numbers: Sequence[SubsampledMetrics], metric_set: MetricSet, axes: Axes) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator

    counts = [at.predictions for at in numbers]
    axes.set_xscale("log", base=2)
    for name in metric_set.by_rank:
        means = [100 * at.mean[name] for at in numbers]
        deviations = [100 * at.deviation[name] for at in numbers]
        axes.errorbar(
            counts, means, deviations, color=metric_set.colors[name], label=name, marker="o", markersize=3.5, capsize=2
        )
    axes.xaxis.set_major_locator(FixedLocator(counts))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0f}")
    top = max(axes.get_ylim()[1], 1)
    axes.set_ylim(-0.03 * top, top)
    axes.set_ylabel("%")
