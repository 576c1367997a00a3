"""Charts of test-time fine-tuning: tasks solved against time, and losses before and after."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from arcft.reporting.adaptation import Adaptation, done_course, solved_course
from arcft.reporting.charts.charts import Panel, charts_png, charts_svg
from arcft.reporting.outcomes import ANSWERED, SOLVED, UNSOLVED

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEVEL = "#8c8c8c"
UNITS = ((7200.0, 3600.0, "hours"), (120.0, 60.0, "minutes"), (0.0, 1.0, "seconds"))
"""(from how many seconds on, seconds per unit, name of the unit) for the time axis."""


def adaptation_panels(adaptation: Adaptation) -> list[Panel]:
    """The panels that have data: tasks over time, losses, both or none."""
    panels = []
    course, title, label, color = solved_course(adaptation), "Tasks solved", "adapted", SOLVED.color
    if not course:
        course, title, label, color = done_course(adaptation), "Tasks done", "done", ANSWERED.color
    if len(course) > 1:
        size, name = next((size, name) for least, size, name in UNITS if course[-1][0] >= least)
        level = course[0][1] if adaptation.before is not None and label == "adapted" else None
        points = [(seconds / size, number) for seconds, number in course]
        panels.append(Panel(title, name, functools.partial(_draw_course, points, level, label, color)))
    shared = adaptation.shares_adapters
    losses = [
        (row.loss_first, row.loss_last, None if shared else row.solved)
        for row in adaptation.adapters
        if row.loss_first is not None and row.loss_last is not None
    ]
    if losses:
        draw = functools.partial(_draw_losses, losses)
        panels.append(Panel(f"Loss of each {'adapter' if shared else 'task'}", "first steps, nats per token", draw))
    return panels


def adaptation_svg(adaptation: Adaptation) -> str:
    """The charts as an <svg> element; "" if there is nothing to draw."""
    panels = adaptation_panels(adaptation)
    return charts_svg(panels) if panels else ""


def adaptation_png(path: Path | str, adaptation: Adaptation) -> None:
    """Write the charts as a PNG: tasks solved (finished, if no answer is known) over time, and losses."""
    panels = adaptation_panels(adaptation)
    if not panels:
        raise ValueError("no task was adapted to, so there is nothing to draw")
    Path(path).write_bytes(charts_png(panels))


def _draw_course(points: Sequence[tuple[float, int]], level: int | None, label: str, color: str, axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    times, numbers = zip(*points, strict=True)
    if level is not None:
        axes.axhline(level, color=LEVEL, linestyle="--", linewidth=1.3, label=f"not adapted: {level:,}")
    final, marker = f"{label}: {numbers[-1]:,}", "" if len(points) > 40 else "o"
    axes.step(times, numbers, where="post", color=color, label=final, marker=marker, markersize=3.5)
    top = max(*numbers, level or 0, 1)
    axes.set_ylim(-0.04 * top, 1.08 * top)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.set_xlim(left=0)


def _draw_losses(losses: Sequence[tuple[float, float, bool | None]], axes: Axes) -> None:
    kinds = [("solved", SOLVED.color, True), ("not solved", UNSOLVED.color, False), ("", ANSWERED.color, None)]
    top = max(max(first, last) for first, last, _ in losses) or 1.0
    axes.plot((0, top), (0, top), color=LEVEL, linestyle="--", linewidth=1.3)
    axes.annotate("unchanged", (top, top), (-20, 0), textcoords="offset points", ha="right", va="top", color=LEVEL)
    for label, color, kind in kinds:
        dots = [(first, last) for first, last, solved in losses if solved == kind]
        if dots:
            firsts, lasts = zip(*dots, strict=True)
            axes.scatter(firsts, lasts, s=16, alpha=0.75, color=color, linewidths=0, label=label, zorder=3)
    axes.set_ylabel("last steps")
    axes.set_xlim(-0.03 * top, 1.05 * top)
    axes.set_ylim(-0.03 * top, 1.05 * top)
