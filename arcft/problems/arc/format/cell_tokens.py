"""Find the tokens of each part of a grid's text by tokenising sample texts.

Tokens need not align with the parts: a space may merge with the following word, a newline with a fence, the first byte
of a symbol with the space before it. So a part's tokens are looked up inside texts that continue on both sides, by the
characters that each token covers.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from arcft.errors import ArcftError
from arcft.problems.arc.format.encoders import GridEncoder
from arcft.problems.arc.task import MAX_SIDE, NUM_COLORS

GOES_ON, ROW_ENDS, GRID_ENDS = 1, 2, 4
"""What follows a cell: another cell of its row, another row, or nothing. Powers of two, for use as flags."""

Tokens = tuple[int, ...]


class GrammarError(ArcftError):
    """A tokenizer and an encoder for which no grammar can be derived."""


@dataclasses.dataclass(frozen=True)
class CellTokens:
    """The tokens of a grid's text, part by part."""

    heads: dict[tuple[int, int], Tokens]
    """The tokens before the first cell, by (rows, columns); empty if the encoder does not write the shape first."""

    cells: dict[tuple[int, bool, int], list[Tokens]]
    """For each colour, the tokens after the head or the previous cell, up to the one that completes the cell. Keys: the
    row's kind (see `row_kind`), whether the cell is the first of its row, and what follows it."""

    closing: Tokens
    """The tokens after the last cell, including the end of the turn."""

    numbered: bool
    """Whether the text of a row depends on its number."""

    def row_kind(self, row: int) -> int:
        """The number, from 0, of the first row that is written like `row`."""
        return row if self.numbered else min(row, 1)

    @functools.cached_property
    def longest(self) -> int:
        """Length of the longest grid's text, in tokens."""
        lengths = {place: max(map(len, options)) for place, options in self.cells.items()}

        def row_length(row: int, columns: int, ending: int) -> int:
            kind = self.row_kind(row)
            if columns == 1:
                return lengths[kind, True, ending]
            inner = (columns - 2) * lengths[kind, False, GOES_ON]
            return lengths[kind, True, GOES_ON] + inner + lengths[kind, False, ending]

        found = 0
        for columns in range(1, MAX_SIDE + 1):
            above = 0
            for row in range(MAX_SIDE):
                head = len(self.heads[row + 1, columns]) if self.heads else 0
                found = max(found, head + above + row_length(row, columns, GRID_ENDS) + len(self.closing))
                if row + 1 < MAX_SIDE:
                    above += row_length(row, columns, ROW_ENDS)
        return found


def read_cell_tokens(tokenizer: PreTrainedTokenizerBase, encoder: GridEncoder, end_id: int) -> CellTokens:
    """Read the tokens from rows of a single colour, at the beginning, in the middle and at the end of a text.

    Does not check that they are the same next to other colours. Raise GrammarError if a token contains parts of two
    cells, or of a cell and the shape.
    """
    if not tokenizer.is_fast:
        raise GrammarError("it does not report which characters its tokens cover, as one with a tokenizer.json does")
    cells: dict[tuple[int, bool, int], list[Tokens]] = {}
    closing: Tokens = ()
    numbered = encoder.write_row([0], 1) != encoder.write_row([0], 2)
    for row in range(MAX_SIDE if numbered else 2):
        for ending in (GRID_ENDS, ROW_ENDS) if row + 1 < MAX_SIDE else (GRID_ENDS,):
            alone = _read_row(tokenizer, encoder, row, 1, ending)
            beside = _read_row(tokenizer, encoder, row, 3, ending)
            cells[row, True, ending] = [only for only, _ in alone]
            cells[row, False, ending] = [last for *_, last, _ in beside]
            cells[row, True, GOES_ON] = [first for first, *_ in beside]
            cells[row, False, GOES_ON] = [inner for _, inner, *_ in beside]
            if ending == GRID_ENDS:
                closing = (*beside[0][-1], end_id)
    return CellTokens(_read_heads(tokenizer, encoder), cells, closing, numbered)


