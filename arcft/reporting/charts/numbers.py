"""How scores grow with the number of predictions a test: a table and a chart."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from arcft.protocols import MetricSet
from arcft.reporting.charts.charts import Panel, charts_png, charts_svg
from arcft.reporting.words import percent, plus_minus
from arcft.scoring.resampling import DRAWS, SubsampledMetrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes

EXPLAINED = (
    f"Estimates for fewer predictions: those of each test are drawn {DRAWS} times without replacement and selected "
    "from anew. ± is the standard deviation over draws, the noise from which predictions are made; near the full "
    "number the draws have most predictions in common, so it is too small there. The choice of tasks is no part of it."
)


def numbers_section(numbers: Sequence[SubsampledMetrics], metric_set: MetricSet) -> str:
    """HTML with the table and the chart; "" where there are no `numbers`."""
    if not numbers:
        return ""
    names = "".join(f'<th class="number"><code>{name}</code></th>' for name in metric_set.by_rank)
    rows = "".join(f'<tr><td class="number">{at.predictions:,}</td>{_cells(at)}</tr>' for at in numbers)
    return (
        f'<h2>Numbers of predictions</h2><p class="faint">{EXPLAINED}</p>'
        f'<table><tr><th class="number">predictions a test</th>{names}</tr>{rows}</table>'
        f'<div class="curves">{charts_svg(_panels(numbers, metric_set))}</div>'
    )


def numbers_png(numbers: Sequence[SubsampledMetrics], metric_set: MetricSet) -> bytes:
    """The chart as a PNG."""
    return charts_png(_panels(numbers, metric_set))


def _cells(at: SubsampledMetrics) -> str:
    return "".join(
        f'<td class="number">{percent(at.mean[name])} {plus_minus(at.deviation[name])}</td>' for name in at.mean
    )


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
