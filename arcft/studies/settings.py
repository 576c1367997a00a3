"""What differs between the configs of runs, and the settings that they are grouped into."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from arcft.errors import ArcftError
from arcft.reporting.words import count
from arcft.studies.runs import Run

_NOT_COMPARED = (
    "tracking.", "showcase", "resume", "preview", "dry_run", "optimized_metric", "checkpoint", "training.num_workers",
    "training.max_time", "training.save_", "training.logging_steps", "training.profile_steps",
    "training.generation_tasks", "inference.batch_size", "ttft.workers", "ttft.num_workers",
)  # fmt: skip
"""Beginnings of keys that don't make a setting by themselves: they say where and how a run is made and recorded."""


class StudyError(ArcftError):
    """Runs that can't be compared as asked."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """Runs that are alike but for their seeds."""

    values: tuple[Any, ...]
    """Of `Grouping.by`."""

    label: str
    """For example `lora.r=16 scheduler.name=cosine`; `all runs` where nothing differs."""

    runs: list[Run]
    """One for each seed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grouping:
    """Settings, and how they were found."""

    by: tuple[str, ...]
    """The keys that make a setting."""

    over: tuple[str, ...]
    """The keys of seeds."""

    along: tuple[str, ...]
    """Keys that change with those of `by`, so that they are not told apart."""

    settings: list[Setting]
    repeated: int
    """Runs that are left out, because a later one has the same setting and seeds."""


def group(runs: Sequence[Run], by: Sequence[str] | None, over: Sequence[str] | None) -> Grouping:
    """The settings of `runs`, by number where they are numbers, else in the order of the runs.

    Without `over`, seeds are the keys called `seed` that differ; without `by`, settings are told apart by as few as
    possible of the other keys that differ. Raise StudyError for a key that no run has.
    """
    known = list(dict.fromkeys(key for run in runs for key in run.config))
    for option, keys in (("by", by), ("over", over)):
        for key in keys or ():
            if key not in known:
                raise StudyError(_unknown(option, key, known))
    differing = [key for key in known if len({_text(run.config.get(key)) for run in runs}) > 1]
    seeds = tuple(over) if over is not None else tuple(key for key in differing if key.rpartition(".")[2] == "seed")
    rest = [key for key in differing if key not in seeds and not key.startswith(_NOT_COMPARED)]
    if not rest and by is None and all(run.job == "evaluate" for run in runs):
        # Evaluations whose training config is not known.
        rest = [key for key in differing if key == "checkpoint"]
    keys = tuple(by) if by is not None else _smallest(runs, rest)
    seeds = tuple(key for key in seeds if key not in keys)
    along = tuple(key for key in rest if key not in keys and _follows(runs, key, keys))
    if by is not None:
        _refuse_mixed(runs, keys, [key for key in rest if key not in (*keys, *along)])
    settings, repeated = _settings(runs, keys, seeds)
    return Grouping(by=keys, over=seeds, along=along, settings=settings, repeated=repeated)


def label(keys: Sequence[str], values: Sequence[Any]) -> str:
    """For example `lora.r=16`."""
    return " ".join(f"{key}={shown(value)}" for key, value in zip(keys, values, strict=True)) or "all runs"


