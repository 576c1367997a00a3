"""Many tests on one picture: question, true output and attempts side by side, each test a tile."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from arcft.names import visible
from arcft.protocols import Answer, Card, Drawable, Problem
from arcft.reporting.outcomes import ANSWERED, SOLVED, UNANSWERED, UNSOLVED, is_right

INK = "#1d2430"
FAINT = "#6b7280"
PAPER = "#ffffff"
EMPTY = "#eceef1"
GAP, MARGIN = 8, 30
"""Pixels between the panels of a tile, and between tiles."""


@dataclasses.dataclass(frozen=True)
class Panel:
    caption: str
    draw: Callable[[int], Image.Image] | None
    """Draws it into a square of this many pixels; None where there is nothing to draw."""

    right: bool | None = None
    """For an attempt: whether it is the true output; None where there is nothing to judge."""


@dataclasses.dataclass(frozen=True)
class Tile:
    title: str
    color: str
    panels: Sequence[Panel]


@functools.cache
def font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings along, so that curves and captions are of one kind."""
    # Only here, since it takes a while to import.
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


def one_line(text: str) -> str:
    """`text` as pictures show it: control characters and line ends as escapes."""
    return visible(text).replace("\n", "\\n").replace("\t", "\\t")


def panel(card: Card, caption: str, drawn: Drawable | None, right: bool | None = None) -> Panel:
    """A panel with what `card` draws."""
    return Panel(caption, None if drawn is None else functools.partial(card.image, drawn), right)


def tiles_of_problem(
    problem: Problem, attempts: Sequence[Sequence[Answer]], card: Card, *, shown: int | None = None
) -> list[Tile]:
    """A tile for each test of `problem`: question, true output where it is known, and the attempts.

    With `shown=None` that is the one attempt that matters: the right one, else the first. Otherwise the first `shown`.
    """
    tiles = []
    for index, (truth, own) in enumerate(zip(problem.answers, attempts, strict=True)):
        panels = [panel(card, "input", card.question(problem, index))]
        if truth is not None:
            panels.append(panel(card, "true output", truth))
        for number in _best(own, truth) if shown is None else range(shown):
            answer = own[number] if number < len(own) else None
            right = None if answer is None else is_right(answer, truth)
            panels.append(panel(card, f"attempt {number + 1}", answer, right))
        several = len(problem.answers) > 1
        title = f"{problem.id}, test {index + 1} of {len(problem.answers)}" if several else problem.id
        tiles.append(Tile(title, attempt_color(truth, own), panels))
    return tiles


def _best(attempts: Sequence[Answer], truth: Answer | None) -> list[int]:
    return [number for number, answer in enumerate(attempts) if is_right(answer, truth)][:1] or [0]


def attempt_color(truth: Answer | None, attempts: Sequence[Answer]) -> str:
    """Green where one of the attempts is right, red where none is, blue where that is not known, grey without any."""
    if not attempts:
        return UNANSWERED.color
    if truth is None:
        return ANSWERED.color
    return SOLVED.color if any(is_right(answer, truth) for answer in attempts) else UNSOLVED.color


def tile_size(num_panels: int, box: int) -> tuple[int, int]:
    """Width and height in pixels of a tile whose panels are squares of `box` pixels."""
    return num_panels * box + (num_panels - 1) * GAP, box + 2 * _line_height(box)


def fit_box(num_tiles: int, num_panels: int, area: tuple[int, int], *, smallest: int, largest: int) -> tuple[int, int]:
    """The largest box with which `num_tiles` fit into the area (width, height), and how many do.

    If even the smallest is too large for that, the largest with which as many fit as with the smallest.
    """

    def room(box: int) -> int:
        columns, rows = columns_and_rows(num_panels, box, area)
        return min(num_tiles, columns * rows)

    most = room(smallest)
    box = max(box for box in range(smallest, largest + 1) if room(box) == most)
    return box, most


def columns_and_rows(num_panels: int, box: int, area: tuple[int, int]) -> tuple[int, int]:
    """How many tiles fit side by side, and one below the other."""
    tile_width, tile_height = tile_size(num_panels, box)
    return (area[0] + MARGIN) // (tile_width + MARGIN), (area[1] + MARGIN) // (tile_height + MARGIN)


