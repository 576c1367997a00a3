"""What differs between the configs of runs, and the settings that they are grouped into."""

from __future__ import annotations

import dataclasses
import difflib
import json
import operator
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from arcft.errors import ArcftError
from arcft.reporting.words import count
from arcft.studies.runs import LOSSES, Run

_NOT_COMPARED = (
    "tracking.", "showcase", "resume", "preview", "dry_run", "optimized_metric", "training.num_workers",
    "training.max_time", "training.save_", "training.logging_steps", "training.profile_steps",
    "training.generation_tasks", "inference.batch_size", "ttft.workers", "ttft.num_workers",
)  # fmt: skip
"""Beginnings of keys that don't make a setting by themselves: they say where and how a run is made and recorded."""

_WHERE = ("tracking.", "resume", "checkpoint")
"""Of these, those that name a place or another run."""

_OF_EVALUATION = {"train": ("inference.", "selection."), "evaluate": ("inference.", "selection.", "data.", "ttft.")}
"""By job: beginnings of keys that have no part in training."""


_WORDS = {None: "null", True: "true", False: "false"}

_LONGEST = 60
"""Characters of a value; the rest of a system prompt is cut off."""


class StudyError(ArcftError):
    """Runs that can't be compared as asked."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """Runs that are alike but for their seeds."""

    values: tuple[Any, ...]
    """Of `Grouping.by`."""

    label: str
    """For example `lora.r=16 scheduler.name=cosine`; `all runs` where nothing differs."""

    replicates: list[list[Run]]
    """What counts as a seed: each the runs that share a training run, or a seed of it, so that they are not
    independent of each other."""

    @property
    def runs(self) -> list[Run]:
        return [run for replicate in self.replicates for run in replicate]


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
    crossed: tuple[str, ...]
    """Keys of seeds of which a run shares a value with some runs of its setting, and another value with others."""

    repeated: int
    """Runs that are left out, because a later one has the same setting and seeds."""

    ignored: tuple[str, ...]
    """Keys in which these differ, but which make no setting by themselves."""


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
    seeds = tuple(over) if over is not None else tuple(key for key in differing if _is_seed(key))
    rest = [key for key in differing if key not in seeds and not key.startswith(_NOT_COMPARED)]
    keys = tuple(by) if by is not None else _smallest(runs, rest)
    seeds = tuple(key for key in seeds if key not in keys)
    along = tuple(key for key in rest if key not in keys and _follows(runs, key, keys))
    if by is not None:
        _refuse_mixed(runs, keys, [key for key in rest if key not in (*keys, *along)])
    settings, repeated = _settings(runs, keys, seeds)
    crossed = tuple(key for key in seeds if any(_is_crossed(one, key) for one in settings))
    used = (*keys, *seeds, *along)
    ignored = [key for key in differing if key not in used and not key.startswith(_WHERE)] if repeated else []
    return Grouping(
        by=keys,
        over=seeds,
        along=along,
        settings=settings,
        crossed=crossed,
        repeated=repeated,
        ignored=tuple(ignored),
    )


def label(keys: Sequence[str], values: Sequence[Any]) -> str:
    """For example `lora.r=16`."""
    return " ".join(f"{key}={shown(value)}" for key, value in zip(keys, values, strict=True)) or "all runs"


def shown(value: Any) -> str:
    """A value of a config as a command line has it, on one line and not too long."""
    if value is None or isinstance(value, bool):
        return _WORDS[value]
    text = str(value) if isinstance(value, str | int | float) else json.dumps(value)
    line = " ".join(text.split())
    line = line if len(line) <= _LONGEST else f"{line[: _LONGEST - 1]}…"
    is_ambiguous = isinstance(value, str) and (not line or " " in line or line in _WORDS.values())
    return f"'{line}'" if is_ambiguous else line


def typed(value: Any) -> str:
    """A value of a config as it is typed for `baseline=`: a text as it is, whole."""
    return value if isinstance(value, str) else shown(value)


def find_setting(grouping: Grouping, wanted: str) -> Setting:
    """The setting that `baseline=` names, by its label, by some words of it, or by the value alone. Raise StudyError
    where that is not exactly one."""
    words = set(wanted.split())
    found = [one for one in grouping.settings if one.label == wanted]
    found = found or [one for one in grouping.settings if words <= set(one.label.split())]
    found = found or [one for one in grouping.settings if wanted in (*map(shown, one.values), *map(str, one.values))]
    if len(found) == 1:
        return found[0]
    labels = "; ".join(one.label for one in grouping.settings)
    what = "names no setting" if not found else f"names {count(len(found), 'setting')}"
    raise StudyError(f"baseline={wanted}: {what}; the settings are: {labels}")


def _smallest(runs: Sequence[Run], keys: Iterable[str]) -> tuple[str, ...]:
    """As few of `keys` as tell apart what all of them do, the names of options first."""
    ordered = sorted(
        keys,
        key=lambda key: (".recommended." in f".{key}", not key.endswith(".name"), key == "step", key == "checkpoint"),
    )
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
            f"by={','.join(keys) or '[]'}: runs of one setting differ in {', '.join(others)} too; add these to by=, or "
            "to over= to average over them, or name only some of the runs"
        )


def _settings(runs: Sequence[Run], keys: Sequence[str], seeds: Sequence[str]) -> tuple[list[Setting], int]:
    groups: dict[tuple[str, ...], dict[tuple[str, ...], Run]] = {}
    for run in runs:
        same = groups.setdefault(_values(run, keys), {})
        earlier = same.get(_values(run, seeds))
        if earlier is None or earlier.finished_at <= run.finished_at:
            same[_values(run, seeds)] = run
    settings = []
    named: Counter[str] = Counter()
    for found in groups.values():
        kept = list(found.values())
        values = tuple(kept[0].config.get(name) for name in keys)
        name = label(keys, values)
        named[name] += 1
        # Long values may differ in what their labels leave out.
        name = name if named[name] == 1 else f"{name} ({named[name]})"
        settings.append(Setting(values=values, label=name, replicates=_replicates(kept, seeds, runs)))
    if all(is_number(value) for one in settings for value in one.values):
        settings.sort(key=lambda one: one.values)
    return settings, len(runs) - sum(len(one.runs) for one in settings)


def _replicates(own: Sequence[Run], seeds: Sequence[str], runs: Sequence[Run]) -> list[list[Run]]:
    """The runs of a setting by what is independent.

    Evaluations of one training run are one replicate, whatever their own seeds, unless all of `runs` are evaluations of
    the same weights: then their seeds are all that varies. Training runs are one replicate if they share a seed that
    varies: with model.seed=0,1 and training.seed=0,1 every run has the first weights or the batches of another one.
    """
    if len({_origin(run) for run in runs}) == 1:
        return [[run] for run in own]
    of_training = [key for key in seeds if is_of_training(key, own[0].job)]
    varying = [key for key in of_training if _is_seed(key) and len({_values(run, [key]) for run in own}) > 1]
    averaged = [key for key in of_training if not _is_seed(key)]

    known = [(_origin(run), _values(run, averaged), _values(run, varying)) for run in own]

    def share(one: int, other: int) -> bool:
        (origin, fixed, seeds), (other_origin, other_fixed, other_seeds) = known[one], known[other]
        same_seed = not varying or any(map(operator.eq, seeds, other_seeds))
        return origin == other_origin or (fixed == other_fixed and same_seed)

    found: list[list[int]] = []
    for index in range(len(own)):
        joined = [one for one in found if any(share(index, other) for other in one)]
        found = [one for one in found if one not in joined]
        found.append([*(other for one in joined for other in one), index])
    return [[own[index] for index in one] for one in found]


def _is_seed(key: str) -> bool:
    return key.rpartition(".")[2] == "seed"


def _is_crossed(setting: Setting, key: str) -> bool:
    return any(len({_values(run, [key]) for run in one}) > 1 for one in setting.replicates)


def is_of_training(key: str, job: str) -> bool:
    """Whether a key has a part in the training of a run of this job."""
    return not key.startswith(_OF_EVALUATION[job])


def is_of_one_training(runs: Sequence[Run]) -> bool:
    """Whether all are evaluations of one training run."""
    return len({_origin(run) for run in runs}) == 1 and runs[0].job == "evaluate" and bool(_origin(runs[0]))


def _origin(run: Run) -> str:
    """The training run whose weights were evaluated; empty for weights that no run of ours has trained."""
    if run.job != "evaluate":
        return str(run.folder)
    return str(run.trained_in or run.config.get("checkpoint") or "")


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


def join_evaluations(
    runs: Sequence[Run], losses_at: Callable[[Path, int], Mapping[str, float]]
) -> tuple[list[Run], list[Run]]:
    """`runs` with each evaluation and its training run made one, and the training runs that no evaluation of `runs` has
    evaluated, if others were.

    An evaluation of a checkpoint has the losses and costs of its training run, which is then no run of its own. Of a
    checkpoint within a run, `losses_at` says the losses at its step, from the folder of the run; how long training took
    until then is not known.
    """
    trained: Mapping[Path, Run] = {run.folder.resolve(): run for run in runs if run.job == "train"}
    evaluated: set[Path] = set()
    joined = []
    for run in runs:
        if run.job != "evaluate":
            continue
        origin = None if run.trained_in is None else trained.get(run.trained_in.resolve())
        if origin is not None:
            evaluated.add(origin.folder.resolve())
            losses: Mapping[str, float] = {name: origin.metrics[name] for name in LOSSES if name in origin.metrics}
            costs = dict(origin.costs)
            if run.step is not None and run.step != origin.step:
                losses = losses_at(origin.folder, run.step)
                costs.pop("seconds", None)
            run = dataclasses.replace(run, metrics={**run.metrics, **losses}, costs=costs | dict(run.costs))
        joined.append(run)
    if not evaluated:
        return [*(run for run in runs if run.job == "train"), *joined], []
    rest = [run for folder, run in trained.items() if folder not in evaluated]
    return joined, rest
