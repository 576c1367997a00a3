"""Grid encoders: the exact texts, the way back, and what is refused."""

from __future__ import annotations

import re

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from arcft.errors import ArcftError
from arcft.problems.arc.format.encoders import (
    ColorNameEncoder,
    EncoderError,
    EncoderNestingError,
    GridCodeBlockEncoder,
    GridEncoder,
    GridParseError,
    GridShapeEncoder,
    GridWithSeparationEncoder,
    MinimalGridEncoder,
    RepeatNumberEncoder,
    ReplaceNumberEncoder,
    RowNumberEncoder,
    build_encoder,
)
from arcft.problems.arc.task import Grid, TaskError, as_grid
from tests.support.paths import ROOT

LEAVES = [
    MinimalGridEncoder(),
    GridWithSeparationEncoder("|"),
    GridWithSeparationEncoder("`"),
    RepeatNumberEncoder(1),
    RepeatNumberEncoder(3),
    ColorNameEncoder(),
]
REPLACED = [ReplaceNumberEncoder(leaf) for leaf in LEAVES[:-1]]
NUMBERED = [RowNumberEncoder(base, start) for base in (*LEAVES, *REPLACED) for start in (1, 0, 95)]
BODIES = [*LEAVES, *REPLACED, *NUMBERED]
EVERY_ENCODER: list[GridEncoder] = [
    *BODIES,
    *(GridCodeBlockEncoder(body) for body in BODIES),
    *(GridShapeEncoder(body) for body in BODIES),
]
DEFAULT = GridShapeEncoder(RowNumberEncoder(MinimalGridEncoder()))
CONF = ROOT / "conf" / "encoder"

shapes = st.tuples(st.integers(1, 30), st.integers(1, 30))


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    rows, columns = draw(shapes)
    cells = draw(st.binary(min_size=rows * columns, max_size=rows * columns))
    return as_grid(np.frombuffer(cells, dtype=np.uint8).reshape(rows, columns) % 10)


@pytest.mark.parametrize(
    ("encoder", "text"),
    [
        (MinimalGridEncoder(), "01\n23"),
        (GridWithSeparationEncoder("|"), "0|1\n2|3"),
        (RepeatNumberEncoder(3), "000111\n222333"),
        (ColorNameEncoder(), "Black Blue\nRed Green"),
        (ReplaceNumberEncoder(MinimalGridEncoder()), "ñò\n÷û"),
        (RowNumberEncoder(MinimalGridEncoder()), "1 01\n2 23"),
        (RowNumberEncoder(MinimalGridEncoder(), start=0), "0 01\n1 23"),
        (GridCodeBlockEncoder(MinimalGridEncoder()), "```grid\n01\n23\n```"),
        (GridShapeEncoder(MinimalGridEncoder()), "```grid shape: 2x2\n01\n23\n```"),
        (DEFAULT, "```grid shape: 2x2\n1 01\n2 23\n```"),
        (
            GridShapeEncoder(RowNumberEncoder(ReplaceNumberEncoder(MinimalGridEncoder()))),
            "```grid shape: 2x2\n1 ñò\n2 ÷û\n```",
        ),
        (ReplaceNumberEncoder(GridWithSeparationEncoder("|")), "ñ|ò\n÷|û"),
        (ReplaceNumberEncoder(RepeatNumberEncoder(2)), "ññòò\n÷÷ûû"),
    ],
    ids=repr,
)
def test_texts(encoder: GridEncoder, text: str) -> None:
    assert encoder.to_text(as_grid([[0, 1], [2, 3]])) == text
    assert encoder.to_grid(text).tolist() == [[0, 1], [2, 3]]


