"""Losses and generation metrics against training step, read from a run and drawn."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arcft.scoring.metrics import METRICS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HISTORY_FILE = "history.jsonl"
TRAIN_LOSS = "loss"
EVAL_LOSS = "eval_loss"
METRIC_PREFIX = "eval_"
"""A line of the history holds `step` and any of `loss`, `eval_loss` and `eval_accuracy`, `eval_vote_2`, ..."""

Line = tuple[tuple[int, float], ...]
"""Points (training step, value), by step."""

# Two families of metrics, each with its own scale; colours from Okabe and Ito, told apart by colour-blind readers.
FAMILIES: dict[str, dict[str, str]] = {
    "Solved": {"pass_n": "#7cc4f0", "vote_2": "#1f86cc", "accuracy": "#009e73"},
    "Grids": {"correct_size": "#cc79a7", "correct_pixels": "#d55e00", "unanswered": "#8c8c8c"},
}
LOSSES = {"train_loss": ("training", "#8c8c8c"), "eval_loss": ("validation", "#d55e00")}

# A colour that nothing else uses, replaced by CSS's currentColor in SVG.
_SENTINEL = "#010203"
_DOTS_PER_INCH = 120
_STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "svg.fonttype": "none",
    "svg.hashsalt": "arcft",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.facecolor": "none",
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "grid.alpha": 0.15,
    "grid.linewidth": 0.8,
}
_INKED = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color")


@dataclasses.dataclass(frozen=True)
class Curves:
    """The history of a run; any part may be empty. Losses are nats per supervised token, metrics fractions 0..1."""

    train_loss: Line = ()
    eval_loss: Line = ()
    metrics: Mapping[str, Line] = dataclasses.field(default_factory=dict)

    @property
    def steps(self) -> tuple[int, ...]:
        """Every step at which metrics are known."""
        return tuple(sorted({step for line in self.metrics.values() for step, _ in line}))

    @property
    def is_empty(self) -> bool:
        return not (self.train_loss or self.eval_loss or any(self.metrics.values()))

    def with_metrics(self, metrics_at: Mapping[int, Mapping[str, float]]) -> Curves:
        """The same losses beside other metrics: those of each checkpoint's own evaluation, by training step."""
        lines = {
            name: tuple((step, metrics_at[step][name]) for step in sorted(metrics_at) if name in metrics_at[step])
            for name in METRICS
        }
        return dataclasses.replace(self, metrics={name: line for name, line in lines.items() if line})


def read_history(run_folder: Path | str) -> Curves:
    """Read RUN/history.jsonl; empty curves where there is none.

    A resumed run repeats the steps after its checkpoint: the later line holds. A line that a crash cut off and values
    that are not finite numbers are passed over.
    """
    values: dict[str, dict[int, float]] = {}
    for line in _lines(Path(run_folder) / HISTORY_FILE):
        for name, value in line.items():
            if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
                values.setdefault(name, {})[line["step"]] = float(value)
    lines = {name: tuple(sorted(points.items())) for name, points in values.items()}
    return Curves(
        train_loss=lines.get(TRAIN_LOSS, ()),
        eval_loss=lines.get(EVAL_LOSS, ()),
        metrics={name: lines[METRIC_PREFIX + name] for name in METRICS if METRIC_PREFIX + name in lines},
    )


def curves_svg(curves: Curves) -> str:
    """The curves as an <svg> element to put into HTML, in the text colour of its surroundings; "" if there are none."""
    if curves.is_empty:
        return ""
    svg = _render(curves, "svg", size=(4.6 * len(panel_titles(curves)), 3.0), ink=_SENTINEL).decode()
    # Who drew it and when is of no use here, and its addresses look as if something were fetched.
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    return svg.replace(_SENTINEL, "currentColor").replace("'DejaVu Sans'", "system-ui, sans-serif")


def curves_png(curves: Curves, *, pixel_size: tuple[int, int] | None = None, stacked: bool = False) -> bytes:
    """The curves as a PNG on white, by default as wide as they have panels; `stacked` puts these below each other."""
    if curves.is_empty:
        raise ValueError("no curves to draw")
    width, height = pixel_size or (560 * len(panel_titles(curves)), 400)
    size = (width / _DOTS_PER_INCH, height / _DOTS_PER_INCH)
    return _render(curves, "png", size=size, ink="#333333", stacked=stacked)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        return
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            yield line


def panel_titles(curves: Curves) -> list[str]:
    """Titles of the panels that have something to show."""
    families = [title for title, names in FAMILIES.items() if any(curves.metrics.get(name) for name in names)]
    return (["Loss"] if curves.train_loss or curves.eval_loss else []) + families


def _render(curves: Curves, kind: str, *, size: tuple[float, float], ink: str, stacked: bool = False) -> bytes:
    """The picture as a file of this `kind`; `size` is width and height in inches."""
    import matplotlib
    from matplotlib.figure import Figure

    panels = panel_titles(curves)
    rows, columns = (len(panels), 1) if stacked else (1, len(panels))
    style: Any = _STYLE | dict.fromkeys(_INKED, ink)
    buffer = io.BytesIO()
    # Some settings are looked up when an axis is made, others when the file is written.
    with matplotlib.rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        for axes, title in zip(figure.subplots(rows, columns, squeeze=False, sharex=True).flat, panels, strict=True):
            axes.set_title(title, fontweight="bold")
            if not stacked or title == panels[-1]:
                axes.set_xlabel("training step")
            if title == "Loss":
                _draw_losses(axes, curves)
            else:
                _draw_family(axes, curves, FAMILIES[title])
            axes.legend(
                frameon=False, fontsize=8, ncols=3, loc="lower right", bbox_to_anchor=(1.02, 0.97),
                handlelength=1.2, columnspacing=1.2, handletextpad=0.5,
            )  # fmt: skip
        metadata = {"Date": None} if kind == "svg" else None
        figure.savefig(buffer, format=kind, dpi=_DOTS_PER_INCH, transparent=kind == "svg", metadata=metadata)
    return buffer.getvalue()


def _draw_losses(axes: Axes, curves: Curves) -> None:
    for field, (label, color) in LOSSES.items():
        line: Line = getattr(curves, field)
        if line:
            many = len(line) > 25
            axes.plot(*zip(*line, strict=True), color=color, label=label, marker="" if many else "o", markersize=3.5)
    axes.set_ylabel("nats per token")


def _draw_family(axes: Axes, curves: Curves, colors: Mapping[str, str]) -> None:
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
