"""The chart of a speed study: tokens per second against input and output length, by model and precision."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from arcft.reporting.charts.charts import Panel, charts_png
from arcft.reporting.speed.rows import Row, groups

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Of models, in turn; told apart also by those who see no red or no green."""

STYLES = ("-", "--", ":", "-.")
"""Of precisions, in turn."""

_MOST_BATCHES = 3
_LEAST_RANGE = 20
"""Ratio of the ends of the vertical axis."""

_LABEL_SIZE = 7.5
_LABEL_POINTS = 9.5
"""Least distance of two labels, in points."""

Line = tuple[str, str, str, list[tuple[int, float]]]
"""Label, colour, style, and points (tokens, tokens per second)."""

Looks = Mapping[str, tuple[str, str]]
"""By model and precision, as rows name them: colour and style, the same in all panels."""


def speed_png(rows: Sequence[Row]) -> bytes:
    """A row of panels for each batch size (of more than three: the smallest, the middle and the largest one), as a PNG.

    On the left reading against input length; on the right writing against output length, after the longest input.
    `rows` hold at least one that was measured.
    """
    measured = [row for row in rows if row.is_measured]
    batches = _spread_out(sorted({row.setting.batch for row in measured}))
    looks = _looks(measured)
    panels = [panel for batch in batches for panel in _panels(measured, batch, looks)]
    return charts_png(panels, rows=len(batches), pixel_size=(1400, 60 + 400 * len(batches)))


def _looks(rows: Sequence[Row]) -> Looks:
    models = list(dict.fromkeys(row.setting.model for row in rows))
    precisions = list(dict.fromkeys(row.precision for row in rows))
    return {
        row.name: (
            COLORS[models.index(row.setting.model) % len(COLORS)],
            STYLES[precisions.index(row.precision) % len(STYLES)],
        )
        for row in rows
    }


def _spread_out(values: list[int]) -> list[int]:
    if len(values) <= _MOST_BATCHES:
        return values
    return [values[0], values[len(values) // 2], values[-1]]


def _panels(rows: Sequence[Row], batch: int, looks: Looks) -> list[Panel]:
    rows = [row for row in rows if row.setting.batch == batch]
    most = max(row.setting.input for row in rows)
    at_once = f"{batch} at once" if batch > 1 else "one at a time"
    reading = _lines(rows, lambda row: row.setting.input, lambda row: row.read_per_second, looks)
    after = [row for row in rows if row.setting.input == most]
    writing = _lines(after, lambda row: row.setting.output, lambda row: row.written_per_second, looks)
    return [
        Panel(f"Reading, {at_once}", "input, tokens", functools.partial(_draw, reading)),
        Panel(f"Writing after {most:,} tokens, {at_once}", "output, tokens", functools.partial(_draw, writing)),
    ]


def _lines(rows: Sequence[Row], x: Callable[[Row], int], y: Callable[[Row], float | None], looks: Looks) -> list[Line]:
    """A line for each model and precision; rows with the same x are averaged."""
    lines = []
    for name, own in groups(rows).items():
        values: dict[int, list[float]] = {}
        for row in own:
            speed = y(row)
            if speed is not None:
                values.setdefault(x(row), []).append(speed)
        if values:
            points = [(length, sum(speeds) / len(speeds)) for length, speeds in sorted(values.items())]
            lines.append((name, *looks[name], points))
    return lines


def _draw(lines: Sequence[Line], axes: Axes) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    for _, color, style, points in lines:
        axes.plot(*zip(*points, strict=True), color=color, linestyle=style, marker="o", markersize=3.5)
    lengths = sorted({length for *_, points in lines for length, _ in points})
    if lengths:
        axes.xaxis.set_major_locator(FixedLocator(lengths))
        axes.set_xlim(lengths[0] / 1.15, lengths[-1] * 1.15)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    low, high = axes.get_ylim()
    # Small differences should look small.
    room = max(1.2, math.sqrt(_LEAST_RANGE * low / high))
    axes.set_ylim(low / room, high * room)
    axes.set_ylabel("tokens a second")
    _label(lines, axes)


def _label(lines: Sequence[Line], axes: Axes) -> None:
    """Write each line's name and last value to the right of it, moved apart where they would overlap."""
    ends = sorted(((points[-1], name, color) for name, color, _, points in lines), key=lambda end: end[0][1])
    height = axes.figure.get_figheight() * 72 / max(1, axes.get_gridspec().nrows) * 0.7  # type: ignore[union-attr]
    low, high = axes.get_ylim()

    def place(value: float) -> float:
        """Points above the lower edge."""
        return height * math.log(value / low) / math.log(high / low)

    wanted = [place(end[0][1]) for end in ends]
    for ((x, y), name, color), own, moved in zip(ends, wanted, apart(wanted, _LABEL_POINTS, height), strict=True):
        axes.annotate(
            f"{name}  {y:,.0f}", (x, y), (10, moved - own), textcoords="offset points", fontsize=_LABEL_SIZE,
            color=color, va="center", ha="left", annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 2,
                        "relpos": (0, 0.5)},
        )  # fmt: skip


def apart(places: Sequence[float], gap: float, height: float) -> list[float]:
    """Ascending `places` moved as little as needed to be `gap` apart, and within 0 to `height` if there is room."""
    moved = list(places)
    for _ in range(200):
        overlaps = False
        for index in range(1, len(moved)):
            missing = gap - (moved[index] - moved[index - 1])
            if missing > 1e-6:
                overlaps = True
                moved[index - 1] -= missing / 2
                moved[index] += missing / 2
        if not overlaps:
            break
    if moved:
        shift = min(0.0, height - moved[-1])
        shift = max(shift, -moved[0])
        moved = [place + shift for place in moved] if shift else moved
    return moved