def test_all_colors_and_a_shape_that_is_rows_by_columns() -> None:
    grid = as_grid([[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]])
    assert ReplaceNumberEncoder(MinimalGridEncoder()).to_text(grid) == "ñò÷ûąćďęĚĞ"
    assert ColorNameEncoder().to_text(grid) == "Black Blue Red Green Yellow Gray Pink Orange Purple Brown"
    assert GridShapeEncoder(MinimalGridEncoder()).to_text(grid) == "```grid shape: 1x10\n0123456789\n```"


@settings(max_examples=30, deadline=None)
@given(grid=grids())
def test_every_encoder_round_trips(grid: Grid) -> None:
    for encoder in EVERY_ENCODER:
        text = encoder.to_text(grid)
        assert text.startswith(encoder.opener)
        assert text.endswith(encoder.closer)
        back = encoder.to_grid(text)
        assert back.dtype == np.int8
        assert np.array_equal(back, grid)


@settings(max_examples=100, deadline=None)
@given(text=st.text(st.characters(), max_size=60))
def test_any_text_parses_or_raises_grid_parse_error(text: str) -> None:
    for encoder in EVERY_ENCODER:
        for candidate in (text, encoder.opener + text, encoder.opener + text + encoder.closer):
            _parses_to_itself_or_is_refused(encoder, candidate)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_mutated_texts_parse_to_what_is_written_or_are_refused(data: st.DataObject) -> None:
    encoder = data.draw(st.sampled_from(EVERY_ENCODER))
    text = encoder.to_text(data.draw(grids()))
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(start, min(len(text), start + 5)))
        pieces = st.sampled_from(
            ["", "\n", " ", "0", "٣", "²", "```", "```grid\n", "1 ", "ñ", "Blue", "|", "\r", "\x00"]
        )
        text = text[:start] + data.draw(pieces | st.text(max_size=3)) + text[end:]
    _parses_to_itself_or_is_refused(encoder, text)


def _parses_to_itself_or_is_refused(encoder: GridEncoder, text: str) -> None:
    try:
        grid = encoder.to_grid(text)
    except GridParseError:
        return
    assert encoder.to_text(grid) == text


@pytest.mark.parametrize(
    "text",
    ["", "\n", "9" * 10000, "\n" * 10000, "1 " * 5000, "```grid shape: " + "9" * 6000 + "x1\n1 0\n```", "\ud800"],
)
@pytest.mark.parametrize("encoder", EVERY_ENCODER, ids=repr)
def test_extreme_texts_are_refused(encoder: GridEncoder, text: str) -> None:
    with pytest.raises(GridParseError):
        encoder.to_grid(text)


@pytest.mark.parametrize(
    ("encoder", "text", "message"),
    [
        (MinimalGridEncoder(), "01\n2", "row 2 has 1 cells where row 1 has 2"),
        (MinimalGridEncoder(), "01\n2a", "row 2: 'a' where a digit 0 to 9 belongs"),
        (MinimalGridEncoder(), "01\n", "row 2 is []"),
        (MinimalGridEncoder(), "0" * 31, "1x31 (rows x columns)"),
        (MinimalGridEncoder(), "\n".join("0" * 31), "more than 30 lines"),
        (GridWithSeparationEncoder("|"), "0|1\n23", "row 2: '23' where a digit"),
        (RepeatNumberEncoder(3), "000112", "row 1: '000112' is not digits that each come 3 times"),
        (ColorNameEncoder(), "Black blue", "row 1: 'blue' is none of Black, Blue"),
        (ReplaceNumberEncoder(MinimalGridEncoder()), "ñ1", "row 1: the digit 1 where a symbol of ñò÷ûąćďęĚĞ belongs"),
        (RowNumberEncoder(MinimalGridEncoder()), "1 01\n3 23", "row 2: '3 23' does not begin with its number, '2 '"),
        (
            GridCodeBlockEncoder(MinimalGridEncoder()),
            "01\n23",
            "the first line is '01'; a grid opens with '```grid\\n'",
        ),
        (
            GridCodeBlockEncoder(MinimalGridEncoder()),
            "```grid\n01\n23",
            "the last line is '23'; a grid closes with ```",
        ),
        (
            GridCodeBlockEncoder(MinimalGridEncoder()),
            "```grids\n01\n```",
            "the first line is '```grids' over a grid of",
        ),
        (DEFAULT, "```grid shape: 2x3\n1 01\n2 23\n```", "the first line is '```grid shape: 2x3' over a grid of 2x2"),
        (DEFAULT, "```grid shape: 02x2\n1 01\n2 23\n```", "'```grid shape: 02x2' over a grid of 2x2"),
        (DEFAULT, "```grid shape: 2x2\n1 01\n2 23\n```\n", "the last line is ''; a grid closes with ```"),
    ],
)
def test_messages_of_refused_texts(encoder: GridEncoder, text: str, message: str) -> None:
    with pytest.raises(GridParseError, match=re.escape(message)) as caught:
        encoder.to_grid(text)
    assert isinstance(caught.value, ArcftError)