def _read_row(
    tokenizer: PreTrainedTokenizerBase, encoder: GridEncoder, row: int, columns: int, ending: int
) -> list[list[Tokens]]:
    """For each colour, the tokens of each cell of `row`, then those of the rest of the text."""
    above = min(row, 1)
    below = int(ending == ROW_ENDS)
    head = "" if row else head_text(encoder, 1 + below, columns)
    tail = "" if below else encoder.closer
    numbers = range(row - above, row + below + 1)
    windows = [_write(encoder, numbers, columns, color, head, tail) for color in range(NUM_COLORS)]
    found = list(_cut(tokenizer, windows))
    if head:
        length = min(len(parts[0]) for parts in found)
        found = [[parts[0][length:] + parts[1], *parts[2:]] for parts in found]
    return [parts[above * columns :][: columns + 1] for parts in found]


def _read_heads(tokenizer: PreTrainedTokenizerBase, encoder: GridEncoder) -> dict[tuple[int, int], Tokens]:
    if not head_text(encoder, 1, 1):
        return {}

    def heads(shapes: Sequence[tuple[int, int]], colors: Iterable[int]) -> list[Tokens]:
        windows = [
            _write(encoder, range(1), min(shape[1], 2), color, head_text(encoder, *shape), "")
            for shape in shapes
            for color in colors
        ]
        return [parts[0] for parts in _cut(tokenizer, windows)]

    # With some colours the head's last token may merge with the first cell, so use the colour with the shortest head.
    lengths = [len(head) for head in heads([(1, 1)], range(NUM_COLORS))]
    shapes = [(rows, columns) for rows in range(1, MAX_SIDE + 1) for columns in range(1, MAX_SIDE + 1)]
    return dict(zip(shapes, heads(shapes, [lengths.index(min(lengths))]), strict=True))


def head_text(encoder: GridEncoder, rows: int, columns: int) -> str:
    """The text between the opener and the rows of a grid: its shape, if the encoder writes it first."""
    grid = np.zeros((rows, columns), dtype=np.int8)
    text = encoder.to_text(grid).removeprefix(encoder.opener).removesuffix(encoder.closer)
    return text.removesuffix(encoder.body.to_text(grid))


@dataclasses.dataclass(frozen=True)
class _Window:
    """A few rows of a grid with the surrounding text."""

    text: str
    has_head: bool
    cells: list[tuple[int, int]]
    """For each cell, its first and last + 1 character in `text`."""


def _write(encoder: GridEncoder, rows: range, columns: int, color: int, head: str, tail: str) -> _Window:
    """A window of rows of one colour."""
    text, cells = head, []
    for row in rows:
        singles = [encoder.write_row([other], row) for other in range(NUM_COLORS)]
        # A row's number is the common prefix of the row in all colours.
        number = next(place for place, found in enumerate(zip(*singles, strict=False)) if len(set(found)) > 1)
        size = len(singles[color]) - number
        step = len(encoder.write_row([color, color], row)) - len(singles[color])
        text += "\n" * (row > rows.start)
        start = len(text) + number
        cells += [(start + column * step, start + column * step + size) for column in range(columns)]
        text += encoder.write_row([color] * columns, row)
    return _Window(text + tail, bool(head), cells)


def _cut(tokenizer: PreTrainedTokenizerBase, windows: Sequence[_Window]) -> Iterator[list[Tokens]]:
    """The tokens of each window: of its head, if it has one, of each cell, and of the text after the last cell."""
    encoding: Any = tokenizer(
        [window.text for window in windows], add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    for window, ids, offsets in zip(windows, encoding["input_ids"], encoding["offset_mapping"], strict=True):
        parts: list[Tokens] = []
        place = 0
        if window.has_head:
            first = window.cells[0][0]
            while place < len(ids) and offsets[place][1] <= first:
                place += 1
            parts.append(tuple(ids[:place]))
        nexts = [start for start, _ in window.cells[1:]] + [len(window.text)]
        for (_, end), following in zip(window.cells, nexts, strict=True):
            begin = place
            while place < len(ids) and offsets[place][0] < end:
                if offsets[place][1] > following:
                    piece = window.text[slice(*offsets[place])]
                    raise GrammarError(f"in {window.text!r}, one token, {piece!r}, holds parts of two cells")
                place += 1
            parts.append(tuple(ids[begin:place]))
        yield [*parts, tuple(ids[place:])]
