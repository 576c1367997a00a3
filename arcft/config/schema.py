"""Plain data to config dataclasses and back: the one door through which every config enters.

All that is wrong is collected and raised together as one ConfigError.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, TypeVar

from arcft.config.annotations import alternatives, describe, has_shape
from arcft.config.synonyms import synonyms
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


OF_KIND: Mapping[str, bool] = {"of_kind": True}
"""Metadata of a field whose class the kind of problem brings: the one that `data.kind` of the same config names."""

# A config class may have three things beside its fields: `problems()`, which yields its broken rules; `renamed`, a
# ClassVar of the new names of keys by their old ones; and `options_are_files = False` where a choice's names are not
# those of the YAML files.

Kinds = Mapping[str, Mapping[str, type]]
"""By kind of problem, then by group: the config class of the group. As everywhere, a class with subclasses stands for a
choice between them."""


def from_dict(
    config_class: type[ConfigClass],
    values: dict[str, Any],
    kinds: Kinds | None = None,
    *,
    path: str = "",
    check: Callable[[ConfigClass], Iterable[str]] = lambda config: (),
) -> ConfigClass:
    """Build `config_class` from plain data; raise ConfigError with every unknown key, wrong type and broken rule.

    A class with subclasses is a choice: `name` picks the one whose own `name` is a Literal of it. Fields marked OF_KIND
    get their class from `kinds`. Rules (`problems`) are checked where all values of a class have the right type.
    `path` is the key under which `values` stand, for messages; `check` yields what else is wrong with the config.
    """
    reader = _Reader(kinds or {}, None if path else config_class)
    config = reader.convert(config_class, values, path)
    if config is not _INVALID:
        reader.problems += check(config)
    if reader.problems:
        raise ConfigError(reader.problems)
    return typing.cast(ConfigClass, config)


def to_dict(config: Any) -> dict[str, Any]:
    """The nested plain data of a config dataclass; `from_dict` reads it back."""
    return dataclasses.asdict(config)


@functools.cache
def _hints(config_class: type) -> dict[str, Any]:
    """The types of its fields. Python evaluates their texts at each call, and a study reads thousands of configs."""
    return typing.get_type_hints(config_class)


def options(config_class: type) -> dict[str, type]:
    """The choices that a class stands for, by `name`: its subclasses; empty for a class that is no choice."""
    found: dict[str, type] = {}
    subclass: Any
    for subclass in config_class.__subclasses__():
        found |= options(subclass)
        if not subclass.__subclasses__():
            found |= dict.fromkeys(typing.get_args(_hints(subclass)["name"]), subclass)
    return found


@dataclasses.dataclass(frozen=True)
class Key:
    """What is known about a dotted key."""

    free_form: bool = False
    """Anything may follow below it."""

    always: bool = True
    """Every option of its group has it; else it may be missing from a composed config."""


def known_keys(config_class: type, prefix: str = "", *, always: bool = True) -> dict[str, Key]:
    """Dotted keys of a config class and of all options of its groups, but for what a kind of problem adds."""
    keys: dict[str, Key] = {}
    hints = _hints(config_class)
    for field in dataclasses.fields(config_class):
        types_of_field = alternatives(hints[field.name])
        free_form = any(typing.get_origin(kind) in (dict, list) for kind in types_of_field)
        keys[prefix + field.name] = Key(free_form, always)
        fixed = always and OF_KIND.items().isdisjoint(field.metadata.items())
        for kind in types_of_field:
            if not dataclasses.is_dataclass(kind):
                continue
            choices = set(options(typing.cast(type, kind)).values()) or {typing.cast(type, kind)}
            below = [known_keys(choice, f"{prefix}{field.name}.", always=fixed) for choice in choices]
            for key in {key for each in below for key in each}:
                infos = [each[key] for each in below if key in each]
                in_all = len(infos) == len(below) and all(info.always for info in infos)
                keys[key] = Key(any(info.free_form for info in infos), in_all)
    return keys


def unknown_key(key: str, siblings: Iterable[str], known: Collection[str] = ()) -> str:
    """The message for a key that no option has, with what it may mean: a key that other libraries call so, one beside
    it of a similar name, or one of its name elsewhere.

    `siblings` are the keys of its group, `known` those of the whole command.
    """
    siblings = list(siblings)
    last = key.rpartition(".")[2]
    near = synonyms(key, known) or difflib.get_close_matches(key, siblings, n=2, cutoff=0.6)
    near = near or sorted(name for name in known if name.rpartition(".")[2] == last)
    if near:
        hint = f"did you mean {' or '.join(near)}?"
    elif siblings:
        hint = f"known are {', '.join(siblings)}"
    else:
        hint = "see --help for what there is"
    return f"{key}: there is no such key; {hint}"


class _Reader:
    """Converts values and collects `problems`; what can't be converted becomes _INVALID."""

    def __init__(self, kinds: Kinds, command: type | None) -> None:
        """`command` is the config class of the whole command, where that is what is read."""
        self.kinds = kinds
        self.command = command
        self.problems: list[str] = []

    @functools.cached_property
    def known(self) -> Collection[str]:
        """The dotted keys of the command, for hints."""
        return () if self.command is None else known_keys(self.command)

    def convert(self, kind: Any, value: Any, path: str) -> Any:
        """`value` as `kind`."""
        possible = alternatives(kind)
        if value is None:
            if type(None) in possible or Any in possible:
                return None
            return self._refuse(f"{path}: must not be null; expected {describe(kind)}")
        for alternative in possible:
            words = typing.get_args(alternative) if typing.get_origin(alternative) is typing.Literal else ()
            if len(words) == 1 and isinstance(value, str) and value not in words:
                # One word that may stand in place of something else.
                return self._refuse(f"{path}={value}: expected {describe(kind)}")
            if has_shape(alternative, value):
                return self._convert_as(alternative, value, path)
        expected = f"expected {describe(kind)}, not {type(value).__name__}"
        return self._refuse(f"{path}={value!r}: {expected}{_way_to_write(path, value, possible)}")

    def _refuse(self, problem: str) -> Any:
        self.problems.append(problem)
        return _INVALID

    def _convert_as(self, kind: Any, value: Any, path: str) -> Any:
        origin = typing.get_origin(kind)
        if dataclasses.is_dataclass(kind):
            return self._group(typing.cast(type, kind), value, path)
        if origin is typing.Literal:
            if value in typing.get_args(kind):
                return value
            return self._refuse(f"{path}={value}: one of {', '.join(map(str, typing.get_args(kind)))}")
        if origin is list:
            (item,) = typing.get_args(kind)
            items = [self.convert(item, element, f"{path}[{number}]") for number, element in enumerate(value)]
            return _INVALID if _INVALID in items else items
        if origin is dict:
            _, item = typing.get_args(kind)
            entries = {key: self.convert(item, element, f"{path}.{key}") for key, element in value.items()}
            return _INVALID if _INVALID in entries.values() else entries
        if kind is float and not math.isfinite(value):
            return self._refuse(f"{path}={value}: must be a finite number")
        return float(value) if kind is float else value

    def _group(self, config_class: type, values: dict[str, Any], path: str) -> Any:
        """A dataclass, or the option of it that `name` picks."""
        choices = options(config_class)
        if not choices:
            return self._fields(config_class, values, path, {})
        key, known = _below(path, "name"), ", ".join(choices)
        if "name" not in values:
            self._refuse_renamed(config_class, values, path)
            return self._refuse(f"{key}: is missing; one of {known}")
        name = values["name"]
        if not isinstance(name, str) or name not in choices:
            return self._refuse(f"{key}={name}: one of {known}")
        return self._fields(choices[name], values, path, choices)

    def _fields(self, config_class: type, values: dict[str, Any], path: str, choices: Mapping[str, type]) -> Any:
        hints = dict(_hints(config_class))
        fields = {field.name: field for field in dataclasses.fields(config_class)}
        unknown = {key: value for key, value in values.items() if key not in fields}
        for key in self._refuse_renamed(config_class, unknown, path):
            del unknown[key]
        for key, value in unknown.items():
            owners = [name for name, option in choices.items() if key in _field_names(option)]
            # Null says that it is not set, which is true: configs of earlier versions have such keys of every option.
            if owners and value is not None:
                self.problems.append(_belongs(config_class, path, key, owners))
            elif not owners:
                siblings = [_below(path, name) for name in fields]
                leaves = [leaf for leaf in _leaves(_below(path, key), value) if synonyms(leaf, self.known)]
                for wrong in leaves or [_below(path, key)]:
                    self.problems.append(unknown_key(wrong, siblings, self.known))
        if any(OF_KIND.items() <= field.metadata.items() for field in fields.values()):
            hints |= self._kind_hints(fields, hints, values, path)
        converted = {}
        for name, field in fields.items():
            if hints[name] in (None, _INVALID):
                converted[name] = hints[name]
            elif name in values:
                converted[name] = self.convert(hints[name], values[name], _below(path, name))
            elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
                needs = f"{_option(config_class, path, values['name'])} needs it, " if choices else "expected "
                self.problems.append(f"{_below(path, name)}: is missing; {needs}{describe(hints[name])}")
                converted[name] = _INVALID
        if any(value is _INVALID for value in converted.values()):
            return _INVALID
        config = config_class(**converted)
        if isinstance(getattr(config_class, "problems", None), types.FunctionType):
            # A group inside another one knows its own name alone.
            outer = path.rpartition(".")[0]
            self.problems += [f"{outer}: {problem}" if outer else problem for problem in config.problems()]
        return config

    def _refuse_renamed(self, config_class: type, values: Mapping[str, Any], path: str) -> list[str]:
        """Report keys that have a new name by now, as `renamed` of the class says, and return them."""
        renamed: Mapping[str, str] = getattr(config_class, "renamed", {})
        found = [key for key in values if key in renamed]
        self.problems += [f"{_below(path, key)} is now {_below(path, renamed[key])}" for key in found]
        return found

    def _kind_hints(
        self, fields: Mapping[str, dataclasses.Field[Any]], hints: Mapping[str, Any], values: dict[str, Any], path: str
    ) -> dict[str, Any]:
        """The types of the fields that the kind of problem decides: None for a group that it lacks, _INVALID where the
        kind is not known or such a group is given."""
        data = values.get("data")
        if not isinstance(data, dict):
            return {}
        key, known = _below(path, "data.kind"), ", ".join(self.kinds)
        kind = str(data.get("kind"))
        if data.get("kind") is None:
            self.problems.append(f"{key}: is missing; one of {known}")
        elif kind not in self.kinds:
            self.problems.append(f"{key}={kind}: one of {known}")
        found: dict[str, Any] = {}
        for name, field in fields.items():
            if not OF_KIND.items() <= field.metadata.items():
                continue
            if kind not in self.kinds:
                found[name] = _INVALID
            elif name in self.kinds[kind]:
                found[name] = self.kinds[kind][name]
                if type(None) in alternatives(hints[name]):
                    found[name] = found[name] | None
            elif values.get(name) is None:
                found[name] = None
            else:
                found[name] = self._refuse(f"{_below(path, name)}: problems of kind {kind} have none; use ~{name}")
        return found


