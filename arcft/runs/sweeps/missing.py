"""What a sweep lacks, and the commands that complete it."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from arcft.checkpoints import RUN_FILE
from arcft.runs.common.command import command
from arcft.runs.common.paths import in_shell, override
from arcft.runs.sweeps.finding import SWEEP_FILE, FoundRuns
from arcft.studies.runs import Run
from arcft.studies.tables import Missing

_BY_NUMBER = "${hydra.job.num}"
_OVERRIDES_FILE = Path(".hydra") / "overrides.yaml"


def missing_runs(found: FoundRuns, not_evaluated: Sequence[Run], evaluations: Sequence[Run]) -> list[Missing]:
    """Runs that are not finished, jobs of sweeps that have not begun, and training runs that lack an evaluation as the
    others have."""
    # A sweep of a thousand jobs is expanded once.
    jobs = functools.cache(jobs_of)
    there = [_unfinished(run, _name(run, jobs)) for run in found.runs if run.state != "finished"]
    begun = {run.folder for run in found.runs}
    lacking = [one for sweep in found.sweeps for one in _not_begun(sweep, jobs(sweep), begun)]
    return [*there, *lacking, *(_not_evaluated(run, _name(run, jobs), evaluations) for run in not_evaluated)]


def jobs_of(sweep: Path) -> list[list[str]]:
    """The overrides of every job of a multirun, by number; empty where a sweeper decided on them as it went, or where
    Hydra's record of it can't be read."""
    hydra = _hydra_config(sweep)
    try:
        if not str(hydra["sweeper"]["_target_"]).endswith(".BasicSweeper"):
            return []
        if hydra["sweep"]["subdir"] != _BY_NUMBER:
            return []
        words = [f"{key}={value}" for key, value in (hydra["sweeper"].get("params") or {}).items()]
        parsed = OverridesParser.create().parse_overrides([*words, *hydra["overrides"]["task"]])
        return [job for batch in BasicSweeper.split_arguments(parsed, None) for job in batch]
    except (KeyError, TypeError, AttributeError, HydraException):
        return []


def _hydra_config(sweep: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load((sweep / SWEEP_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    hydra = content.get("hydra") if isinstance(content, dict) else None
    return hydra if isinstance(hydra, dict) else {}


def _not_begun(sweep: Path, jobs: Sequence[Sequence[str]], begun: set[Path]) -> list[Missing]:
    if not jobs:
        return []
    hydra = _hydra_config(sweep)
    program = str(hydra["job"]["name"])
    # A preset that makes every start a multirun.
    mode = ["hydra.mode=RUN"] if hydra["sweeper"].get("params") else []
    varied = {word for words in jobs for word in words} - _common(jobs)
    missing = []
    for number, words in enumerate(jobs):
        folder = sweep / str(number)
        if folder in begun or (folder / RUN_FILE).exists():
            continue
        typed = [word.removeprefix("++") for word in words]
        name = " ".join(word.removeprefix("++") for word in words if word in varied) or str(number)
        line = " ".join([command(program), *map(_in_shell, typed), *mode, override("hydra.run.dir", folder)])
        missing.append(Missing(name, "not started", f"job {number} of {sweep.name}", line))
    return missing


def _unfinished(run: Run, name: str) -> Missing:
    if run.state == "running" or not run.job:
        return Missing(name, run.state, run.reason, "")
    return Missing(name, run.state, run.reason, f"{command(run.job)} {override('resume', run.folder)}")


def _name(run: Run, jobs_of_sweep: Callable[[Path], list[list[str]]]) -> str:
    """The overrides in which a job differs from the others of its sweep; for other runs, the folder."""
    jobs = jobs_of_sweep(run.folder.parent)
    if not (run.folder.name.isdecimal() and int(run.folder.name) < len(jobs)):
        return str(run.folder)
    common = _common(jobs)
    own = [word.removeprefix("++") for word in jobs[int(run.folder.name)] if word not in common]
    return " ".join(own) or str(run.folder)


def _common(jobs: Sequence[Sequence[str]]) -> set[str]:
    """The overrides that all jobs have."""
    first, *others = jobs
    return set(first).intersection(*others)


def _not_evaluated(run: Run, name: str, evaluations: Sequence[Run]) -> Missing:
    words = next((words for one in evaluations if (words := _typed(one.folder))), [])
    own = [_in_shell(word) for word in words if not re.match(r"(\+\+)?(checkpoint|hydra\.\S*)=", word)]
    line = " ".join([command("evaluate"), override("checkpoint", run.folder), *own])
    return Missing(name, "not evaluated", "", line)


def _typed(folder: Path) -> list[str]:
    """What was typed for a run."""
    try:
        words = yaml.safe_load((folder / _OVERRIDES_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return []
    return [str(word).removeprefix("++") for word in words] if isinstance(words, list) else []


def _in_shell(word: str) -> str:
    return word if re.fullmatch(r"[\w./:@%+=,-]+", word, re.ASCII) else in_shell(word)