def shown(value: Any) -> str:
    """A value of a config as a command line has it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value) if isinstance(value, str | int | float) else json.dumps(value)


def find_setting(grouping: Grouping, wanted: str) -> Setting:
    """The setting that `baseline=` names, by its label, by some words of it, or by the value alone. Raise StudyError
    where that is not exactly one."""
    words = set(wanted.split())
    found = [one for one in grouping.settings if one.label == wanted]
    found = found or [one for one in grouping.settings if words <= set(one.label.split())]
    found = found or [one for one in grouping.settings if wanted in map(shown, one.values)]
    if len(found) == 1:
        return found[0]
    labels = "; ".join(one.label for one in grouping.settings)
    what = "names no setting" if not found else f"names {count(len(found), 'setting')}"
    raise StudyError(f"baseline={wanted}: {what}; the settings are: {labels}")


def _smallest(runs: Sequence[Run], keys: Iterable[str]) -> tuple[str, ...]:
    """As few of `keys` as tell apart what all of them do, the names of options first."""
    ordered = sorted(keys, key=lambda key: (".recommended." in f".{key}", not key.endswith(".name"), key == "step"))
    chosen: list[str] = []
    parts = 1
    for key in ordered:
        finer = len({_values(run, [*chosen, key]) for run in runs})
        if finer > parts:
            chosen.append(key)
            parts = finer
    # A later key may make an earlier one superfluous.
    for key in list(chosen):
        others = [one for one in chosen if one != key]
        if len({_values(run, others) for run in runs}) == parts:
            chosen = others
    return tuple(chosen)


def _follows(runs: Sequence[Run], key: str, keys: Sequence[str]) -> bool:
    """Whether `key` has one value for each setting."""
    return len({_values(run, keys) for run in runs}) == len({_values(run, [*keys, key]) for run in runs})


def _refuse_mixed(runs: Sequence[Run], keys: Sequence[str], others: Sequence[str]) -> None:
    """Raise StudyError where runs of one setting differ in more than their seeds."""
    if others:
        raise StudyError(
            f"by={','.join(keys)}: runs of one setting differ in {', '.join(others)} too; add these to by=, or to "
            "over= to average over them, or name only some of the runs"
        )


def _settings(runs: Sequence[Run], keys: Sequence[str], seeds: Sequence[str]) -> tuple[list[Setting], int]:
    groups: dict[tuple[str, ...], dict[tuple[str, ...], Run]] = {}
    for run in runs:
        same = groups.setdefault(_values(run, keys), {})
        earlier = same.get(_values(run, seeds))
        if earlier is None or earlier.finished_at <= run.finished_at:
            same[_values(run, seeds)] = run
    settings = []
    for found in groups.values():
        kept = list(found.values())
        values = tuple(kept[0].config.get(name) for name in keys)
        settings.append(Setting(values=values, label=label(keys, values), runs=kept))
    if all(is_number(value) for one in settings for value in one.values):
        settings.sort(key=lambda one: one.values)
    return settings, len(runs) - sum(len(one.runs) for one in settings)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _values(run: Run, keys: Sequence[str]) -> tuple[str, ...]:
    return tuple(_text(run.config.get(key)) for key in keys)


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _unknown(option: str, key: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(key, known, n=2)
    hint = f"did you mean {' or '.join(near)}?" if near else "keys are written as in run.yaml, e.g. lora.r"
    return f"{option}={key}: no run has this key; {hint}"


def join_evaluations(runs: Sequence[Run]) -> tuple[list[Run], list[Run]]:
    """`runs` with each evaluation and its training run made one, and the training runs that no evaluation of `runs` has
    evaluated, if others were.

    An evaluation of a checkpoint has the losses and costs of its training run, which is then no run of its own.
    """
    trained: Mapping[Path, Run] = {_resolved(run.folder): run for run in runs if run.job == "train"}
    evaluated: set[Path] = set()
    joined = []
    for run in runs:
        if run.job != "evaluate":
            continue
        origin = None if run.trained_in is None else trained.get(_resolved(run.trained_in))
        if origin is not None:
            evaluated.add(_resolved(origin.folder))
            losses = {name: value for name, value in origin.metrics.items() if name in ("loss", "eval_loss")}
            run = dataclasses.replace(run, metrics={**run.metrics, **losses}, costs={**origin.costs, **run.costs})
        joined.append(run)
    if not evaluated:
        return [*(run for run in runs if run.job == "train"), *joined], []
    rest = [run for folder, run in trained.items() if folder not in evaluated]
    return joined, rest


def _resolved(path: Path) -> Path:
    return path.resolve()
