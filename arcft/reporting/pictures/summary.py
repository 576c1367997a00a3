"""One picture of an evaluation, for a slide: headline metrics, how the tasks ended, a curve, and some of the tasks."""

from __future__ import annotations

import bisect
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from PIL import Image, ImageDraw

from arcft.protocols import Card, MetricSet
from arcft.reporting.adaptation import Adaptation
from arcft.reporting.charts.adaptation_charts import adaptation_panels
from arcft.reporting.charts.charts import charts_png
from arcft.reporting.charts.curves import Curves, curves_png, panel_titles
from arcft.reporting.outcomes import OUTCOMES, Result
from arcft.reporting.pictures.tiles import (
    FAINT,
    INK,
    PAPER,
    columns_and_rows,
    draw_tiles,
    fit_box,
    font,
    one_line,
    tiles_of_problem,
)
from arcft.reporting.words import SPREAD, count, describe, percent, spread
from arcft.scoring.metrics import Scores

Item = TypeVar("Item")

WIDTH, HEIGHT = 1920, 1080
EDGE = 56
MOST_CURVE_HEIGHT = 380
WARNING = "#b3261e"


def draw_summary(
    title: str,
    scores: Scores | None,
    results: Sequence[Result],
    curves: Curves | None,
    metric_set: MetricSet,
    card: Card,
    note: str = "",
    adaptation: Adaptation | None = None,
) -> Image.Image:
    """An RGB picture of 1920 x 1080 pixels; `note` is a warning shown above the scores.

    With an `adaptation` its charts replace the `curves`, and each metric has its value before adapting beside it.
    """
    picture = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((EDGE, 44), shorten(draw, one_line(title), 40, WIDTH - 2 * EDGE), fill=INK, font=font(40, bold=True))
    words = describe(results)
    if scores and len(scores.problems) > 1:
        words += f"; means over tasks; {SPREAD}"
    room = WIDTH - 2 * EDGE
    if note:
        draw.text((WIDTH - EDGE, 100), note, fill=WARNING, font=font(22, bold=True), anchor="ra")
        room -= int(draw.textlength(note, font=font(22, bold=True))) + 40
    draw.text((EDGE, 100), shorten(draw, words, 22, room, bold=False), fill=FAINT, font=font(22))
    top = 158
    if scores and scores.metrics:
        _draw_headlines(draw, scores, adaptation.before if adaptation else None, metric_set.headlines, top)
        top += 132
    _draw_bar(draw, results, top)
    top += 92
    left = EDGE
    size = (540, HEIGHT - EDGE - top - 34)
    words, charts = _charts(curves, adaptation, metric_set, size)
    if charts is not None:
        draw.text((left, top), words, fill=FAINT, font=font(17))
        picture.paste(charts, (left, top + 34))
        left += size[0] + 48
    _draw_examples(picture, results, card, left, top, WIDTH - EDGE - left, HEIGHT - 30 - top)
    return picture


def write_summary(
    path: Path,
    title: str,
    scores: Scores | None,
    results: Sequence[Result],
    curves: Curves | None,
    metric_set: MetricSet,
    card: Card,
    note: str = "",
    adaptation: Adaptation | None = None,
) -> None:
    """Write `draw_summary` as a PNG."""
    draw_summary(title, scores, results, curves, metric_set, card, note, adaptation).save(path, optimize=True)


def shorten(draw: ImageDraw.ImageDraw, text: str, size: int, width: int, *, bold: bool = True) -> str:
    """`text`, cut with an ellipsis where it would be wider than `width` pixels."""
    lettering = font(size, bold=bold)
    if draw.textlength(text, font=lettering) <= width:
        return text
    lengths = range(len(text))
    fitting = bisect.bisect_right(
        lengths, False, key=lambda length: draw.textlength(text[:length] + "…", font=lettering) > width
    )
    return text[: max(fitting - 1, 0)] + "…"


