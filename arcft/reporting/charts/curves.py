"""Losses and generation metrics over training steps: read from a run, and drawn."""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arcft.json_text import json_lines
from arcft.protocols import MetricSet
from arcft.reporting.charts.charts import Panel, charts_png, charts_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HISTORY_FILE = "history.jsonl"
TRAIN_LOSS = "loss"
EVAL_LOSS = "eval_loss"
METRIC_PREFIX = "eval_"
"""A line of the history holds `step` and any of `loss`, `eval_loss` and, by metric, `eval_METRIC`."""

Line = tuple[tuple[int, float], ...]
"""Points (training step, value), by step."""

LOSSES = {"train_loss": ("training", "#8c8c8c"), "eval_loss": ("validation", "#d55e00")}


@dataclasses.dataclass(frozen=True)
class Curves:
    """The history of a run; any part may be empty. Losses are nats per supervised token, metrics fractions 0..1."""

    train_loss: Line = ()
    eval_loss: Line = ()
    metrics: Mapping[str, Line] = dataclasses.field(default_factory=dict)

    @property
    def steps(self) -> tuple[int, ...]:
        """All steps with metrics."""
        return tuple(sorted({step for line in self.metrics.values() for step, _ in line}))

    @property
    def is_empty(self) -> bool:
        return not (self.train_loss or self.eval_loss or any(self.metrics.values()))

    def with_metrics(self, metrics_at: Mapping[int, Mapping[str, float]], metric_set: MetricSet) -> Curves:
        """The same losses with other metrics: those of each checkpoint's evaluation, by training step."""
        lines = {
            name: tuple((step, metrics_at[step][name]) for step in sorted(metrics_at) if name in metrics_at[step])
            for name in metric_set.names
        }
        return dataclasses.replace(self, metrics={name: line for name, line in lines.items() if line})


def history_lines(run_folder: Path) -> list[dict[str, Any]]:
    """The lines of RUN/history.jsonl that can be read and have a step."""
    return [line for line in json_lines(run_folder / HISTORY_FILE) if isinstance(line.get("step"), int)]


def read_history(run_folder: Path | str, metric_set: MetricSet) -> Curves:
    """Read RUN/history.jsonl; empty curves if there is none.

    A resumed run repeats the steps after its checkpoint; the later line wins. Lines cut off by a crash and non-finite
    values are ignored.
    """
    values: dict[str, dict[int, float]] = {}
    for line in history_lines(Path(run_folder)):
        for name, value in line.items():
            # A damaged line may hold a whole number that is too large for a float.
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if is_number and abs(value) <= sys.float_info.max:
                values.setdefault(name, {})[line["step"]] = float(value)
    lines = {name: tuple(sorted(points.items())) for name, points in values.items()}
    return Curves(
        train_loss=lines.get(TRAIN_LOSS, ()),
        eval_loss=lines.get(EVAL_LOSS, ()),
        metrics={name: lines[METRIC_PREFIX + name] for name in metric_set.names if METRIC_PREFIX + name in lines},
    )


def curves_svg(curves: Curves, metric_set: MetricSet) -> str:
    """The curves as an <svg> element to put into HTML, in the text colour of its surroundings; "" if there are none."""
    if curves.is_empty:
        return ""
    return charts_svg(_panels(curves, metric_set), share_x=True)


def curves_png(
    curves: Curves, metric_set: MetricSet, *, pixel_size: tuple[int, int] | None = None, stacked: bool = False
) -> bytes:
    """The curves as a PNG on white, by default as wide as they have panels; `stacked` puts these below each other."""
    if curves.is_empty:
        raise ValueError("no curves to draw")
    return charts_png(_panels(curves, metric_set), pixel_size=pixel_size, stacked=stacked, share_x=True)


def panel_titles(curves: Curves, metric_set: MetricSet) -> list[str]:
    """Titles of the panels that have data."""
    return [panel.title for panel in _panels(curves, metric_set)]


def _panels(curves: Curves, metric_set: MetricSet) -> list[Panel]:
    panels = []
    if curves.train_loss or curves.eval_loss:
        panels.append(Panel("Loss", "training step", functools.partial(_draw_losses, curves)))
    for title, names in metric_set.charts.items():
        if any(curves.metrics.get(name) for name in names):
            colors = {name: metric_set.colors[name] for name in names}
            panels.append(Panel(title, "training step", functools.partial(_draw_metrics, curves, colors)))
    return panels


def _draw_losses(curves: Curves, axes: Axes) -> None:
    for field, (label, color) in LOSSES.items():
        line: Line = getattr(curves, field)
        if line:
            many = len(line) > 25
            axes.plot(*zip(*line, strict=True), color=color, label=label, marker="" if many else "o", markersize=3.5)
    axes.set_ylabel("nats per token")


def _draw_metrics(curves: Curves, colors: Mapping[str, str], axes: Axes) -> None:
    for name, color in colors.items():
        line = curves.metrics.get(name)
        if line:
            steps, values = zip(*line, strict=True)
            percent = [100 * value for value in values]
            axes.plot(steps, percent, color=color, label=name, marker="o", markersize=3.5)
    # From 0, so that a small difference does not look like a large one; the floor itself stays visible.
    top = max(axes.get_ylim()[1], 1)
    axes.set_ylim(-0.03 * top, top)
    axes.set_ylabel("%")
