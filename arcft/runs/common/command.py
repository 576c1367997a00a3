"""The commands that hints name: what the user would type to start another program the way this one was started."""

from __future__ import annotations

import sys
from pathlib import Path

from arcft.runs.common.paths import override

SCRIPTS = ("train", "evaluate")
"""Commands that are a script at the top of a checkout and a console script of their own as well."""


def command(name: str) -> str:
    """How to start the command `name`: `python train.py`, `arcft train`, `arcft-train` or `python -m arcft train`.

    Also right in worker processes, which Python and joblib start with the arguments of their parent; where a launcher
    starts a program of its own, the script of a checkout is named.
    """
    started_as = Path(sys.argv[0]).name
    program, space, _ = started_as.rpartition(" ")
    if space and program in ("arcft", "python -m arcft"):  # arcft.cli.program puts the subcommand there
        return f"{program} {name}"
    if name not in SCRIPTS:
        return f"arcft {name}"
    return f"arcft-{name}" if started_as in {f"arcft-{script}" for script in SCRIPTS} else f"python {name}.py"


def stopped(name: str, folder: Path) -> str:
    """What a run of the command `name` says when it was stopped before it was finished."""
    return f"stopped; resume with: {command(name)} {override('resume', folder)}"
