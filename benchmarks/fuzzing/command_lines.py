"""Override lines, composed and checked as the programs do before they load anything."""

from __future__ import annotations

import contextlib
import io
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from arcft.checkpoints import read_run_yaml, write_run_yaml
from arcft.cli.hydra_app import explicit_keys, plain_config, run_from_command_line
from arcft.config.run import EvaluateConfig, TrainConfig
from arcft.config.schema import known_keys, to_dict
from arcft.runs.common.config_folder import config_folder
from arcft.runs.common.paths import evaluation_with_absolute_paths, with_absolute_paths
from arcft.runs.setup.kinds import kind_configs, read_config, read_stored
from arcft.runs.setup.ttft_settings import refuse_without_effect
from fuzzing.core import WrongError, check_message, check_unchanged, listing

VALUES = (
    "0", "1", "-1", "2", "16", "0.5", "1e-4", "1e400", "-1e400", "nan", "inf", "-inf", "1_000", "0x10", "0b1",
    "007bbfb7", "10" * 200, "true", "false", "null", "~", "none", "auto", "local", "''", '""', '" "', "", "a", "a b",
    "'a b'", "é", "😀", "\u200b", "\x1b[31m", "a\nb", "\udcff", "[]", "[1,2]", "[a,b]", "[[1]]", "[", "]", "{", "}",
    "{}", "{a:1}", "{name:none}", "{a:{b:[1,{c:2}]}}", "'", '"', "\\", "\\'", "a=b", "=", "a,b", "1,2", "range(3)",
    "choice(a,b)", "glob(*)", "interval(0,1)", "sort(2,1)", "int('3')", "str(3)", "int(x)", "f(", "${model.name}",
    "${nothing}", "${", "${}", "${oc.env:NOTHING}", "${oc.env:HOME}", "${pid:}", "${oc.decode:1}", "$", "$(true)",
    "???", "/nowhere", "~/x", "../..", "a/b/c", "/p/lr=1e-4/checkpoint-4", "'/p/lr=1e-4'", "a:b", "a@b", "-", "--",
    "#", "%d", "{0}", "<b>", "[b]", "x" * 3000, "[" * 300, "[" * 50 + "]" * 50, "90s", "11h30m", "1e9h", "-5s",
)  # fmt: skip
KEYS = (
    "nothing",
    "lora.nothing",
    "lora.r.x",
    "a.b.c.d",
    "",
    ".",
    "lora..r",
    "lora.",
    "é",
    "lora[0]",
    "data.task_ids.0",
)
NOT_ARGUMENTS = (
    "-",
    "-x",
    "--multirun",
    "-m",
    "--help",
    "--hydra-help",
    "--info",
    "--cfg",
    "--shell-completion",
    "--run",
)
"""Words that hydra.main takes for its own switches are tried elsewhere: they start no run."""


class CommandLines:
    """A line composes to a config that survives being stored, or is refused in words; neither writes anything."""

    seconds_per_case = 20.0

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stored = folder / "stored"
        self.working = folder / "working"
        for place in (self.stored, self.working):
            place.mkdir()
        self.programs = {
            "train": _Vocabulary("train", TrainConfig),
            "evaluate": _Vocabulary("evaluate", EvaluateConfig),
        }

    def case(self, rng: random.Random) -> str:
        program = rng.choice(list(self.programs))
        vocabulary = self.programs[program]
        words = [vocabulary.word(rng) for _ in range(rng.choice((1, 1, 1, 2, 3)))]
        if program == "evaluate" and rng.random() < 0.95:
            words.insert(
                0, rng.choice(("model=tiny", "model=tiny", "checkpoint=/nowhere", "predictions=/nowhere.jsonl"))
            )
        if any(word.startswith(NOT_ARGUMENTS) or word.startswith("hydra") for word in words):
            return "skipped"
        before = listing(self.working)
        code, output, configs = self._run(program, [*words, "dry_run=true"])
        line = " ".join(map(repr, words))
        if "Traceback" in output:
            raise WrongError(f"{program} {line}: a traceback in the output: {output[-300:]}")
        check_unchanged(self.working, before)
        if code:
            try:
                check_message(output, "rror")
            except WrongError as error:
                raise WrongError(f"{program} {line}: exit code {code}: {error}") from None
            return "refused"
        if not configs:
            raise WrongError(f"{program} {line}: exit code 0, but nothing was done: {output[-300:]}")
        return "accepted"

    def _run(self, program: str, words: list[str]) -> tuple[int, str, list[Any]]:
        """The exit code, all that was printed, and the configs of the jobs that were started."""
        configs: list[Any] = []
        config_class = TrainConfig if program == "train" else EvaluateConfig

        def job(cfg: DictConfig) -> None:
            configs.append(self._checked(config_class, plain_config(cfg), list(explicit_keys())))

        code = 0
        with _command_line(self.working, [f"{program}.py", *words]) as printed:
            try:
                run_from_command_line(job, program, config_class)
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else 1
            return code, printed.getvalue().decode(), configs

    def _checked(self, config_class: Any, values: dict[str, Any], explicit: list[str]) -> Any:
        """The config, which is the same when it is stored and read again."""
        config = read_config(config_class, values)
        if isinstance(config, EvaluateConfig):
            config = evaluation_with_absolute_paths(config)
            refuse_without_effect(config, explicit)
        else:
            config = with_absolute_paths(config)
        write_run_yaml(self.stored, {"config": to_dict(config)})
        if read_stored(config_class, read_run_yaml(self.stored)["config"], self.stored) != config:
            raise WrongError("the config is another one once it was stored and read again")
        return config


