"""Overrides that Hydra can't read as they were typed: what is wrong with them, and how to type them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException

from arcft.config.schema import ConfigError
from arcft.runs.common.paths import in_shell, quoted

PATHS = (
    "adapters", "base_model", "checkpoint", "data.path", "data.solutions_path", "lora.start", "model.path",
    "model.tokenizer", "predictions", "resume",
)  # fmt: skip
"""Keys whose value is a path, which can't be empty."""

_AMBIGUOUS = re.compile(r"Ambiguous value for argument '(.*?)'\n1\.", re.DOTALL)
_IN_SHELL = "the outer quotes are for the shell"


def refuse_empty_paths(arguments: Sequence[str]) -> None:
    """Raise ConfigError for `checkpoint=` and other paths without a value, as an unset shell variable leaves them."""
    empty = [key for key in PATHS if any(word in arguments for word in (f"{key}=", f"{key}=''", f'{key}=""'))]
    if empty:
        raise ConfigError([f"{key}= is empty (an unset shell variable?); give a path, or drop it" for key in empty])


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
        return f"{override}: is no option; each is typed as key=value, e.g. dry_run=true, and --help lists the keys"
    for way in _ways_to_quote(key, value, is_multirun=not {"-m", "--multirun"}.isdisjoint(arguments)):
        if _is_readable(f"{key}={way}"):
            return (
                f"{override}: the value has signs that Hydra reads as its own; quote it: {in_shell(f'{key}={way}')} "
                f"({_IN_SHELL})"
            )
    return f"{override}: Hydra can't read the value; put each text in it in quotes"


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
    try:
        OverridesParser.create().parse_override(override)
    except HydraException:
        return False
    return True
