"""Plain data to dataclasses: choices by `name`, groups that a kind of problem brings, and every message."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

import pytest

from arcft.config.schema import OF_KIND, ConfigError, Key, from_dict, known_keys, options, to_dict


@dataclasses.dataclass(kw_only=True)
class Shape:
    renamed: ClassVar[dict[str, str]] = {"colour": "color"}

    name: str
    color: str = "red"


@dataclasses.dataclass(kw_only=True)
class Round(Shape):
    """Not an option itself, for it has subclasses."""

    radius: float


@dataclasses.dataclass(kw_only=True)
class Circle(Round):
    name: Literal["circle"] = "circle"

    def problems(self) -> Any:
        if self.radius <= 0:
            yield f"shape.radius={self.radius}: above 0"


@dataclasses.dataclass(kw_only=True)
class Ring(Round):
    name: Literal["ring", "thin_ring"]
    width: float | None = None


@dataclasses.dataclass(kw_only=True)
class Square(Shape):
    name: Literal["square"] = "square"
    side: int


@dataclasses.dataclass(kw_only=True)
class Drawing:
    shape: Shape
    others: list[Shape] = dataclasses.field(default_factory=list)


def problems(values: dict[str, Any], config_class: type = Drawing, kinds: Any = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        from_dict(config_class, values, kinds)
    return caught.value.problems


def test_options_are_the_leaves_by_their_names() -> None:
    assert options(Shape) == {"circle": Circle, "ring": Ring, "thin_ring": Ring, "square": Square}
    assert options(Square) == {}


def test_name_picks_the_class() -> None:
    values = {"shape": {"name": "thin_ring", "radius": 2}, "others": [{"name": "square", "side": 3, "color": "blue"}]}
    drawing = from_dict(Drawing, values)
    assert drawing == Drawing(shape=Ring(name="thin_ring", radius=2.0), others=[Square(side=3, color="blue")])
    assert from_dict(Drawing, to_dict(drawing)) == drawing


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"side": 3}, "shape.name: is missing; one of circle, ring, thin_ring, square"),
        ({"name": "oval"}, "shape.name=oval: one of circle, ring, thin_ring, square"),
        ({"name": 3}, "shape.name=3: one of circle, ring, thin_ring, square"),
        (None, "shape: must not be null; expected a group of keys"),
        ("circle", "shape='circle': expected a group of keys, not str"),
        ({"name": "circle", "radius": 1, "side": 3}, "shape.side belongs to shape=square; drop it, or use that"),
        (
            {"name": "square", "side": 3, "radius": 1},
            "shape.radius belongs to shape=circle, ring or thin_ring; drop it, or use one of those",
        ),
        (
            {"name": "square", "side": 3, "width": 1},
            "shape.width belongs to shape=ring or thin_ring; drop it, or use one of those",
        ),
        ({"name": "square"}, "shape.side: is missing; shape=square needs it, a whole number"),
        ({"name": "square", "side": None}, "shape.side: must not be null; expected a whole number"),
        ({"name": "square", "side": 1.5}, "shape.side=1.5: expected a whole number, not float"),
        (
            {"name": "square", "side": 1, "sides": 4},
            "shape.sides: there is no such key; did you mean shape.side or shape.name?",
        ),
        ({"name": "square", "side": 1, "colour": "x"}, "shape.colour is now shape.color"),
        ({"colour": "x"}, "shape.colour is now shape.color"),
        ({"name": "circle", "radius": 0}, "shape.radius=0.0: above 0"),
    ],
)
def test_what_is_wrong_with_a_choice(shape: Any, message: str) -> None:
    assert problems({"shape": shape})[0] == message


def test_everything_that_is_wrong_is_reported() -> None:
    values = {"shape": {"name": "square", "radius": 1, "colour": "x"}, "others": [{"name": "circle", "side": 1}]}
    assert problems(values) == [
        "shape.colour is now shape.color",
        "shape.radius belongs to shape=circle, ring or thin_ring; drop it, or use one of those",
        "shape.side: is missing; shape=square needs it, a whole number",
        "others[0].side belongs to others[0].name=square; drop it, or use that",
        "others[0].radius: is missing; others[0].name=circle needs it, a number",
    ]


def test_null_for_a_key_of_another_option_means_that_it_is_not_set() -> None:
    """As run.yaml of version 0.1.0 has it, and a command line that takes a value back."""
    assert from_dict(Drawing, {"shape": {"name": "square", "side": 1, "radius": None, "width": None}}) == Drawing(
        shape=Square(side=1)
    )
    assert problems({"shape": {"name": "square", "side": 1, "size": None}}) == [
        "shape.size: there is no such key; did you mean shape.side or shape.name?"
    ]


@dataclasses.dataclass(kw_only=True)
class Inner:
    drawing: Drawing


def test_a_choice_in_another_group_is_named_as_hydra_wants_it() -> None:
    found = problems({"drawing": {"shape": {"name": "square", "side": 1, "radius": 1}}}, Inner)
    assert found == [
        "drawing.shape.radius belongs to shape@drawing.shape=circle, ring or thin_ring; drop it, or use one of those"
    ]


def test_known_keys_say_which_every_option_has() -> None:
    assert known_keys(Drawing) == {
        "shape": Key(),
        "shape.name": Key(),
        "shape.color": Key(),
        "shape.radius": Key(always=False),
        "shape.width": Key(always=False),
        "shape.side": Key(always=False),
        "others": Key(free_form=True),
    }
    assert not known_keys(Inner)["drawing.shape.side"].always


@dataclasses.dataclass(kw_only=True)
class Data:
    options_are_files: ClassVar[bool] = False

    kind: str
    name: str
    limit: int | None = None


@dataclasses.dataclass(kw_only=True)
class Words(Data):
    name: Literal["words"] = "words"
    language: str


@dataclasses.dataclass(kw_only=True)
class Numbers(Data):
    name: Literal["numbers"] = "numbers"
    base: int


@dataclasses.dataclass(kw_only=True)
class Font:
    size: int


@dataclasses.dataclass(kw_only=True)
class Job:
    data: Data = dataclasses.field(metadata=OF_KIND)
    font: Any = dataclasses.field(metadata=OF_KIND)
    ink: Any | None = dataclasses.field(default=None, metadata=OF_KIND)


KINDS = {"text": {"data": Words, "font": Font}, "sums": {"data": Numbers, "ink": Shape}}


def test_the_kind_brings_the_classes_of_its_groups() -> None:
    text = {"data": {"kind": "text", "name": "words", "language": "en"}, "font": {"size": 3}}
    assert from_dict(Job, text, KINDS) == Job(data=Words(kind="text", language="en"), font=Font(size=3))
    sums = {"data": {"kind": "sums", "name": "numbers", "base": 2}, "font": None, "ink": {"name": "square", "side": 1}}
    assert from_dict(Job, sums, KINDS) == Job(data=Numbers(kind="sums", base=2), font=None, ink=Square(side=1))
    assert from_dict(Job, sums | {"ink": None}, KINDS).ink is None
    del sums["font"]
    assert from_dict(Job, sums, KINDS).font is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"name": "words"}}, "data.kind: is missing; one of text, sums"),
        ({"data": {"kind": "maths", "nime": 1}}, "data.kind=maths: one of text, sums"),
        ({"data": {"kind": ["text"]}}, "data.kind=['text']: one of text, sums"),
        ({"data": None}, "data: must not be null; expected a group of keys"),
        ({"font": None}, "font: must not be null; expected a group of keys"),
        ({"ink": {"name": "square", "side": 1}}, "ink: problems of kind text have none; use ~ink"),
        ({"font": {"sice": 1}}, "font.sice: there is no such key; did you mean font.size?"),
        (
            {"data": {"kind": "text", "name": "words", "base": 2, "language": "en"}},
            "data.base: there is no such key; did you mean data.name or data.language?",
        ),
    ],
)
def test_what_is_wrong_with_a_kind(changes: dict[str, Any], message: str) -> None:
    values = {"data": {"kind": "text", "name": "words", "language": "en"}, "font": {"size": 3}}
    assert message in problems(values | changes, Job, KINDS)


def test_a_choice_whose_options_are_not_files_is_named_by_its_key() -> None:
    values = {"kind": "text", "name": "words", "language": "en", "base": 3}
    with pytest.raises(ConfigError) as caught:
        from_dict(Data, values, path="data")
    assert caught.value.problems == ["data.base belongs to data.name=numbers; drop it, or use that"]


def test_known_keys_leave_what_the_kind_adds_to_the_validation() -> None:
    known = known_keys(Job)
    assert known["data"] == known["font"] == Key()
    assert known["data.limit"] == Key(always=False)
    assert "font.size" not in known
