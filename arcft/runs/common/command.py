"""The commands that hints name: what the user would type to start another program the way this one was started."""

from __future__ import annotations

import sys
from pathlib import Path

from arcft import ranks
from arcft.runs.common.config_folder import PACKAGE
from arcft.runs.common.paths import override

SCRIPTS = ("train", "evaluate")
"""Commands that are a script at the top of a checkout and a console script of their own as well."""


def command(name: str) -> str:
    """How to start the command `name`: `python train.py`, `arcft train`, `arcft-train` or `python -m arcft train`.

    Also right in worker processes, which Python and joblib start with the arguments of their parent. Where a launcher
    starts a program of its own, it is the script of a checkout, or without one `arcft train`. Several ranks are started
    by torchrun; any number that shares their steps evenly can resume them.
    """
    if name == "train" and ranks.launched() > 1:
        script = "train.py" if (PACKAGE.parent / "train.py").is_file() else "-m arcft train"
        return f"torchrun --nproc-per-node {ranks.local_count()} {script}"
    started_as = Path(sys.argv[0]).name
    program, space, _ = started_as.rpartition(" ")
    if space and program in ("arcft", "python -m arcft"):  # arcft.cli.program puts the subcommand there
        return f"{program} {name}"
    if name not in SCRIPTS:
        return f"arcft {name}"
    if started_as in {f"arcft-{script}" for script in SCRIPTS}:
        return f"arcft-{name}"
    return f"python {name}.py" if (PACKAGE.parent / f"{name}.py").is_file() else f"arcft {name}"


def stopped(name: str, folder: Path) -> str:
    """What a run of the command `name` says when it was stopped before it was finished."""
    return f"stopped; resume with: {command(name)} {override('resume', folder)}"
