"""Plain data to config dataclasses and back: the one door through which every config enters.

All that is wrong is collected and raised together as one ConfigError.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from typing import Any, TypeVar

from arcft.errors import ArcftError

ConfigClass = TypeVar("ConfigClass")


_INVALID = object()
"""In place of a value that could not be converted."""


class ConfigError(ArcftError):
    """Everything that is wrong with a config, one line a problem."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        lines = problems if len(problems) == 1 else [f"{len(problems)} problems in the config:", *problems]
        super().__init__("\n  - ".join(lines) if len(problems) > 1 else lines[0])

    def __reduce__(self) -> tuple[type[ConfigError], tuple[list[str]]]:
        # Launchers bring errors from other processes by pickle, which would hand the message to `problems`.
        return ConfigError, (self.problems,)


def from_dict(config_class: type[ConfigClass], values: dict[str, Any]) -> ConfigClass:
    """Build `config_class` from nested plain data; raise ConfigError with every unknown key, wrong type and
    broken rule. Rules are checked where all the values that they are about have the right type."""
    problems: list[str] = []
    config = _convert_fields(config_class, values, "", problems)
    if problems:
        raise ConfigError(problems)
    return typing.cast(ConfigClass, config)


def to_dict(config: Any) -> dict[str, Any]:
    """The nested plain data of a config dataclass; `from_dict` reads it back."""
    return dataclasses.asdict(config)


def known_keys(config_class: type, prefix: str = "") -> dict[str, bool]:
    """Dotted keys of a config class; the value says whether anything may follow below it (free-form)."""
    keys: dict[str, bool] = {}
    hints = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        kinds = _alternatives(hints[field.name])
        nested = [kind for kind in kinds if dataclasses.is_dataclass(kind)]
        keys[prefix + field.name] = any(typing.get_origin(kind) in (dict, list) for kind in kinds)
        for kind in nested:
            keys |= known_keys(typing.cast(type, kind), f"{prefix}{field.name}.")
    return keys


def unknown_key(key: str, known: typing.Iterable[str]) -> str:
    """The message for a key that no option has, with the nearest ones that exist."""
    known = list(known)
    near = difflib.get_close_matches(key, known, n=2, cutoff=0.6)
    group = key.rpartition(".")[0]
    siblings = [name for name in known if name.rpartition(".")[0] == group]
    if near:
        hint = f"did you mean {' or '.join(near)}?"
    elif siblings:
        hint = f"known are {', '.join(siblings)}"
    else:
        hint = "see --help for what there is"
    return f"{key}: there is no such key; {hint}"


def _convert(kind: Any, value: Any, path: str, problems: list[str]) -> Any:
    """`value` as `kind`, or _INVALID after appending to `problems` what does not fit."""
    alternatives = _alternatives(kind)
    if value is None:
        if type(None) in alternatives:
            return None
        problems.append(f"{path}: must not be null; expected {_describe(kind)}")
        return _INVALID
    for alternative in alternatives:
        words = typing.get_args(alternative) if typing.get_origin(alternative) is typing.Literal else ()
        if len(words) == 1 and isinstance(value, str) and value not in words:
            # One word that may stand in place of something else.
            problems.append(f"{path}={value}: expected {_describe(kind)}")
            return _INVALID
        if _has_shape(alternative, value):
            return _convert_as(alternative, value, path, problems)
    expected = f"expected {_describe(kind)}, not {type(value).__name__}"
    problems.append(f"{path}={value!r}: {expected}{_not_a_number(path, value)}")
    return _INVALID


def _convert_as(kind: Any, value: Any, path: str, problems: list[str]) -> Any:
    origin = typing.get_origin(kind)
    if dataclasses.is_dataclass(kind):
        return _convert_fields(typing.cast(type, kind), value, path, problems)
    if origin is typing.Literal:
        if value in typing.get_args(kind):
            return value
        problems.append(f"{path}={value}: one of {', '.join(map(str, typing.get_args(kind)))}")
        return _INVALID
    if origin is list:
        (item,) = typing.get_args(kind)
        items = [_convert(item, element, f"{path}[{number}]", problems) for number, element in enumerate(value)]
        return _INVALID if _INVALID in items else items
    if origin is dict:
        _, item = typing.get_args(kind)
        entries = {key: _convert(item, element, f"{path}.{key}", problems) for key, element in value.items()}
        return _INVALID if _INVALID in entries.values() else entries
    if kind is float and not math.isfinite(value):
        problems.append(f"{path}={value}: must be a finite number")
        return _INVALID
    return float(value) if kind is float else value


def _convert_fields(config_class: type, value: dict[str, Any], path: str, problems: list[str]) -> Any:
    prefix = f"{path}." if path else ""
    hints = typing.get_type_hints(config_class)
    fields = {field.name: field for field in dataclasses.fields(config_class)}
    for key in value:
        if key not in fields:
            problems.append(unknown_key(f"{prefix}{key}", [prefix + name for name in fields]))
    converted = {}
    for name, field in fields.items():
        if name in value:
            converted[name] = _convert(hints[name], value[name], prefix + name, problems)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            problems.append(f"{prefix}{name}: is missing; expected {_describe(hints[name])}")
            converted[name] = _INVALID
    if _INVALID in converted.values():
        return _INVALID
    config = config_class(**converted)
    if isinstance(getattr(config_class, "problems", None), types.FunctionType):
        # A group inside another one knows its own name alone.
        outer = path.rpartition(".")[0]
        problems += [f"{outer}: {problem}" if outer else problem for problem in config.problems()]
    return config


def _alternatives(kind: Any) -> tuple[Any, ...]:
    return typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)


def _has_shape(kind: Any, value: Any) -> bool:
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


def _describe(kind: Any) -> str:
    names = {str: "text", int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}
    described = []
    for alternative in _alternatives(kind):
        origin = typing.get_origin(alternative)
        if origin is typing.Literal:
            words = ", ".join(map(str, typing.get_args(alternative)))
            described.append(f"one of {words}" if len(typing.get_args(alternative)) > 1 else words)
        elif origin is list:
            described.append(f"a list of {_describe(typing.get_args(alternative)[0])}")
        elif origin is dict or dataclasses.is_dataclass(alternative):
            described.append("a group of keys")
        else:
            described.append(names.get(alternative, str(alternative)))
    return " or ".join(described)


def _not_a_number(path: str, value: Any) -> str:
    """How to write what looks like a number and is none."""
    if not isinstance(value, int | float):
        return ""
    key = path.partition("[")[0]
    if key in ("data.task_ids", "data.exclude"):
        return f"; YAML read the id as a number: quote it, e.g. \"{key}=['007bbfb7']\""
    if path in ("ttft.budget", "training.max_time"):
        return "; write hours, minutes and seconds with their letters, e.g. 90s, 45m, 11h30m"
    return ""
