"""The program `arcft`, also `python -m arcft`: dispatches to subcommands."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import sys
from pathlib import Path

from arcft.names import visible
from arcft.runs.common import signals


@dataclasses.dataclass(frozen=True)
class Command:
    """A subcommand."""

    module: str
    """Whose `main` runs it; imported only then, so that `arcft --help` is quick."""

    summary: str


COMMANDS = {
    "train": Command("arcft.cli.train", "fine-tune a model"),
    "evaluate": Command("arcft.cli.evaluate", "predict, select, score, write a submission and a report"),
    "export": Command("arcft.cli.export", "write a trained model for transformers, PEFT or llama.cpp"),
    "speed": Command("arcft.cli.speed", "measure how fast models read and write, and what fits a time budget"),
    "study": Command("arcft.cli.study", "compare the settings of a sweep, or of any runs"),
    "contamination": Command("arcft.cli.contamination", "find the problems that two sets share"),
}


def main() -> None:
    """Run the subcommand that the command line names; it sees its own arguments only."""
    program = "python -m arcft" if Path(sys.argv[0]).name == "__main__.py" else "arcft"
    name, arguments = (sys.argv[1] if len(sys.argv) > 1 else "--help"), sys.argv[2:]
    if name in ("--help", "-h"):
        with signals.closed_pipe_ends_quietly():
            print(usage(program))
    elif name == "--version":
        _run("arcft.cli.version", f"{program} --version", arguments)
    elif name in COMMANDS:
        _run(COMMANDS[name].module, f"{program} {name}", arguments)
    else:
        print(visible(f"error: {refusal(program, name)}"), file=sys.stderr)
        sys.exit(2)


def usage(program: str) -> str:
    """The help text."""
    width = max(map(len, COMMANDS))
    return "\n".join(
        [
            f"usage: {program} COMMAND ...",
            "",
            *(f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items()),
            "",
            f"{program} COMMAND --help shows the options of a command, {program} --version what is installed.",
        ]
    )


def refusal(program: str, name: str) -> str:
    """Why `name` is not run, and what to type instead."""
    if "=" in name:
        return f"{name} comes before a command; type: {program} train {name}"
    nearest = difflib.get_close_matches(name, COMMANDS, n=2)
    hint = f"did you mean {' or '.join(nearest)}? " if nearest else ""
    return f"{program} {name}: there is no such command; {hint}the commands are {', '.join(COMMANDS)}"


def train() -> None:
    """The program `arcft-train`, also `python train.py`."""
    with signals.closed_pipe_ends_quietly(), signals.program():
        importlib.import_module("arcft.cli.train").main()


def evaluate() -> None:
    """The program `arcft-evaluate`, also `python evaluate.py`."""
    with signals.closed_pipe_ends_quietly(), signals.program():
        importlib.import_module("arcft.cli.evaluate").main()


def _run(module: str, started_as: str, arguments: list[str]) -> None:
    # arcft.runs.common.command reads argv[0] for hints; Hydra and argparse read it for their help.
    sys.argv = [started_as, *arguments]
    with signals.closed_pipe_ends_quietly(), signals.program():
        importlib.import_module(module).main()
