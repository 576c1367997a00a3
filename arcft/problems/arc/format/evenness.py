"""Check that a tokenizer suits an encoder: grids survive a round trip, and all cells take equally many tokens."""

from __future__ import annotations

import logging

import numpy as np
from transformers import PreTrainedTokenizerBase

from arcft.errors import ArcftError
from arcft.problems.arc.format.encoders import (
    ColorNameEncoder,
    GridEncoder,
    GridShapeEncoder,
    GridWithSeparationEncoder,
    MinimalGridEncoder,
    RepeatNumberEncoder,
    ReplaceNumberEncoder,
    RowNumberEncoder,
)
from arcft.problems.arc.task import MAX_SIDE, NUM_COLORS

logger = logging.getLogger(__name__)

ALTERNATIVES: dict[str, GridEncoder] = {
    "shape_row": GridShapeEncoder(RowNumberEncoder(MinimalGridEncoder())),
    "repeat": GridShapeEncoder(RepeatNumberEncoder(3)),
    "shape_row_symbols": GridShapeEncoder(RowNumberEncoder(ReplaceNumberEncoder(MinimalGridEncoder()))),
    "separator": GridShapeEncoder(GridWithSeparationEncoder("|")),
    "color_names": GridShapeEncoder(ColorNameEncoder()),
}
"""Alternative encoders by their name in conf/encoder, best first."""


class UnevenTokensError(ArcftError):
    """A tokenizer that merges or splits cells of a grid, or cannot represent them."""


def check_uneven_tokens(tokenizer: PreTrainedTokenizerBase, encoder: GridEncoder, *, allow: bool, name: str) -> None:
    """Raise UnevenTokensError, naming an encoder to use instead, unless every cell takes the same number of tokens.

    With `allow` the message is only logged as a warning, but a tokenizer that changes the text of grids is still
    refused. `name` names the tokenizer in messages.
    """
    _check_round_trip(tokenizer, encoder, name)
    uneven = find_uneven_tokens(tokenizer, encoder)
    if uneven is None:
        return
    even = [option for option, other in ALTERNATIVES.items() if find_uneven_tokens(tokenizer, other) is None]
    remedy = f"use encoder={even[0]}" if even else "none of the encoders suits it, so use another model"
    message = f"{name}: this tokenizer merges or splits cells of the grid: {uneven}"
    if not allow:
        raise UnevenTokensError(f"{message}; {remedy}, or set encoder.allow_uneven_tokens=true to go on all the same")
    logger.warning("%s", message)


def find_uneven_tokens(tokenizer: PreTrainedTokenizerBase, encoder: GridEncoder) -> str | None:
    """A description of cells that take different numbers of tokens, or None if all take the same.

    Checks all colours, all pairs of colours, and random rows and grids of every width, without the fence.
    """
    rng = np.random.default_rng(0)
    body = encoder.body
    widths = range(1, MAX_SIDE + 1)
    plain = [_zeros(1, width) for width in widths] + [_zeros(MAX_SIDE, MAX_SIDE)]
    varied = [np.array([[color]]) for color in range(NUM_COLORS)]
    varied += [np.array([[first, second]]) for first in range(NUM_COLORS) for second in range(NUM_COLORS)]
    varied += [rng.integers(0, NUM_COLORS, (1, width)) for width in widths for _ in range(4)]
    varied += [rng.integers(0, NUM_COLORS, (MAX_SIDE, MAX_SIDE)) for _ in range(4)]
    texts = [body.to_text(grid.astype(np.int8)) for grid in (*plain, *varied)]
    counts = [len(ids) for ids in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]]
    expected = {grid.shape: (text, count) for grid, text, count in zip(plain, texts, counts, strict=False)}
    for grid, text, count in zip(varied, texts[len(plain) :], counts[len(plain) :], strict=True):
        other, number = expected[grid.shape]
        if count != number:
            return f"{_shown(text)} is {count} token{'s' * (count > 1)}, {_shown(other)} is {number}"
    steps = np.diff(counts[: len(widths)])
    if len(set(steps)) > 1 or steps[0] < 1:
        return f"rows of 1, 2, 3, 4, ... cells are {', '.join(map(str, counts[:4]))}, ... tokens"
    return None


def _check_round_trip(tokenizer: PreTrainedTokenizerBase, encoder: GridEncoder, name: str) -> None:
    for color in range(NUM_COLORS):
        text = encoder.to_text(np.full((2, 3), color, dtype=np.int8))
        token_ids = tokenizer.encode(text, add_special_tokens=False)
        back = tokenizer.decode(token_ids, clean_up_tokenization_spaces=False)
        if back != text:
            raise UnevenTokensError(
                f"{name}: this tokenizer cannot write the text of this encoder: {text!r} comes back as {back!r}; "
                "use another encoder or another model"
            )


def _zeros(rows: int, columns: int) -> np.ndarray:
    return np.zeros((rows, columns), dtype=np.int64)


def _shown(text: str) -> str:
    row = text.partition("\n")[0]
    return repr(row if row == text else row + "...")
