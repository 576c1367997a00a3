"""Arrange panels side by side or stacked, as SVG for a page or PNG for a slide; callers draw their contents."""

from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# A colour that nothing else uses; SVG output replaces it by CSS's currentColor.
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
class Panel:
    title: str
    x_label: str
    draw: Callable[[Axes], None]
    """Draws everything but title, label of the horizontal axis and legend."""


def charts_svg(panels: Sequence[Panel], *, share_x: bool = False) -> str:
    """The panels beside each other as an <svg> element to put into HTML, in the text colour of its surroundings."""
    svg = _render(panels, "svg", size=(4.6 * len(panels), 3.0), ink=_SENTINEL, rows=1, share_x=share_x).decode()
    # Author and date are useless here, and the URLs look like fetched resources.
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    return svg.replace(_SENTINEL, "currentColor").replace("'DejaVu Sans'", "system-ui, sans-serif")


def charts_png(
    panels: Sequence[Panel],
    *,
    pixel_size: tuple[int, int] | None = None,
    stacked: bool = False,
    rows: int = 1,
    share_x: bool = False,
) -> bytes:
    """The panels as a PNG on white, by default as wide as needed; `stacked` puts them below each other, and `rows`
    arranges them row by row."""
    rows = len(panels) if stacked else rows
    width, height = pixel_size or (560 * (len(panels) // rows), 400 * rows)
    size = (width / _DOTS_PER_INCH, height / _DOTS_PER_INCH)
    return _render(panels, "png", size=size, ink="#333333", rows=rows, share_x=share_x)


def _render(
    panels: Sequence[Panel], kind: str, *, size: tuple[float, float], ink: str, rows: int, share_x: bool
) -> bytes:
    """The picture as a file of this `kind`; `size` is width and height in inches, `share_x` for a single column."""
    import matplotlib
    from matplotlib.figure import Figure

    columns = len(panels) // rows
    style: Any = _STYLE | dict.fromkeys(_INKED, ink)
    buffer = io.BytesIO()
    # Some settings are read when an axis is created, others when the file is written.
    with matplotlib.rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        if columns > 1:
            figure.get_layout_engine().set(hspace=0.08)  # type: ignore[union-attr, call-arg]
        for axes, panel in zip(figure.subplots(rows, columns, squeeze=False, sharex=share_x).flat, panels, strict=True):
            axes.set_title(panel.title, fontweight="bold")
            if not (columns == 1 and share_x) or panel is panels[-1]:
                axes.set_xlabel(panel.x_label)
            panel.draw(axes)
            if axes.get_legend_handles_labels()[0]:
                axes.legend(
                    frameon=False, fontsize=8, ncols=3, loc="lower right", bbox_to_anchor=(1.02, 0.97),
                    handlelength=1.2, columnspacing=1.2, handletextpad=0.5,
                )  # fmt: skip
        metadata = {"Date": None} if kind == "svg" else None
        figure.savefig(buffer, format=kind, dpi=_DOTS_PER_INCH, transparent=kind == "svg", metadata=metadata)
    return buffer.getvalue()
