"""Find the runs that `runs=` names: run folders, sweeps, folders of either, and patterns of all these."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from arcft.checkpoints import MANIFEST_FILE, RUN_FILE, CheckpointError
from arcft.runs.common.paths import absolute
from arcft.runs.setup.checkpoint_config import is_pattern, matching_folders
from arcft.runs.sweeps.reading import read_run
from arcft.studies.runs import Run

SWEEP_FILE = "multirun.yaml"
"""Hydra writes it into the folder of a multirun."""

_DEPTH = 3
"""Levels below a named folder at which runs are looked for: multirun/train/STAMP/0 from multirun."""


@dataclasses.dataclass(frozen=True)
class FoundRuns:
    """All that was named."""

    runs: list[Run]
    sweeps: list[Path]
    """Folders of multiruns."""


def find_runs(named: Sequence[str]) -> FoundRuns:
    """Raise CheckpointError where a name, or every match of a pattern, holds no run."""
    folders: dict[Path, Path] = {}
    sweeps: dict[Path, None] = {}
    for name in named:
        path = absolute(name)
        roots = matching_folders("runs", path) if is_pattern(path) else [_existing(name)]
        found = [folder for root in roots for folder in _run_folders(root, sweeps, _DEPTH)]
        if not found and not any(root in sweeps for root in roots):
            raise CheckpointError(_no_run(name, roots))
        folders = _without_links([*folders.values(), *found])
    runs = [run for folder in folders.values() for run in read_run(folder)]
    if not runs and not sweeps:
        raise CheckpointError(
            f"runs={','.join(named)}: holds no run of train or evaluate; name their folders, e.g. multirun/train/..."
        )
    return FoundRuns(runs, list(_without_links(sweeps).values()))


def _without_links(folders: Iterable[Path]) -> dict[Path, Path]:
    """Each folder once, by where it really is; a link such as `latest` only where nothing else names it."""
    found: dict[Path, Path] = {}
    for folder in folders:
        place = folder.resolve()
        if place not in found or folder == place:
            found[place] = folder
    return found


def _existing(name: str) -> Path:
    path = Path(absolute(name))
    if not path.is_dir():
        raise CheckpointError(f"runs={name}: there is no such folder (from {Path.cwd()})")
    return path


def _run_folders(folder: Path, sweeps: dict[Path, None], depth: int) -> Iterator[Path]:
    """Runs in and below `folder`; sweeps are added to `sweeps`."""
    if (folder / RUN_FILE).is_file():
        if not (folder / MANIFEST_FILE).is_file():
            yield folder
        return
    if (folder / SWEEP_FILE).is_file():
        sweeps[folder] = None
    if depth:
        for child in sorted(folder.iterdir(), key=_number_first):
            if child.is_dir() and not child.name.startswith("."):
                yield from _run_folders(child, sweeps, depth - 1)


def _number_first(path: Path) -> tuple[int, str]:
    """Jobs by number, everything else by name."""
    return (int(path.name), "") if path.name.isdecimal() else (-1, path.name)


def _no_run(name: str, roots: Sequence[Path]) -> str:
    if len(roots) == 1 and (roots[0] / MANIFEST_FILE).is_file():
        return f"runs={name}: is a checkpoint; name its run, {roots[0].parent}"
    what = "holds no run" if len(roots) == 1 else f"none of its {len(roots)} folders holds a run"
    return f"runs={name}: {what} ({RUN_FILE}) and is no sweep; name a folder such as multirun/train/..."