def _draw_headlines(
    draw: ImageDraw.ImageDraw, scores: Scores, before: Scores | None, headlines: Mapping[str, str], top: int
) -> None:
    errors = scores.standard_errors()
    step = (WIDTH - 2 * EDGE) / len(headlines)
    for number, (name, words) in enumerate(headlines.items()):
        left = EDGE + number * step
        value = percent(scores.metrics[name])
        error = spread(scores.metrics[name], errors[name], len(scores.problems))
        after = left
        if before is not None and before.metrics:
            # Both values and an error would be wider than a column: the error goes below.
            words_before = f"{percent(before.metrics[name])} →"
            draw.text((left, top + 19), words_before, fill=FAINT, font=font(25))
            after += draw.textlength(words_before, font=font(25)) + 12
        draw.text((after, top), value, fill=INK, font=font(46, bold=True))
        draw.text((left, top + 60), words, fill=INK, font=font(19))
        if after == left:
            after += draw.textlength(value, font=font(46, bold=True)) + 10
            draw.text((after, top + 25), error, fill=FAINT, font=font(20))
            draw.text((left, top + 85), name, fill=FAINT, font=font(15))
        else:
            draw.text((left, top + 85), f"{name} {error}", fill=FAINT, font=font(15))


def _draw_bar(draw: ImageDraw.ImageDraw, results: Sequence[Result], top: int) -> None:
    counts = Counter(result.outcome for result in results)
    shown = [outcome for outcome in OUTCOMES if counts[outcome]]
    left, legend = float(EDGE), float(EDGE)
    for outcome in shown:
        width = (WIDTH - 2 * EDGE) * counts[outcome] / len(results)
        draw.rectangle((left, top, left + max(width - 2, 1), top + 22), fill=outcome.color)
        left += width
        draw.rectangle((legend, top + 40, legend + 13, top + 53), fill=outcome.color)
        words = f"{counts[outcome]:,} {outcome.name}"
        draw.text((legend + 21, top + 35), words, fill=INK, font=font(18))
        legend += 21 + draw.textlength(words, font=font(18)) + 34


def _charts(
    curves: Curves | None, adaptation: Adaptation | None, metric_set: MetricSet, room: tuple[int, int]
) -> tuple[str, Image.Image | None]:
    """The charts that say most, in a picture no larger than `room`, and what they show; None without any."""
    width, height = room
    panels = adaptation_panels(adaptation) if adaptation else []
    if adaptation and panels:
        missing = adaptation.not_adapted()
        words = "test-time fine-tuning" + (f"; tasks: {missing}" if missing else "")
        size = (width, min(height, MOST_CURVE_HEIGHT * len(panels)))
        return words, _opened(charts_png(panels, pixel_size=size, stacked=True))
    if curves is not None and not curves.is_empty:
        size = (width, min(height, MOST_CURVE_HEIGHT * len(panel_titles(curves, metric_set))))
        words = "while it was trained; metrics on held-out tasks"
        return words, _opened(curves_png(curves, metric_set, pixel_size=size, stacked=True))
    return "", None


def _opened(png: bytes) -> Image.Image:
    return Image.open(io.BytesIO(png)).convert("RGB")


def _draw_examples(
    picture: Image.Image, results: Sequence[Result], card: Card, left: int, top: int, width: int, height: int
) -> None:
    """Solved and other tests, in equal parts where there are enough of both."""
    tiles = [tile for result in results for tile in tiles_of_problem(result.problem, result.attempts, card)]
    if not tiles:
        return
    num_panels = max(len(tile.panels) for tile in tiles)
    # Where only some answers are known, these are the ones to look at: they have a panel more.
    tiles = [tile for tile in tiles if len(tile.panels) == num_panels]
    note_height = 34
    area = (width, height - note_height)
    box, room = fit_box(len(tiles), num_panels, area, smallest=104, largest=520)
    right = [tile for tile in tiles if tile.panels[-1].right]
    rest = [tile for tile in tiles if not tile.panels[-1].right]
    num_right = min(len(right), max(room - len(rest), -(-room // 2)))
    chosen = evenly(right, num_right) + evenly(rest, room - num_right)
    if len(chosen) == len(tiles):
        note = count(len(tiles), "test")
    elif right and rest:
        note = (
            f"{num_right} of {len(right):,} solved and {len(chosen) - num_right} of {len(rest):,} other tests, "
            "evenly from the best to the worst"
        )
    else:
        note = f"{len(chosen)} of {len(tiles):,} tests"
    ImageDraw.Draw(picture).text((left, top), note, fill=FAINT, font=font(17))
    columns, _ = columns_and_rows(num_panels, box, area)
    picture.paste(draw_tiles(chosen, box, columns, area=area), (left, top + note_height))


def evenly(items: Sequence[Item], number: int) -> list[Item]:
    """`number` of the items (all, if there are fewer), in order and evenly spaced from the first to the last."""
    if number >= len(items):
        return list(items)
    if number == 1:
        return [items[0]]
    return [items[round(index * (len(items) - 1) / (number - 1))] for index in range(number)]
