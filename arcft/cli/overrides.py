"""Overrides that Hydra can't read as they were typed: what is wrong with them, and how to type them."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from itertools import zip_longest
from pathlib import Path

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, Override, QuotedString, Sweep
from hydra.errors import HydraException, OverrideParseException

from arcft.config.schema import ConfigError
from arcft.config.synonyms import OPTIONS, synonyms
from arcft.runs.common.config_folder import config_folder
from arcft.runs.common.paths import in_shell, quoted

PATHS = (
    "adapters", "base_model", "checkpoint", "data.path", "data.solutions_path", "lora.start", "model.path", "out",
    "model.tokenizer", "predictions", "resume", "runs",
)  # fmt: skip
"""Keys whose value is a path, which can't be empty."""

SWITCHES = ("experiment", "hparams_search", "debug", "local")
"""Groups that take no config keys of their own."""

_AMBIGUOUS = re.compile(r"Ambiguous value for argument '(.*?)'\n1\.", re.DOTALL)
_IN_SHELL = "the outer quotes are for the shell"


def refuse_empty_paths(arguments: Sequence[str]) -> None:
    """Raise ConfigError for `checkpoint=` and other paths without a value, as an unset shell variable leaves them."""
    empty = [key for key in PATHS if any(word in arguments for word in (f"{key}=", f"{key}=''", f'{key}=""'))]
    if empty:
        raise ConfigError([f"{key}= is empty (an unset shell variable?); give a path, or drop it" for key in empty])


def refuse_flags(arguments: Sequence[str], known: Collection[str]) -> None:
    """Raise ConfigError for `--learning_rate 1e-4` and the like, as argparse programs take them.

    `known` are the dotted keys of the program. Flags of Hydra's own, and their beginnings, are left to it.
    """
    hydras = [flag for action in get_args_parser()._actions for flag in action.option_strings]
    problems = []
    for word, following in zip_longest(arguments, arguments[1:], fillvalue=""):
        flag, equals, value = word.partition("=")
        if not flag.startswith("--") or any(name.startswith(flag) for name in hydras):
            continue
        if not equals and not following.startswith("-") and "=" not in following:
            value = following
        key = flag.removeprefix("--").replace("-", "_")
        meant = [f"{words}={value}" if value and words in known else words for words in synonyms(key, known)]
        meant = meant or [f"{name}={value}" for name in known if name.rpartition(".")[2] == key and value]
        hint = f"did you mean {' or '.join(meant)}?" if meant else "--help lists the keys"
        problems.append(f"{word}: settings are typed as key=value; {hint}")
    if problems:
        raise ConfigError(problems)


def refuse_wrong_groups(
    arguments: Sequence[str], program: str, own: Collection[str], folder: Path | None = None
) -> None:
    """Raise ConfigError for every group (model, encoder, ...) that is given no option's name, such as `lora=null`, for
    those that only another program has, and for a value without a key.

    `own` are the keys of `program`, its groups among them; `folder` holds its config and the groups, by
    default conf/.
    """
    folder = folder or config_folder()
    has_more_options = any(word.startswith(("--config-dir", "-cd")) for word in arguments)
    groups = sorted(path.name for path in folder.iterdir() if path.is_dir())
    problems = []
    for word in arguments:
        override = _parsed(word)
        if override is None or override.key_or_group not in ("", *groups):
            continue
        group = override.key_or_group
        if not group:
            problems.append(_no_option(word))
        elif group not in own and group not in SWITCHES:
            has = ", ".join(name for name in groups if name in own)
            problems.append(f"{word}: {program} has no group {group}, only {has}; drop it")
        elif not all(_may_name_option(value, override.is_delete()) for value in _values(override)):
            names = ", ".join(sorted(path.stem for path in (folder / group).glob("*.yaml")))
            problems.append(f"{word}: {group} takes the name of an option: {names}")
        elif not has_more_options:
            options = {
                path.relative_to(folder / group).with_suffix("").as_posix() for path in (folder / group).rglob("*.yaml")
            }
            problems += [
                f"{group}={value}: is no option of {group}; {meant}"
                for value in map(str, _values(override))
                if value not in options and (meant := _option_meant(group, value))
            ]
    if problems:
        raise ConfigError(problems)


def _option_meant(group: str, value: str) -> str | None:
    """What to choose in place of an option that there isn't, where that is known."""
    if group == "model" and ("/" in value or value.endswith(".gguf")):
        return f"a hub id, a folder or a .gguf file is given as model=local model.path={value}"
    words = OPTIONS.get((group, value))
    return f"did you mean {words}?" if words else None


def _values(override: Override) -> Sequence[object]:
    value = override.value()
    return value.list if isinstance(value, ChoiceSweep) else [value]


def _may_name_option(value: object, is_delete: bool) -> bool:
    # What other sweeps stand for, Hydra finds out.
    return isinstance(value, str | QuotedString | Glob | Sweep) or (is_delete and value is None)


def explanation(error: Exception, arguments: Sequence[str]) -> str:
    """The message for an error of Hydra's; `arguments` is what the user typed."""
    if isinstance(error, OverrideParseException):
        return _unreadable(_as_typed(str(error.override), arguments), arguments)
    ambiguous = _AMBIGUOUS.match(str(error))
    if ambiguous:
        return _sweep_without_m(_as_typed(ambiguous[1], arguments))
    # Hydra ends some messages with every folder that it searched.
    return str(error).partition("\nConfig search path")[0].rstrip()


def _as_typed(override: str, arguments: Sequence[str]) -> str:
    """Without the `++` that let_unknown_keys_in has put before it."""
    return override if override in arguments else override.removeprefix("++")


def _unreadable(override: str, arguments: Sequence[str]) -> str:
    key, equals, value = override.partition("=")
    if not equals or not re.fullmatch(r"(\+\+?|~)?[A-Za-z_][\w./@:-]*", key):
        return _no_option(override)
    for way in _ways_to_quote(key, value, is_multirun=not {"-m", "--multirun"}.isdisjoint(arguments)):
        if _is_readable(f"{key}={way}"):
            return (
                f"{override}: the value has signs that Hydra reads as its own; quote it: {in_shell(f'{key}={way}')} "
                f"({_IN_SHELL})"
            )
    return f"{override}: Hydra can't read the value; put each text in it in quotes"


def _no_option(word: str) -> str:
    return f"{word}: is no option; each is typed as key=value, e.g. dry_run=true, and --help lists the keys"


def _sweep_without_m(override: str) -> str:
    key, _, value = override.partition("=")
    return (
        f"{override}: commas separate the values of a sweep, which needs -m. For one value with commas, quote it: "
        f"{in_shell(f'{key}={quoted(value)}')} ({_IN_SHELL}); for a list: {in_shell(f'{key}=[{value}]')}"
    )


def _ways_to_quote(key: str, value: str, *, is_multirun: bool) -> list[str]:
    """`value` in quotes, the likeliest way first: as a list, as the values of a sweep, as one text."""
    ways = []
    if value.startswith("[") and value.endswith("]"):
        ways.append(f"[{_each_quoted(value[1:-1])}]")
    elif is_multirun and "," in value:
        ways.append(_each_quoted(value))
    if key in PATHS or not value.startswith("{"):
        ways.append(quoted(value))
    return ways


def _each_quoted(values: str) -> str:
    return ",".join(quoted(value.strip().strip("'\"")) for value in values.split(","))


def _is_readable(override: str) -> bool:
    return _parsed(override) is not None


def _parsed(override: str) -> Override | None:
    try:
        return OverridesParser.create().parse_override(override)
    except HydraException:
        return None