@pytest.mark.parametrize(
    ("encoder", "text"),
    [
        (DEFAULT, "```grid shape: 2x2\n1 01\n2 23"),
        (DEFAULT, "```grid shape: 2x2\n1 01\n2 23\n```\n\n"),
        (DEFAULT, "The answer is:\n```grid shape: 2x2\n1 01\n2 23\n```"),
        (DEFAULT, "So:\n```grid shape: 2x2 \n1 01 \n2 23\n\n``` \nThat is all."),
        (DEFAULT, "```grid shape: 3x2\n1 01\n2 23\n```"),
        (DEFAULT, "```grid\n1 01\n2 23\n```"),
        (DEFAULT, "```grid shape: 2x2\n0 01\n1 23\n```"),
        (GridCodeBlockEncoder(MinimalGridEncoder()), "```grid\r\n01\r\n23\r\n```\r\n"),
        (MinimalGridEncoder(), "01\n23 \n\n\n"),
        (RowNumberEncoder(ReplaceNumberEncoder(MinimalGridEncoder())), "1 ñò\n1 ÷û"),
    ],
)
def test_what_is_only_nearly_the_format_is_refused(encoder: GridEncoder, text: str) -> None:
    with pytest.raises(GridParseError):
        encoder.to_grid(text)


@pytest.mark.parametrize(
    "build",
    [
        lambda: ReplaceNumberEncoder(RowNumberEncoder(MinimalGridEncoder())),
        lambda: ReplaceNumberEncoder(ColorNameEncoder()),
        lambda: ReplaceNumberEncoder(ReplaceNumberEncoder(MinimalGridEncoder())),
        lambda: RowNumberEncoder(RowNumberEncoder(MinimalGridEncoder())),
        lambda: RowNumberEncoder(GridShapeEncoder(MinimalGridEncoder())),
        lambda: GridShapeEncoder(GridCodeBlockEncoder(MinimalGridEncoder())),
        lambda: GridCodeBlockEncoder("MinimalGridEncoder"),  # type: ignore[arg-type]
    ],
)
def test_wrong_nesting_is_refused_with_the_order(build) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(EncoderNestingError, match="the order is from the inside out: one leaf"):
        build()