def draw_tiles(tiles: Sequence[Tile], box: int, columns: int, *, area: tuple[int, int] | None = None) -> Image.Image:
    """The tiles row by row in `columns` columns, on white.

    Where `area` (width, height) has room to spare, rows and columns are spread over it, within reason.
    """
    tile_width, tile_height = tile_size(max(len(tile.panels) for tile in tiles), box)
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    across, down = MARGIN, MARGIN
    if area is not None:
        across = _spread(area[0], tile_width, columns, 4 * MARGIN)
        down = _spread(area[1], tile_height, rows, 2 * MARGIN)
    size = (columns * (tile_width + across) - across, rows * (tile_height + down) - down)
    picture = Image.new("RGB", size, PAPER)
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        picture.paste(_draw_tile(tile, box), (column * (tile_width + across), row * (tile_height + down)))
    return picture


def draw_page(tiles: Sequence[Tile], box: int = 150) -> Image.Image:
    """The tiles in two columns, with a margin around them."""
    drawn = draw_tiles(tiles, box, columns=2)
    page = Image.new("RGB", (drawn.width + 2 * MARGIN, drawn.height + 2 * MARGIN), PAPER)
    page.paste(drawn, (MARGIN, MARGIN))
    return page


def draw_problem(
    problem: Problem, attempts: Sequence[Sequence[Answer]], card: Card, *, shown: int, box: int = 150
) -> Image.Image:
    """A whole problem: demonstrations in four columns, then a row for each test with its first `shown` attempts."""
    demonstrations = [
        Tile(f"demonstration {number}", EMPTY, [panel(card, "input", given), panel(card, "output", output)])
        for number, (given, output) in enumerate(card.demonstrations(problem), 1)
    ]
    parts = [draw_tiles(demonstrations, 2 * box // 3, columns=4)] if demonstrations else []
    parts.append(draw_tiles(tiles_of_problem(problem, attempts, card, shown=shown), box, columns=1))
    width = max(part.width for part in parts)
    height = sum(part.height for part in parts) + MARGIN * (len(parts) - 1)
    page = Image.new("RGB", (width + 2 * MARGIN, height + 2 * MARGIN), PAPER)
    top = MARGIN
    for part in parts:
        page.paste(part, (MARGIN, top))
        top += part.height + MARGIN
    return page


def _spread(room: int, size: int, number: int, most: int) -> int:
    """The gap between `number` things of one size that fills the room, from MARGIN to `most` pixels."""
    return min(most, max(MARGIN, (room - number * size) // max(number - 1, 1)))


def _line_height(box: int) -> int:
    return round(1.7 * _font_size(box))


def _font_size(box: int) -> int:
    return max(13, min(18, box // 8))


def _draw_tile(tile: Tile, box: int) -> Image.Image:
    line, size = _line_height(box), _font_size(box)
    picture = Image.new("RGB", tile_size(len(tile.panels), box), PAPER)
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 2, 4, line - 6), fill=tile.color)
    draw.text((12, 0), one_line(tile.title), fill=INK, font=font(size, bold=True))
    for number, panel in enumerate(tile.panels):
        left = number * (box + GAP)
        _paste_drawing(picture, panel, left, line, box)
        draw.text((left, line + box + 3), panel.caption, fill=FAINT, font=font(size - 1))
        if panel.right is not None:
            after = left + round(font(size - 1).getlength(panel.caption)) + 9
            _draw_mark(draw, panel.right, after, line + box + 5, size - 3)
    return picture


def _paste_drawing(picture: Image.Image, panel: Panel, left: int, top: int, box: int) -> None:
    if panel.draw is None:
        draw = ImageDraw.Draw(picture)
        draw.rectangle((left, top, left + box - 1, top + box - 1), fill=EMPTY)
        draw.text((left + box / 2, top + box / 2), "none", fill=FAINT, font=font(_font_size(box)), anchor="mm")
        return
    drawn = panel.draw(box)
    picture.paste(drawn, (left + (box - drawn.width) // 2, top + (box - drawn.height) // 2))


def _draw_mark(draw: ImageDraw.ImageDraw, right: bool, left: int, top: int, size: int) -> None:
    if right:
        points = [(left, top + size * 0.55), (left + size * 0.38, top + size * 0.9), (left + size, top + size * 0.1)]
        draw.line(points, fill=SOLVED.color, width=3, joint="curve")
    else:
        for start, end in (((0, 0), (1, 1)), ((0, 1), (1, 0))):
            line = (left + start[0] * size, top + start[1] * size, left + end[0] * size, top + end[1] * size)
            draw.line(line, fill=UNSOLVED.color, width=2)
