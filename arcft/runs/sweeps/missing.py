"""What a sweep lacks, and the commands that complete it."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
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
from arcft.runs.sweeps.reading import JOBS
from arcft.studies.runs import Missing, Run

_BY_NUMBER = "${hydra.job.num}"
_OVERRIDES_FILE = Path(".hydra") / "overrides.yaml"


def missing_runs(found: FoundRuns, not_evaluated: Sequence[Run], evaluations: Sequence[Run]) -> list[Missing]:
    """Runs that are not finished, jobs of sweeps that have not begun, and training runs that lack an evaluation as the
    others have."""
    # A sweep of a thousand jobs is expanded once.
    jobs = functools.cache(jobs_of)

    def name(run: Run) -> str:
        known = jobs(run.folder.parent) or [_typed(one.folder) for one in found.runs if _are_siblings(run, one, found)]
        return _name(run, known)

    there = [_unfinished(run, name(run)) for run in found.runs if run.state != "finished"]
    begun = {run.folder for run in found.runs}
    own = [sweep for sweep in found.sweeps if _program(sweep) in JOBS]
    lacking = [one for sweep in own for one in _not_begun(sweep, jobs(sweep), begun)]
    return [*there, *lacking, *(_not_evaluated(run, name(run), evaluations) for run in not_evaluated)]


def _are_siblings(run: Run, other: Run, found: FoundRuns) -> bool:
    return run.folder.parent == other.folder.parent and run.folder.parent in found.sweeps


def unknown_jobs(found: FoundRuns) -> list[str]:
    """A note for each sweep whose jobs are not known."""
    return [
        f"Which jobs {sweep} has can't be told from its {SWEEP_FILE}, so those that have not begun are not listed."
        for sweep in found.sweeps
        if not jobs_of(sweep) and _program(sweep) in (*JOBS, None)
    ]


def _program(sweep: Path) -> str | None:
    """The name of the program that a multirun called; None where it is not recorded."""
    job = _hydra_config(sweep).get("job")
    return job.get("name") if isinstance(job, dict) else None


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
        words += hydra["overrides"]["task"]
        if any("shuffle(" in word for word in words):
            # In another order each time.
            return []
        parsed = OverridesParser.create().parse_overrides(words)
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
    program = str(_program(sweep))
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
        missing.append(Missing(name, "not started", f"folder {sweep.name}/{number}", line))
    return missing


def _unfinished(run: Run, name: str) -> Missing:
    if run.state == "running" or not run.job:
        return Missing(name, run.state, run.reason, "")
    # The results of one of several checkpoints lie in a folder of their own.
    folder = run.folder if (run.folder / RUN_FILE).is_file() else run.folder.parent
    return Missing(name, run.state, run.reason, f"{command(run.job)} {override('resume', folder)}")


def _name(run: Run, jobs: Sequence[Sequence[str]]) -> str:
    """The overrides in which a job differs from the others of its sweep; for other runs, the folder."""
    if not jobs:
        return str(run.folder)
    common = {word.removeprefix("++") for word in _common(jobs)}
    words = _typed(run.folder)
    if not words and run.folder.name.isdecimal() and int(run.folder.name) < len(jobs):
        words = [word.removeprefix("++") for word in jobs[int(run.folder.name)]]
    own = [word for word in words if word not in common and not word.startswith("hydra.")]
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
