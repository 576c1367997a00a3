"""Draw grids and whole tasks, with attempts beside the true outputs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from arcft.arc.task import Grid, Pair, Task, TaskError

PALETTE = (
    *("#000000", "#1E93FF", "#F93C31", "#4FCC30", "#FFDC00"),
    *("#999999", "#E53AA3", "#FF851B", "#87D8F1", "#921231"),
)
"""Colours 0 to 9 as on https://arcprize.org."""

RIGHT, WRONG = "#1F9D4C", "#D5342B"
"""Marks of attempts that equal the true output and of those that don't."""

_LINE, _PAPER, _INK, _PALE, _RULE, _EMPTY = "#555555", "#FFFFFF", "#1B1F24", "#6A737D", "#D5D9DE", "#EEF0F3"
_BOX = 300
"""Pixels of the longest side of the largest grid in the picture of a task."""
_TEXT, _TITLE = 20, 30
_WIDTH = 1800
"""Pixels after which a line of pairs is broken."""
_MARGIN, _GAP, _SPACE, _LABEL, _FRAME = 32, 40, 28, 34, 6
"""Pixels around the picture, between columns, between rows, of a label with the space below it, and of a frame."""
_FINE = 4
"""Round things are drawn so many times larger and scaled down, which smooths their edges."""

_PALETTE_RGB = np.array([ImageColor.getrgb(color) for color in PALETTE], dtype=np.uint8)


def draw_grid(grid: Grid, cell: int = 20) -> Image.Image:
    """The grid as an RGB picture of `cell` x `cell` pixels a cell; from 4 pixels on, lines part the cells."""
    pixels = _PALETTE_RGB[grid].repeat(cell, axis=0).repeat(cell, axis=1)
    picture = Image.fromarray(pixels)
    if cell < 4:
        return picture
    width = 1 if cell < 24 else 2
    draw = ImageDraw.Draw(picture)
    rows, columns = grid.shape
    for row in range(rows + 1):
        top = min(row * cell, rows * cell - width)
        draw.rectangle((0, top, columns * cell - 1, top + width - 1), fill=_LINE)
    for column in range(columns + 1):
        left = min(column * cell, columns * cell - width)
        draw.rectangle((left, 0, left + width - 1, rows * cell - 1), fill=_LINE)
    return picture


