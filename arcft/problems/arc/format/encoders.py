"""Grids as text and back.

An encoder is built from the inside out: a leaf writes the cells of a row, ReplaceNumberEncoder swaps its digits
for symbols, RowNumberEncoder numbers the rows, and at most one fence goes around all of them. The formats are
those of the arc24 project; unlike there, reading is strict: what is not exactly the format is refused.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from arcft.errors import ArcftError
from arcft.problems.arc.task import MAX_SIDE, NUM_COLORS, Grid, TaskError, as_grid
from arcft.protocols import AnswerError

COLOR_NAMES = ("Black", "Blue", "Red", "Green", "Yellow", "Gray", "Pink", "Orange", "Purple", "Brown")
SYMBOLS = "ñò÷ûąćďęĚĞ"
DIGITS = "0123456789"
FENCE = "```"
NESTING_ORDER = (
    "from the inside out: one leaf (MinimalGridEncoder, GridWithSeparationEncoder, RepeatNumberEncoder, "
    "ColorNameEncoder), ReplaceNumberEncoder over a leaf of digits, RowNumberEncoder, and at most one fence "
    "(GridCodeBlockEncoder or GridShapeEncoder); all but the leaf may be left out"
)
MAX_NESTING = 4

_TO_SYMBOLS = str.maketrans(DIGITS, SYMBOLS)


class EncoderError(ArcftError):
    """An encoder that cannot be built as it is written."""


class EncoderNestingError(EncoderError):
    """Encoders put around each other in an order that has no meaning."""


class GridParseError(AnswerError):
    """A text that is not a grid in the format that was asked for."""


class GridEncoder(abc.ABC):
    """One way to write a grid. Immutable; equal if it writes the same way."""

    @property
    def opener(self) -> str:
        """How the text of every grid begins."""
        return ""

    @property
    def closer(self) -> str:
        """How the text of every grid ends."""
        return ""

    @property
    def body(self) -> GridEncoder:
        """The encoder without its fence."""
        return self

    @abc.abstractmethod
    def write_row(self, cells: Sequence[int], index: int) -> str:
        """The text of one row, without a newline; `index` counts rows from 0."""

    @abc.abstractmethod
    def read_row(self, text: str, index: int) -> list[int]:
        """The colours in what `write_row` wrote; raise GridParseError on any other text."""

    def to_text(self, grid: Grid) -> str:
        """The text of a grid (int array [rows, columns] or list of rows); raise TaskError if it is not a grid."""
        rows = as_grid(grid).tolist()
        return "\n".join([self.write_row(row, index) for index, row in enumerate(rows)])

    def to_grid(self, text: str) -> Grid:
        """The int8 grid [rows, columns] of exactly what `to_text` writes; raise GridParseError on any other text."""
        lines = text.split("\n", MAX_SIDE)
        if len(lines) > MAX_SIDE:
            raise GridParseError(f"more than {MAX_SIDE} lines; a grid has at most {MAX_SIDE} rows")
        return _checked([self.read_row(line, index) for index, line in enumerate(lines)])


@dataclasses.dataclass(frozen=True)
class MinimalGridEncoder(GridEncoder):
    """Digits: `01` newline `23`."""

    def write_row(self, cells: Sequence[int], index: int) -> str:
        return "".join([DIGITS[cell] for cell in cells])

    def read_row(self, text: str, index: int) -> list[int]:
        return [_digit(character, index) for character in text]


@dataclasses.dataclass(frozen=True)
class GridWithSeparationEncoder(GridEncoder):
    """Digits with a character between them: `0|1` newline `2|3`."""

    separator: str

    def __post_init__(self) -> None:
        character = self.separator
        if (
            not isinstance(character, str)
            or len(character) != 1
            or character.isspace()
            or character.isnumeric()
            or not character.isprintable()
        ):
            raise EncoderError(
                f"separator={character!r}: one printable character that is neither a digit nor white space, e.g. '|'"
            )

    def write_row(self, cells: Sequence[int], index: int) -> str:
        return self.separator.join([DIGITS[cell] for cell in cells])

    def read_row(self, text: str, index: int) -> list[int]:
        return [_digit(part, index) for part in text.split(self.separator)]


@dataclasses.dataclass(frozen=True)
class RepeatNumberEncoder(GridEncoder):
    """Each digit `n` times: `000111` for n=3, one token a cell where a tokenizer groups three digits (Llama 3)."""

    n: int

    def __post_init__(self) -> None:
        if isinstance(self.n, bool) or not isinstance(self.n, int) or self.n < 1:
            raise EncoderError(f"n={self.n!r}: how often each digit is written, a whole number of at least 1, e.g. 3")

    def write_row(self, cells: Sequence[int], index: int) -> str:
        return "".join([DIGITS[cell] * self.n for cell in cells])

    def read_row(self, text: str, index: int) -> list[int]:
        cells = [_digit(character, index) for character in text[:: self.n]]
        if text != self.write_row(cells, index):
            raise GridParseError(f"row {index + 1}: {_shown(text)} is not digits that each come {self.n} times")
        return cells


@dataclasses.dataclass(frozen=True)
class ColorNameEncoder(GridEncoder):
    """Names of colours: `Black Blue` newline `Red Green`."""

    def write_row(self, cells: Sequence[int], index: int) -> str:
        return " ".join([COLOR_NAMES[cell] for cell in cells])

    def read_row(self, text: str, index: int) -> list[int]:
        names = text.split(" ")
        for name in names:
            if name not in COLOR_NAMES:
                raise GridParseError(f"row {index + 1}: {_shown(name)} is none of {', '.join(COLOR_NAMES)}")
        return [COLOR_NAMES.index(name) for name in names]


@dataclasses.dataclass(frozen=True)
class ReplaceNumberEncoder(GridEncoder):
    """Symbols instead of digits, `ñò` newline `÷û`: single tokens that do not merge on Qwen2.5 and Llama 3."""

    base: GridEncoder

    def __post_init__(self) -> None:
        _check_base(self, MinimalGridEncoder, GridWithSeparationEncoder, RepeatNumberEncoder)
        if isinstance(self.base, GridWithSeparationEncoder) and self.base.separator in SYMBOLS:
            raise EncoderError(f"separator={self.base.separator!r}: ReplaceNumberEncoder writes a digit so; use '|'")

    def write_row(self, cells: Sequence[int], index: int) -> str:
        return self.base.write_row(cells, index).translate(_TO_SYMBOLS)

    def read_row(self, text: str, index: int) -> list[int]:
        digits = []
        for character in text:
            if character in DIGITS:
                raise GridParseError(f"row {index + 1}: the digit {character} where a symbol of {SYMBOLS} belongs")
            color = SYMBOLS.find(character)
            digits.append(character if color < 0 else DIGITS[color])
        return self.base.read_row("".join(digits), index)


@dataclasses.dataclass(frozen=True)
class RowNumberEncoder(GridEncoder):
    """A number and a space before each row, counted from `start`: `1 01` newline `2 23`."""

    base: GridEncoder
    start: int = 1

    def __post_init__(self) -> None:
        _check_base(self, *_LEAVES, ReplaceNumberEncoder)
        if isinstance(self.start, bool) or not isinstance(self.start, int) or self.start < 0:
            raise EncoderError(f"start={self.start!r}: the number of the first row, a whole number of at least 0")

    def write_row(self, cells: Sequence[int], index: int) -> str:
        return f"{index + self.start} {self.base.write_row(cells, index)}"

    def read_row(self, text: str, index: int) -> list[int]:
        prefix = f"{index + self.start} "
        if not text.startswith(prefix):
            raise GridParseError(f"row {index + 1}: {_shown(text)} does not begin with its number, {_shown(prefix)}")
        return self.base.read_row(text[len(prefix) :], index)


class _Fence(GridEncoder):
    """What the two fences share: a first line, the rows of `base`, and a closing fence."""

    base: GridEncoder

    def __post_init__(self) -> None:
        _check_base(self, *_LEAVES, ReplaceNumberEncoder, RowNumberEncoder)

    @property
    def closer(self) -> str:
        return "\n" + FENCE

    @property
    def body(self) -> GridEncoder:
        return self.base

    @abc.abstractmethod
    def _first_line(self, grid: Grid) -> str:
        """The opening fence of a grid, without a newline."""

    def write_row(self, cells: Sequence[int], index: int) -> str:
        return self.base.write_row(cells, index)

    def read_row(self, text: str, index: int) -> list[int]:
        return self.base.read_row(text, index)

    def to_text(self, grid: Grid) -> str:
        grid = as_grid(grid)
        return f"{self._first_line(grid)}\n{self.base.to_text(grid)}{self.closer}"

    def to_grid(self, text: str) -> Grid:
        first_line, newline, rest = text.partition("\n")
        if not first_line.startswith(self.opener.rstrip("\n")) or not newline:
            raise GridParseError(f"the first line is {_shown(first_line)}; a grid opens with {_shown(self.opener)}")
        if not rest.endswith(self.closer):
            raise GridParseError(f"the last line is {_shown(rest.rpartition(chr(10))[2])}; a grid closes with {FENCE}")
        grid = self.base.to_grid(rest.removesuffix(self.closer))
        if first_line != self._first_line(grid):
            raise GridParseError(f"the first line is {_shown(first_line)} over a grid of {_shape(grid)}")
        return grid


@dataclasses.dataclass(frozen=True)
class GridCodeBlockEncoder(_Fence):
    """A fence around the rows: three backticks and `grid`, the rows, three backticks."""

    base: GridEncoder

    @property
    def opener(self) -> str:
        return f"{FENCE}grid\n"

    def _first_line(self, grid: Grid) -> str:
        return f"{FENCE}grid"


@dataclasses.dataclass(frozen=True)
class GridShapeEncoder(_Fence):
    """A fence that states the shape, rows x columns: `grid shape: 2x3` after the opening backticks."""

    base: GridEncoder

    @property
    def opener(self) -> str:
        return f"{FENCE}grid shape: "

    def _first_line(self, grid: Grid) -> str:
        return f"{self.opener}{_shape(grid)}"


_LEAVES = (MinimalGridEncoder, GridWithSeparationEncoder, RepeatNumberEncoder, ColorNameEncoder)
ENCODERS: dict[str, type[GridEncoder]] = {
    encoder.__name__: encoder
    for encoder in (*_LEAVES, ReplaceNumberEncoder, RowNumberEncoder, GridCodeBlockEncoder, GridShapeEncoder)
}
"""All that `build_encoder` builds, by `name`."""


def build_encoder(node: Mapping[str, Any], *, path: str = "encoder.grid") -> GridEncoder:
    """The encoder of a nested node, such as conf/encoder/*.yaml has under `grid`: a class by its `name`, and arguments.

    Only the classes in ENCODERS are built, whatever the node says. `path` is the node's key, for messages. Raise
    EncoderError on an unknown name or argument, and EncoderNestingError on a wrong order.
    """
    if path.count(".base") >= MAX_NESTING:
        raise EncoderNestingError(f"{path}: nested too deeply; the order is {NESTING_ORDER}")
    target = node.get("name")
    encoder = ENCODERS.get(target) if isinstance(target, str) else None
    if encoder is None:
        raise EncoderError(f"{path}.name={target}: not an encoder; known are {', '.join(ENCODERS)}")
    fields = {field.name: field for field in dataclasses.fields(encoder)}  # type: ignore[arg-type]
    arguments = {}
    for name, value in node.items():
        if name == "name":
            continue
        if name not in fields:
            known = ", ".join(fields) or "none"
            raise EncoderError(f"{path}.{name}={value}: {encoder.__name__} has no such argument; known here: {known}")
        arguments[name] = build_encoder(value, path=f"{path}.{name}") if isinstance(value, Mapping) else value
    for name, field in fields.items():
        if name not in arguments and field.default is dataclasses.MISSING:
            raise EncoderError(f"{path}.{name}: is missing; {encoder.__name__} needs it")
    try:
        return encoder(**arguments)
    except EncoderError as error:
        raise type(error)(f"{path}.{error}") from error


def _check_base(encoder: Any, *allowed: type[GridEncoder]) -> None:
    if not isinstance(encoder.base, allowed):
        around = type(encoder).__name__
        base = type(encoder.base).__name__ if isinstance(encoder.base, GridEncoder) else repr(encoder.base)
        raise EncoderNestingError(f"base={base}: {around} cannot go around it; the order is {NESTING_ORDER}")


def _digit(character: str, index: int) -> int:
    if len(character) != 1 or character not in DIGITS:
        raise GridParseError(f"row {index + 1}: {_shown(character)} where a digit 0 to {NUM_COLORS - 1} belongs")
    return DIGITS.index(character)


def _checked(rows: list[list[int]]) -> Grid:
    try:
        return as_grid(rows, where="answer")
    except TaskError as error:
        raise GridParseError(str(error)) from error


def _shape(grid: Grid) -> str:
    return f"{grid.shape[0]}x{grid.shape[1]}"


def _shown(text: str, limit: int = 40) -> str:
    return repr(text if len(text) <= limit else text[:limit] + "...")
