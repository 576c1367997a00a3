"""The tokens that may come next while a grid is being decoded.

A grammar is derived once from an encoder and a tokenizer. It leaves open the cells and the shape: at the beginning, if
the format writes it there, else where the first row ends and where the grid ends. Everything else is forced. The result
is always the text of a grid, in exactly the tokens that the tokenizer produces for it and that a model was trained on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from arcft.problems.arc.format.cell_tokens import GOES_ON, GRID_ENDS, ROW_ENDS, Tokens, read_cell_tokens
from arcft.problems.arc.format.cell_tokens import GrammarError as GrammarError
from arcft.problems.arc.format.encoders import GridEncoder
from arcft.problems.arc.task import MAX_SIDE, NUM_COLORS, Grid
from arcft.protocols import TokenCodec

_SHOWN = 60


class _Shape(NamedTuple):
    """The shape is complete."""

    rows: int
    columns: int


class _Step(NamedTuple):
    """A cell, or the end, is complete."""

    way: int
    """Where it leads: to the next column (GOES_ON), the next row (ROW_ENDS), or the end (GRID_ENDS)."""

    after: int
    """Flags of what may follow the cell: its tokens may differ before a newline or a fence."""


class _Fork:
    """A state between two tokens: maps each allowed token to the next state, or to the part that it completes."""

    __slots__ = ("choices", "parts")

    def __init__(self, choices: Tokens, parts: Mapping[int, _Fork | _Shape | _Step]) -> None:
        self.choices = choices
        self.parts = parts


_END = _Fork((), {})


class GridCursor:
    """A position in the text of a grid; see arcft.protocols.Cursor."""

    __slots__ = ("_column", "_columns", "_fork", "_grammar", "_row", "_rows")

    def __init__(self, grammar: GridGrammar, fork: _Fork) -> None:
        self._grammar = grammar
        self._fork = fork
        self._rows = self._columns = 0
        """The shape; 0 while unknown."""
        self._row, self._column = 0, -1
        """The last complete cell."""

    @property
    def choices(self) -> Tokens:
        return self._fork.choices

    def advance(self, token: int) -> None:
        part = self._fork.parts.get(token)
        if isinstance(part, _Fork):
            self._fork = part
        elif isinstance(part, _Step):
            self._write(part)
        elif isinstance(part, _Shape):
            self._rows, self._columns = part
            self._fork = self._grammar.fork(0, -1, self._rows, self._columns, GOES_ON)
        else:
            raise ValueError(f"token {token} can't come here; what can: {_shown(self.choices)}")

    def copy(self) -> GridCursor:
        other = GridCursor(self._grammar, self._fork)
        other._rows, other._columns, other._row, other._column = self._rows, self._columns, self._row, self._column
        return other

    def _write(self, step: _Step) -> None:
        if step.way == GRID_ENDS:
            self._fork = _END
            return
        if step.way == GOES_ON:
            self._column += 1
        else:
            self._columns = self._column + 1
            self._row += 1
            self._column = 0
        self._fork = self._grammar.fork(self._row, self._column, self._rows, self._columns, step.after)


class GridGrammar:
    """All grids from 1x1 to 30x30, as an encoder writes them. Calling it returns a cursor before the first token."""

    def __init__(self, encoder: GridEncoder, tokens: TokenCodec, *, name: str) -> None:
        """Derive the grammar and check it on trial grids; `name` names the tokenizer in messages.

        Raise GrammarError if tokens cross the borders of cells, or if the tokenizer writes a grid in other tokens than
        the grammar.
        """
        self._shared: dict[Tokens, Tokens] = {}
        self._forks: dict[tuple[object, ...], _Fork] = {}
        try:
            self._tokens = read_cell_tokens(tokens.tokenizer, encoder, tokens.end_id)
            self._start = self._first_fork()
            _check(self, self._tokens.heads, encoder, tokens)
        except GrammarError as error:
            raise GrammarError(
                f"{name}: no grammar can be made for this tokenizer and {encoder}: {error}; use "
                "inference.grammar=false, or train with another encoder"
            ) from error

    @property
    def longest(self) -> int:
        """Length of the longest text in tokens, including the end of the turn."""
        return self._tokens.longest

    def __call__(self) -> GridCursor:
        return GridCursor(self, self._start)

    def fork(self, row: int, column: int, rows: int, columns: int, after: int) -> _Fork:
        """The state after the cell (`row`, `column`) of a grid of `rows` x `columns` (0: unknown), where `after` flags
        what may follow the cell."""
        kind = self._tokens.row_kind
        options = []
        if after & GOES_ON:
            options.append((GOES_ON, kind(row), column < 0, _what_follows(row, column + 1, rows, columns)))
        if after & ROW_ENDS:
            options.append((ROW_ENDS, kind(row + 1), True, _what_follows(row + 1, 0, rows, columns or column + 1)))
        key = (*options, after & GRID_ENDS)
        found = self._forks.get(key)
        if found is None:
            found = self._forks[key] = self._make_fork(options, ends=bool(after & GRID_ENDS))
        return found

    def _first_fork(self) -> _Fork:
        if self._tokens.heads:
            return self._plant((tokens, _Shape(*shape)) for shape, tokens in self._tokens.heads.items())
        return self.fork(0, -1, 0, 0, GOES_ON)

    def _make_fork(self, options: list[tuple[int, int, bool, int]], *, ends: bool) -> _Fork:
        steps: dict[tuple[Tokens, int, int], int] = {}
        for way, kind, is_first, after in options:
            for ending in (GOES_ON, ROW_ENDS, GRID_ENDS):
                if after & ending:
                    for color, tokens in enumerate(self._tokens.cells[kind, is_first, ending]):
                        # If a cell has the same tokens whatever follows, that stays open.
                        key = (tokens, way, color)
                        steps[key] = steps.get(key, 0) | ending
        parts = [(tokens, _Step(way, after)) for (tokens, way, _), after in steps.items()]
        return self._plant([*parts, (self._tokens.closing, _Step(GRID_ENDS, 0))] if ends else parts)

    def _plant(self, parts: Iterable[tuple[Tokens, _Shape | _Step]]) -> _Fork:
        """The prefix tree of `parts` by their tokens."""
        branches: dict[int, list[tuple[Tokens, _Shape | _Step]]] = {}
        for tokens, part in parts:
            if not tokens:
                raise GrammarError(
                    "the tokens of one part of a grid's text are also those of another, or their beginning"
                )
            branches.setdefault(tokens[0], []).append((tokens[1:], part))
        choices = tuple(sorted(branches))
        return _Fork(
            self._shared.setdefault(choices, choices),
            {
                token: rest[0][1] if len(rest) == 1 and not rest[0][0] else self._plant(rest)
                for token, rest in branches.items()
            },
        )


def _what_follows(row: int, column: int, rows: int, columns: int) -> int:
    """Flags of what may follow a cell in a grid of `rows` x `columns` (0: unknown)."""
    if columns and column + 1 < columns:
        return GOES_ON
    ends = ROW_ENDS * (row + 1 < (rows or MAX_SIDE)) | GRID_ENDS * (row + 1 == rows or not rows)
    return ends if columns else ends | GOES_ON * (column + 1 < MAX_SIDE)


def _check(
    grammar: GridGrammar, heads: Mapping[tuple[int, int], Tokens], encoder: GridEncoder, tokens: TokenCodec
) -> None:
    """Raise GrammarError unless the grammar accepts trial grids exactly as the tokenizer writes them.

    The tokens of a part depend on its neighbours, so the trials cover all neighbours: all pairs of colours, within a
    row and across rows; each row as the last one; each ending of a head before each colour.
    """
    for grid in trial_grids(heads):
        text = encoder.to_text(grid).removeprefix(encoder.opener)
        ids = tokens.completion_ids(text)
        back = tokens.decode(ids)
        if back != text:
            raise GrammarError(f"{_shown(text)} comes back as {_shown(back)}")
        cursor = grammar()
        for place, token in enumerate(ids):
            if token not in cursor.choices:
                pieces = tokens.tokenizer.convert_ids_to_tokens([*ids[: place + 1], *cursor.choices])
                written, others = pieces[max(place - 4, 0) : place + 1], pieces[place + 1 :]
                raise GrammarError(
                    f"in {_shown(text)} it writes {written}, where beside other cells the last of these would be one "
                    f"of {_shown(others)}"
                )
            cursor.advance(token)


def trial_grids(heads: Mapping[tuple[int, int], Tokens]) -> Iterator[Grid]:
    """Grids with all neighbours that a cell can have. `heads` are the tokens that tell the shape, if it comes first."""
    rng = np.random.default_rng(0)
    # Every ordered pair of colours, including equal ones.
    colors: list[int] = []
    for first in range(NUM_COLORS):
        for second in range(first, NUM_COLORS):
            colors += (first, second)
        colors.append(first)
    chunks = [
        np.resize(np.array(colors[start:], dtype=np.int8), MAX_SIDE) for start in range(0, len(colors), MAX_SIDE - 1)
    ]
    yield np.stack(chunks)
    for chunk in chunks:
        for columns in (1, 2, 3):
            yield np.repeat(chunk[:, None], columns, axis=1)
    smallest = {tokens[-1]: shape for shape, tokens in sorted(heads.items(), key=lambda head: -np.prod(head[0]))}
    for shape in [(2, 3), *smallest.values()]:
        for color in range(NUM_COLORS):
            yield np.full(shape, color, dtype=np.int8)
    shapes = [(rows, columns) for rows in range(1, MAX_SIDE + 1) for columns in (1, 3)]
    for shape in [*shapes, (1, 30), (9, 10), (10, 9), (30, 30)]:
        yield rng.integers(NUM_COLORS, size=shape, dtype=np.int8)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
