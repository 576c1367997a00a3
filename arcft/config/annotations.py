"""Type annotations of config fields: what they accept, and how they are described to a user."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any


def alternatives(kind: Any) -> tuple[Any, ...]:
    """The members of a union, or the type itself."""
    return typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)


def has_shape(kind: Any, value: Any) -> bool:
    """Whether plain `value` can be meant as `kind`; what it contains is not looked at."""
    origin = typing.get_origin(kind)
    if kind is Any:
        return True
    if dataclasses.is_dataclass(kind) or origin is dict:
        return isinstance(value, dict)
    if origin is typing.Literal:
        return isinstance(value, str)
    if origin is list:
        return isinstance(value, list)
    if kind is bool:
        return isinstance(value, bool)
    if kind in (int, float):
        return isinstance(value, (int, float) if kind is float else int) and not isinstance(value, bool)
    return kind is not type(None) and isinstance(value, kind)


def describe(kind: Any) -> str:
    """`kind` in words, after `expected`."""
    names = {str: "text", int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}
    described = []
    for alternative in alternatives(kind):
        origin = typing.get_origin(alternative)
        if origin is typing.Literal:
            words = ", ".join(map(str, typing.get_args(alternative)))
            described.append(f"one of {words}" if len(typing.get_args(alternative)) > 1 else words)
        elif origin is list:
            described.append(f"a list of {describe(typing.get_args(alternative)[0])}")
        elif origin is dict or dataclasses.is_dataclass(alternative):
            described.append("a group of keys")
        else:
            described.append(names.get(alternative, str(alternative)))
    return " or ".join(described)