@pytest.mark.parametrize("separator", ["", "||", "3", "²", "٣", " ", "\n", "\t", "\x00", 1, None])
def test_wrong_separators_are_refused(separator: object) -> None:
    with pytest.raises(EncoderError, match="one printable character that is neither a digit nor white space"):
        GridWithSeparationEncoder(separator)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: RepeatNumberEncoder(0), "n=0: how often"),
        (lambda: RepeatNumberEncoder(True), "n=True"),
        (lambda: RowNumberEncoder(MinimalGridEncoder(), -1), "start=-1: the number of the first row"),
        (lambda: ReplaceNumberEncoder(GridWithSeparationEncoder("ñ")), "separator='ñ': ReplaceNumberEncoder writes"),
    ],
)
def test_wrong_arguments_are_refused(build, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(EncoderError, match=re.escape(message)):
        build()


def test_a_grid_is_checked_before_it_is_written() -> None:
    with pytest.raises(TaskError, match="colour 10"):
        MinimalGridEncoder().to_text(np.array([[10]]))
    with pytest.raises(TaskError, match="31x1"):
        DEFAULT.to_text(np.zeros((31, 1), dtype=np.int8))


MINIMAL_NODE = {"name": "MinimalGridEncoder"}


def test_build_encoder() -> None:
    numbered = {"name": "RowNumberEncoder", "base": MINIMAL_NODE, "start": 0}
    node = {"name": "GridShapeEncoder", "base": numbered}
    assert build_encoder(node) == GridShapeEncoder(RowNumberEncoder(MinimalGridEncoder(), start=0))


@pytest.mark.parametrize(
    ("node", "error", "message"),
    [
        ({"name": "builtins.eval"}, EncoderError, "encoder.grid.name=builtins.eval: not an encoder; known are"),
        ({"name": "GridEncoder"}, EncoderError, "not an encoder"),
        ({"name": ["x"]}, EncoderError, "not an encoder"),
        ({}, EncoderError, "encoder.grid.name=None: not an encoder"),
        ({**MINIMAL_NODE, "n": 3}, EncoderError, "encoder.grid.n=3: MinimalGridEncoder has no such argument"),
        ({**MINIMAL_NODE, "_args_": [3]}, EncoderError, "encoder.grid._args_=[3]: MinimalGridEncoder has no such"),
        ({"name": "RowNumberEncoder"}, EncoderError, "encoder.grid.base: is missing"),
        (
            {"name": "GridShapeEncoder", "base": {"name": "RepeatNumberEncoder", "n": 0}},
            EncoderError,
            "encoder.grid.base.n=0: how often each digit",
        ),
        (
            {"name": "RowNumberEncoder", "base": {"name": "GridShapeEncoder", "base": {}}},
            EncoderError,
            "encoder.grid.base.base.name=None",
        ),
        (
            {
                "name": "RowNumberEncoder",
                "base": {"name": "GridShapeEncoder", "base": MINIMAL_NODE},
            },
            EncoderNestingError,
            "encoder.grid.base=GridShapeEncoder: RowNumberEncoder cannot go around it; the order is",
        ),
        ({"name": "GridShapeEncoder", "base": "x"}, EncoderNestingError, "encoder.grid.base='x'"),
    ],
)
def test_build_encoder_refuses(node: dict, error: type[ArcftError], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        build_encoder(node)


def test_build_encoder_refuses_a_node_that_holds_itself() -> None:
    node: dict = {"name": "RowNumberEncoder"}
    node["base"] = node
    with pytest.raises(EncoderNestingError, match="nested too deeply"):
        build_encoder(node)


def test_encoders_of_the_config() -> None:
    built = {
        path.stem: build_encoder(yaml.safe_load(path.read_text(encoding="utf-8"))["grid"])
        for path in CONF.glob("*.yaml")
    }
    symbols = ReplaceNumberEncoder(MinimalGridEncoder())
    assert built == {
        "minimal": MinimalGridEncoder(),
        "code_block": GridCodeBlockEncoder(MinimalGridEncoder()),
        "code_block_row": GridCodeBlockEncoder(RowNumberEncoder(MinimalGridEncoder())),
        "code_block_symbols": GridCodeBlockEncoder(symbols),
        "shape": GridShapeEncoder(MinimalGridEncoder()),
        "shape_row": DEFAULT,
        "shape_row_symbols": GridShapeEncoder(RowNumberEncoder(symbols)),
        "separator": GridShapeEncoder(GridWithSeparationEncoder("|")),
        "repeat": GridShapeEncoder(RepeatNumberEncoder(3)),
        "color_names": GridShapeEncoder(ColorNameEncoder()),
    }