class _Vocabulary:
    """Keys, groups and their options, and values, combined to words of a command line."""

    def __init__(self, program: str, config_class: type) -> None:
        keys = {*known_keys(config_class), *KEYS}
        for configs in kind_configs().values():
            for group, kind_class in configs.items():
                keys |= set(known_keys(kind_class, f"{group}."))
        self.keys = sorted(keys)
        self.options = [
            (str(path.parent.relative_to(config_folder())), path.stem) for path in sorted(config_folder().glob("*/*"))
        ]
        main = yaml.safe_load((config_folder() / f"{program}.yaml").read_text(encoding="utf-8"))
        self.shipped = [(key, value) for key, value in _leaves(main, "") if not key.startswith(("defaults", "hydra"))]
        for entry in main["defaults"]:
            for group, option in entry.items() if isinstance(entry, dict) else ():
                path = config_folder() / group / f"{option}.yaml"
                if path.exists():
                    text = path.read_text(encoding="utf-8")
                    prefix = "" if text.startswith("# @package _global_") else f"{group}."
                    self.shipped += [leaf for leaf in _leaves(yaml.safe_load(text) or {}, prefix) if leaf[1] != "[]"]

    def word(self, rng: random.Random) -> str:
        if rng.random() < 0.25:
            key, value = rng.choice(self.options)
            if rng.random() < 0.2:
                value = rng.choice(VALUES)
        elif rng.random() < 0.6:
            key, value = rng.choice(self.shipped)
            if rng.random() < 0.4:
                value = rng.choice(("1", "2", "16", "0.5", "1e-4", "true", "false", "null", "auto", "'a b'", "[1]"))
        else:
            key, value = rng.choice(self.keys), rng.choice(VALUES)
        word = rng.choices(("", "+", "++", "~"), (0.85, 0.05, 0.05, 0.05))[0] + key
        if rng.random() < 0.03:
            word += rng.choice(("@", "@x", "@_global_", ":", "/"))
        if rng.random() < 0.95:
            word += "=" + _quoted(value, rng)
        if rng.random() < 0.03:
            place = rng.randrange(len(word) + 1)
            word = word[:place] + rng.choice("'\"\\=,[]{}()$:@~+ \t\n.é") + word[place:]
        return word


def _quoted(value: str, rng: random.Random) -> str:
    match rng.randrange(12):
        case 0:
            return f"'{value}'"
        case 1:
            return f'"{value}"'
        case 2:
            return f"[{value}]"
        case _:
            return value


def _leaves(values: Any, prefix: str) -> Iterator[tuple[str, str]]:
    """Dotted keys of nested values, with the values as they would be typed."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", "null" if value is None else str(value)


@contextlib.contextmanager
def _command_line(folder: Path, argv: list[str]) -> Iterator[io.BytesIO]:
    """What a shell gives a program: arguments, a working directory, and somewhere to print to, which is yielded."""
    before, where, environment = sys.argv, os.getcwd(), dict(os.environ)
    printed = io.BytesIO()
    stdout, stderr = (
        io.TextIOWrapper(printed, "utf-8", errors, write_through=True) for errors in ("strict", "backslashreplace")
    )
    sys.argv = argv
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            yield printed
    finally:
        sys.argv = before
        os.chdir(where)
        os.environ.clear()
        os.environ.update(environment)
        GlobalHydra.instance().clear()