def draw_task(task: Task, attempts: Sequence[Sequence[Grid | None]] | None = None) -> Image.Image:
    """One RGB picture: the demonstrations, then for each test its input, true output and attempts.

    `attempts[i]` are those at test i, best first, None where there was no answer. An attempt is framed and marked as
    right or wrong where the true output is known, and the cells in which it differs are marked too. The longest side of
    the largest grid is about 300 pixels, and all grids are drawn to one scale. Raises TaskError where `attempts` is not
    one list a test.
    """
    if attempts is not None and len(attempts) != len(task.test):
        raise TaskError(f"task {task.id}: attempts for {len(attempts)} tests where it has {len(task.test)}")
    grids = [grid for pair in task.train + task.test for grid in (pair.input, pair.output)]
    grids += [grid for of_test in attempts or () for grid in of_test]
    cell = max(2, min(48, _BOX // max(max(grid.shape) for grid in grids if grid is not None)))
    sections = [[_pair_column(pair, f"Example {number}", cell) for number, pair in enumerate(task.train, 1)]]
    for number, pair in enumerate(task.test):
        name = "Test" if len(task.test) == 1 else f"Test {number + 1}"
        of_test = [] if attempts is None else attempts[number] or [None]
        tiles = [_attempt_tile(f"attempt {rank}", pair.output, grid, cell) for rank, grid in enumerate(of_test, 1)]
        sections.append([_pair_column(pair, name, cell), *((None, tile) for tile in tiles)])
    return _compose(sections, task.id, _verdict(task, attempts))


@dataclasses.dataclass(frozen=True)
class _Tile:
    """A labelled picture; where `right` is known, a mark stands before the label and a frame around the picture."""

    label: str
    note: str
    picture: Image.Image
    right: bool | None = None

    @property
    def width(self) -> int:
        mark = 0 if self.right is None else _LABEL
        label = _text_width(self.label) + _text_width(self.note) + 10
        return max(self.picture.width, mark + label)

    @property
    def height(self) -> int:
        return _LABEL + self.picture.height


_Column = tuple[_Tile | None, _Tile]
"""What stands in the upper row, of inputs, and in the lower row, where the true output is compared with attempts."""


def _pair_column(pair: Pair, name: str, cell: int) -> _Column:
    true = _placeholder("?") if pair.output is None else draw_grid(pair.output, cell)
    return (
        _Tile(f"{name}: input", _size(pair.input), draw_grid(pair.input, cell)),
        _Tile("output", "not known" if pair.output is None else _size(pair.output), true),
    )


def _attempt_tile(label: str, true: Grid | None, attempt: Grid | None, cell: int) -> _Tile:
    if attempt is None:
        return _Tile(label, "no answer", _placeholder("-"), None if true is None else False)
    picture = draw_grid(attempt, cell)
    if true is None:
        return _Tile(label, _size(attempt), picture)
    if attempt.shape != true.shape:
        return _Tile(label, f"{_size(attempt)}, not {_size(true)}", picture, right=False)
    wrong = np.argwhere(attempt != true)
    _mark_cells(picture, wrong.tolist(), cell)
    note = f"{len(wrong)} of {true.size} cells wrong" if len(wrong) else ""
    return _Tile(label, note, picture, right=not len(wrong))


def _verdict(task: Task, attempts: Sequence[Sequence[Grid | None]] | None) -> tuple[str, bool] | None:
    if attempts is None or not task.has_answers:
        return None
    solved = sum(
        any(grid is not None and np.array_equal(grid, pair.output) for grid in of_test)  # type: ignore[arg-type]
        for pair, of_test in zip(task.test, attempts, strict=True)
    )
    if solved == len(task.test):
        return "solved", True
    return (f"{solved} of {len(task.test)} tests solved" if solved else "not solved"), False


def _compose(sections: Sequence[Sequence[_Column]], title: str, verdict: tuple[str, bool] | None) -> Image.Image:
    lines = _break_lines(sections)
    title_width = _text_width(title, _TITLE) + (_text_width(verdict[0]) + 64 if verdict else 0)
    width = max(title_width, *(_width(columns) for columns in lines))
    heights = [_heights(columns) for columns in lines]
    top = _MARGIN + _TITLE + _SPACE
    height = top + sum(upper + lower + 3 * _SPACE for upper, lower in heights) - 2 * _SPACE + _MARGIN
    page = Image.new("RGB", (width + 2 * _MARGIN, height), _PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((_MARGIN, _MARGIN + _TITLE / 2), title, fill=_INK, font=_font(_TITLE), anchor="lm")
    if verdict:
        _paste_verdict(page, _MARGIN + _text_width(title, _TITLE) + 20, *verdict)
    for number, (columns, (upper_height, lower_height)) in enumerate(zip(lines, heights, strict=True)):
        if number:
            draw.line((_MARGIN, top - _SPACE, _MARGIN + width, top - _SPACE), fill=_RULE, width=2)
        left = _MARGIN
        second = top + upper_height + _SPACE
        for column in columns:
            if column is None:
                draw.line((left, top, left, second + lower_height), fill=_RULE, width=2)
                left += _GAP
                continue
            upper, lower = column
            if upper is not None:
                _paste(page, upper, left, top)
            _paste(page, lower, left, second)
            left += _width([column]) + _GAP
        top = second + lower_height + 2 * _SPACE
    return page


def _break_lines(sections: Sequence[Sequence[_Column]]) -> list[list[_Column | None]]:
    """Lines of at most _WIDTH pixels, in which None stands for a rule. A section that fits into a line stays whole."""
    lines: list[list[_Column | None]] = [[]]
    for section in sections:
        if lines[-1] and _width([*lines[-1], None, *section]) <= _WIDTH:
            lines[-1] += [None, *section]
            continue
        for number, column in enumerate(section):
            if lines[-1] and (number == 0 or _width([*lines[-1], column]) > _WIDTH):
                lines.append([])
            lines[-1].append(column)
    return lines


def _width(columns: Sequence[_Column | None]) -> int:
    widths = [0 if column is None else max(tile.width for tile in column if tile is not None) for column in columns]
    return sum(widths) + _GAP * (len(widths) - 1)


def _heights(columns: Sequence[_Column | None]) -> tuple[int, int]:
    """Of the upper and the lower row. A line that only goes on with attempts has no upper row."""
    known = [column for column in columns if column is not None]
    uppers = [upper.height for upper, _ in known if upper is not None]
    return max(uppers, default=0), max(lower.height for _, lower in known)


def _paste(page: Image.Image, tile: _Tile, left: int, top: int) -> None:
    draw = ImageDraw.Draw(page)
    middle = top + _TEXT // 2
    if tile.right is not None:
        corner = (left + tile.picture.width + _FRAME - 1, top + _LABEL + tile.picture.height + _FRAME - 1)
        draw.rectangle((left - _FRAME, top + _LABEL - _FRAME, *corner), fill=RIGHT if tile.right else WRONG)
    page.paste(tile.picture, (left, top + _LABEL))
    if tile.right is not None:
        _paste_mark(page, left, middle, tile.right)
        left += _LABEL
    draw.text((left, middle), tile.label, fill=_INK, font=_font(_TEXT), anchor="lm")
    draw.text((left + _text_width(tile.label) + 10, middle), tile.note, fill=_PALE, font=_font(_TEXT), anchor="lm")


def _paste_mark(page: Image.Image, left: int, middle: int, right: bool) -> None:
    """A white tick or cross on a disc: shape tells them apart where colour can't."""
    mark = _disc(22, RIGHT if right else WRONG)
    strokes = [((6, 11), (10, 15), (16, 7))] if right else [((7, 7), (15, 15)), ((7, 15), (15, 7))]
    draw = ImageDraw.Draw(mark)
    for stroke in strokes:
        draw.line([(x * _FINE, y * _FINE) for x, y in stroke], fill=_PAPER, width=3 * _FINE, joint="curve")
    mark = _scaled_down(mark)
    page.paste(mark, (left, middle - 11), mask=mark)


def _mark_cells(picture: Image.Image, places: Sequence[Sequence[int]], cell: int) -> None:
    """A white dot with a dark rim at each (row, column), which is seen on all ten colours."""
    side = max(3, cell // 2 - 1)
    dot = _disc(side, _INK)
    rim = max(1, side // 8) * _FINE
    ImageDraw.Draw(dot).ellipse((rim, rim, dot.width - 1 - rim, dot.height - 1 - rim), fill=_PAPER)
    dot = _scaled_down(dot)
    start = (cell - side + 1) // 2
    for row, column in places:
        picture.paste(dot, (column * cell + start, row * cell + start), mask=dot)


def _disc(side: int, color: str) -> Image.Image:
    disc = Image.new("RGBA", (side * _FINE, side * _FINE), color + "00")
    ImageDraw.Draw(disc).ellipse((0, 0, side * _FINE - 1, side * _FINE - 1), fill=color)
    return disc


def _scaled_down(fine: Image.Image) -> Image.Image:
    return fine.resize((fine.width // _FINE, fine.height // _FINE), Image.Resampling.LANCZOS)


def _paste_verdict(page: Image.Image, left: int, text: str, right: bool) -> None:
    middle = _MARGIN + _TITLE // 2
    _paste_mark(page, left, middle, right)
    draw = ImageDraw.Draw(page)
    draw.text((left + _LABEL, middle), text, fill=RIGHT if right else WRONG, font=_font(_TEXT), anchor="lm")


def _placeholder(text: str, side: int = 96) -> Image.Image:
    """Stands where there is no grid."""
    picture = Image.new("RGB", (side, side), _EMPTY)
    draw = ImageDraw.Draw(picture)
    draw.text((side / 2, side / 2), text, fill=_PALE, font=_font(48), anchor="mm")
    return picture


def _size(grid: Grid) -> str:
    rows, columns = grid.shape
    return f"{rows}x{columns}"


def _text_width(text: str, size: int = _TEXT) -> int:
    return round(_font(size).getlength(text))


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, so that nothing has to be installed or fetched."""
    return ImageFont.load_default(size)
