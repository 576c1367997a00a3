"""Ids as names of files, and text that is safe to print."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from arcft.names import fault_of_id, file_name, visible

texts = st.text(st.characters(exclude_categories=()), max_size=100)


@pytest.mark.parametrize("name", ["007bbfb7", "split-0", "whole_set", "a.json", "x" * 80, "a", "_-_"])
def test_plain_ids_are_their_own_names(name: str) -> None:
    assert file_name(name) == name


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("", "@e3b0c44298fc1c14"),
        ("..", "@5ec1f7e700f37c3d"),
        ("a/b", "a-b@c14cddc033f64b9d"),
        ("../A", "a@80dd850293b12572"),
        ("con.txt", "con-txt@d3bde286fd271ed6"),
        ("x" * 81, "x" * 40 + "@4d1f7bb876c6aae0"),
        ("\ud800abc", "abc@34bd05a84061fc55"),
    ],
)
def test_other_ids_are_named_by_their_digest(name: str, folder: str) -> None:
    assert file_name(name) == folder


@given(st.lists(texts, unique=True, max_size=20))
@example(
    ["été", unicodedata.normalize("NFD", "été"), "Été", "a", "A", "a@559aead08264d579", "CON", "con", "con.", "a."]
)
def test_different_ids_have_different_names_on_every_file_system(ids: list[str]) -> None:
    names = [file_name(name) for name in ids]
    assert len({name.casefold() for name in names}) == len(ids)
    for name in names:
        assert name.isascii()
        assert name.isprintable()
        assert 1 <= len(name) <= 80
        assert not set(name) & set('<>:"/\\|?* ')
        assert name.strip(".") == name
        assert name.partition(".")[0] not in ("con", "prn", "aux", "nul", "com1", "lpt9")


@given(texts)
def test_every_name_can_be_written(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    folder = tmp_path_factory.getbasetemp() / "names"
    folder.mkdir(exist_ok=True)
    path = Path(folder / file_name(name))
    path.write_text("", encoding="utf-8")
    assert path.parent == folder
    assert path.name in {each.name for each in folder.iterdir()}


@given(texts)
def test_what_is_visible_commands_no_terminal_and_can_be_written(text: str) -> None:
    shown = visible(text)
    shown.encode()
    assert all(
        character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cs", "Zl", "Zp") for character in shown
    )
    assert visible(shown) == shown


def test_what_is_printable_is_visible_as_it_is() -> None:
    text = "Straße, 日本, 👨\u200d👩, a\\b\n\tc"
    assert visible(text) == text
    assert visible("\x1b]0;title\x07\r\x7f\x85\u2066") == "\\x1b]0;title\\x07\\r\\x7f\\x85\\u2066"


@pytest.mark.parametrize("name", ["a b", "..", "CON", "é", "👨\u200d👩", "x" * 1000, "a\x1b[31m", "a\n"])
def test_ids_that_are_taken(name: str) -> None:
    assert fault_of_id(name) is None


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("", "is blank"),
        ("\u3000", "is blank"),
        ("\udfffx", "has half of a surrogate pair (U+DFFF), which can't be stored"),
    ],
)
def test_ids_that_are_refused(name: str, fault: str) -> None:
    assert fault_of_id(name) == fault


def test_half_a_surrogate_pair_is_shown_as_an_escape() -> None:
    assert visible("a\ud800b") == "a\\ud800b"