def _leaves(key: str, value: Any) -> list[str]:
    """The dotted keys at and below `key` that have values."""
    if not isinstance(value, dict) or not value:
        return [key]
    return [leaf for name, below in value.items() for leaf in _leaves(_below(key, str(name)), below)]


def _below(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _field_names(config_class: type) -> set[str]:
    return {field.name for field in dataclasses.fields(config_class)}


def _option(config_class: type, path: str, name: str) -> str:
    """How an option is chosen on the command line."""
    if not getattr(config_class, "options_are_files", True) or "[" in path:
        return f"{_below(path, 'name')}={name}"
    group = path.rpartition(".")[2]
    return f"{group}={name}" if group == path else f"{group}@{path}={name}"


def _belongs(config_class: type, path: str, key: str, owners: list[str]) -> str:
    first, *rest = owners
    *most, last = rest or [""]
    others = f"{''.join(f', {name}' for name in most)} or {last}" if rest else ""
    use = "use one of those" if rest else "use that"
    return f"{_below(path, key)} belongs to {_option(config_class, path, first)}{others}; drop it, or {use}"


def _way_to_write(path: str, value: Any, possible: Iterable[Any]) -> str:
    """How to write a text that looks like a number or a list and is none."""
    if not isinstance(value, int | float):
        if str in possible and isinstance(value, list | dict):
            return f"; if it is one text, quote it: \"{path}='...'\""
        return ""
    key = path.partition("[")[0]
    if key in ("data.task_ids", "data.exclude"):
        return f"; YAML read the id as a number: quote it, e.g. \"{key}=['007bbfb7']\""
    if path in ("ttft.budget", "training.max_time", "budget", "max_time"):
        return "; write hours, minutes and seconds with their letters, e.g. 90s, 45m, 11h30m"
    if str in possible:
        return f"; if it is a text, quote it: \"{path}='...'\""
    return ""
