"""Positions in two dimensions: a token's position gives its grid, row and column.

A position is grid * 1024 + row * 32 + column. The words that announce a grid, `Input` and `Output`, open the next grid
in row 0; a newline opens the next row, at column 0; any other token is one further. So the cell (r, c) of a grid,
counted from 1, lies at row r, column c: always one beyond the last token, 32 beyond the cell above it, and 1024 beyond
its twin in the paired input, whatever the sizes of the grids.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from arcft.errors import ArcftError
from arcft.problems.arc.format.grid_format import GridFormat
from arcft.problems.arc.questions import GridQuestion
from arcft.problems.arc.task import MAX_SIDE, NUM_COLORS, Grid, Pair
from arcft.protocols import TokenCodec

ROW = 32
"""Positions from a row to the next; a grid has at most 30 columns."""

GRID = ROW * ROW
"""Positions from a grid to the next."""

MARKERS = ("Input", "Output")
"""The words that announce a grid."""

_RULE = (
    "every cell must be one token, every row a line, and every grid announced by a line Input or Output; use "
    "encoder=minimal prompt=grid_only, or model.positions=none"
)


class GridPositionsError(ArcftError):
    """A text whose tokens have no place in a grid."""


class GridPositions:
    """The positions of token ids; a token's depends on itself and on the position before it, on nothing else."""

    def __init__(self, *, markers: Sequence[int], newline: int) -> None:
        """`markers` are the tokens that announce a grid."""
        self._steps = {**dict.fromkeys(markers, GRID), newline: ROW}

    def __call__(self, token_ids: Sequence[int], after: int = -1) -> list[int]:
        places = []
        for token in token_ids:
            # On to the next multiple of the token's step.
            step = self._steps.get(token, 1)
            after = (after // step + 1) * step
            places.append(after)
        return places


def grid_positions(tokenizer: PreTrainedTokenizerBase) -> GridPositions:
    """The positions of what `tokenizer` writes; raise GridPositionsError unless each of the words that announce a grid
    is one token, and a newline too."""
    *markers, newline = (_only_token(tokenizer, text) for text in (*MARKERS, "\n"))
    return GridPositions(markers=markers, newline=newline)


def check_grid_positions(format: GridFormat, tokens: TokenCodec) -> None:
    """Raise GridPositionsError unless each cell of each grid in prompt and answer is where it belongs.

    Tried with the largest grids and with small ones, for both kinds of questions.
    """
    positions = grid_positions(tokens.tokenizer)
    texts = [format.encoder.to_text(np.array([[color]], dtype=np.int8)) for color in range(NUM_COLORS)]
    cells = {_only_token(tokens.tokenizer, text): color for color, text in enumerate(texts)}
    for question, grids in _trials():
        text = format.render(question)
        ids = tokens.prompt_ids(text.system, text.user, text.opener) + tokens.completion_ids(text.completion)
        found = [(place, cells[token]) for token, place in zip(ids, positions(ids), strict=True) if token in cells]
        # How many grids are opened before the first one with cells makes no difference.
        first = (found[0][0] if found else 0) // GRID
        expected = [
            ((first + number) * GRID + (row + 1) * ROW + column + 1, int(grid[row, column]))
            for number, grid in enumerate(grids)
            for row, column in np.ndindex(grid.shape)
        ]
        if found != expected:
            raise GridPositionsError(f"model.positions=grid: {_first_difference(found, expected)}: {_RULE}")


def _only_token(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    ids = tokenizer.encode(text, add_special_tokens=False)
    if len(ids) != 1:
        raise GridPositionsError(f"model.positions=grid: {text!r} is {len(ids)} tokens: {_RULE}")
    return ids[0]


def _first_difference(found: Sequence[tuple[int, int]], expected: Sequence[tuple[int, int]]) -> str:
    """What is wrong, in words; the pairs are position and colour of each cell."""
    for number, (own, other) in enumerate(zip(found, expected, strict=False), 1):
        if own != other:
            return f"cell {number} of a prompt has position {own[0]} instead of {other[0]}"
    return f"{len(found)} tokens of cells in grids of {len(expected)} cells"


def _trials() -> list[tuple[GridQuestion, list[Grid]]]:
    """Questions of both kinds, and their grids in the order in which they are written."""
    rng = np.random.default_rng(0)
    sides = [(MAX_SIDE, MAX_SIDE), (1, MAX_SIDE), (MAX_SIDE, 1), (2, 3), (1, 1), (MAX_SIDE, MAX_SIDE)]
    grids: list[Grid] = [rng.integers(0, NUM_COLORS, shape, dtype=np.int8) for shape in sides]
    shown = (Pair(grids[0], grids[1]), Pair(grids[2], grids[3]))
    inputs = [grids[0], grids[2], grids[5]]
    return [
        (GridQuestion("trial", shown, grids[4], grids[5], "output"), grids),
        (GridQuestion("trial", shown, None, grids[5], "input"), inputs),
    ]
