"""Between the shell and a run: Hydra's entry, errors as messages, exit codes, the job's log, a sweeper's metric."""

from __future__ import annotations

import dataclasses
import errno
import logging
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from arcft import ranks
from arcft.checkpoints import MANIFEST_FILE, RUN_FILE, CheckpointError, read_run_yaml
from arcft.cli import launch, rank_words
from arcft.cli.leftovers import keep_files_of_job, remove_files_of_job, remove_leftovers
from arcft.cli.overrides import SWITCHES, explanation, refuse_empty_paths, refuse_flags, refuse_wrong_groups
from arcft.config import schema
from arcft.console import complain, log, log_to
from arcft.errors import ArcftError
from arcft.runs.common import signals
from arcft.runs.common.config_folder import config_folder
from arcft.runs.common.paths import quoted

# Switches of hydra.main that take no config keys of ours.
HYDRA_ONLY = ("hydra.", "hydra/", *SWITCHES)

UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)
WAY_OUT = "Free some space or get write permission, then resume with resume=, or choose a folder with hydra.run.dir=DIR"

Job = Callable[[DictConfig], float | None]
"""Does one run and returns the metric that a sweeper optimises, if `optimized_metric` names one."""

_failures: list[str] = []


def run_from_command_line(job: Job, config_name: str, config_class: type, folder: Path | None = None) -> None:
    """Run `job` under hydra.main; print a user's mistake as one message and exit with code 1.

    `folder` holds CONFIG_NAME.yaml, by default conf/; its folders are the groups that the command line can choose from.

    In a multirun a failed job is reported and the others continue. A traceback appears for bugs only, or for everything
    with HYDRA_FULL_ERROR=1.
    """
    wants_tracebacks = os.environ.get("HYDRA_FULL_ERROR") == "1"
    # Hydra would print its own traceback of our errors; with this it raises them to us.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    # Before torch is loaded: its idle threads would spin otherwise, and on a busy machine two of them then decode
    # fifteen times slower than one (139 against 9 ms a token, measured).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # A log that can't be written, on a full disk, is no reason for a traceback of each line.
    logging.raiseExceptions = wants_tracebacks
    OmegaConf.register_new_resolver("pid", os.getpid, use_cache=True, replace=True)
    _failures.clear()
    guarded = _guarded(job, wants_tracebacks)
    folder = folder or config_folder()
    entry = hydra.main(version_base="1.3", config_path=str(folder), config_name=config_name)(guarded)
    typed = sys.argv[1:]
    try:
        with signals.program():
            launch.join()
            if ranks.rank() > 0:
                rank_words.await_folder()
        sys.argv[1:] = _prepared_arguments(typed, config_name, config_class, folder)
        with signals.program():
            entry()
    except (ArcftError, HydraException, OmegaConfBaseException) as error:
        if wants_tracebacks:
            raise
        _report(explanation(error, typed), error)
    except OSError as error:
        if wants_tracebacks or error.errno not in UNWRITABLE:
            raise
        where = f"{error.filename}: " if error.filename else ""
        _report(f"{where}can't be written to ({error.strerror}); what was saved is complete. {WAY_OUT}")
    except Exception as error:
        rank_words.end(f"{type(error).__name__}: {error}")
        raise
    finally:
        if not _failures:
            rank_words.end()
        log_to([])
        remove_leftovers(config_name)
    if _failures:
        sys.exit(1)


def _prepared_arguments(typed: list[str], config_name: str, config_class: type, folder: Path) -> list[str]:
    """The command line as Hydra gets it. Raise ArcftError for what it can't say or this launcher can't do."""
    launch.refuse_launch(config_name, typed)
    refuse_flags(typed, schema.known_keys(config_class))
    refuse_empty_paths(typed)
    refuse_wrong_groups(typed, config_name, [field.name for field in dataclasses.fields(config_class)], folder)
    arguments = _resumed_in_place(let_unknown_keys_in(typed, config_class), config_name)
    return arguments if ranks.rank() == 0 else [*arguments, *launch.QUIET]


def _guarded(job: Job, wants_tracebacks: bool) -> Callable[[DictConfig], float | _Failure | None]:
    """`job` as Hydra calls it, with its errors caught and its output copied into Hydra's job log."""

    def guarded(cfg: DictConfig) -> float | _Failure | None:
        # It logs at every import that a CPU kernel for 4 bits could be installed.
        logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
        log_to([handler for handler in logging.getLogger().handlers if isinstance(handler, logging.FileHandler)])
        wrote = False
        try:
            with signals.program():
                launch.join()
            if ranks.rank() > 0:
                log_to([])
            with signals.uncovered():
                value = job(cfg)
            wrote = not cfg.get("dry_run")
            return value
        except signals.Stopped as stopped:
            log.warning("%s", stopped)
            complain(str(stopped))
            launch.leave()
            # Unlike an exception, this also ends the remaining jobs of a multirun.
            sys.exit(stopped.exit_code)
        except ArcftError as error:
            log.error("error: %s", error)
            if wants_tracebacks:
                raise
            if ranks.rank() > 0 and not _in_this_process():
                # Hydra reads the result of rank 0 only.
                rank_words.report(str(error), error)
            message = _with_job(rank_words.with_cause(str(error), error))
            if HydraConfig.get().mode == RunMode.MULTIRUN and cfg.get("optimized_metric") is not None:
                # A sweeper that optimises must see a failed job as failed; it decides whether the others continue.
                raise ArcftError(message) from error
            if not _in_this_process():
                return _Failure(message)
            _report(message, error)
        finally:
            if wrote:
                keep_files_of_job()
            else:
                remove_files_of_job()
        return None

    return guarded


def _in_this_process() -> bool:
    """Whether Hydra runs the job in the process that reports: otherwise the launcher carries a _Failure there."""
    launcher = str(HydraConfig.get().launcher.get("_target_", ""))
    return HydraConfig.get().mode == RunMode.RUN or launcher.endswith("BasicLauncher")


def _with_job(message: str) -> str:
    """In a multirun, `message` with the number of the job, which is also its folder."""
    config = HydraConfig.get()
    return message if config.mode == RunMode.RUN else f"job {config.job.num}: {message}"


def _report(message: str, error: Exception | None = None) -> None:
    _failures.append(message)
    sys.stdout.flush()
    rank_words.report(message, error)


class _Failure:
    """What a job in another process returns in place of an exception; it is reported where it is unpickled.

    Hydra raises only the first exception of a multirun, and says nothing about the other jobs that failed.
    """

    def __init__(self, message: str) -> None:
        self.message = message

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return _report, (self.message,)


def let_unknown_keys_in(arguments: list[str], config_class: type) -> list[str]:
    """The command line with `++` before every key that the chosen options may lack.

    Hydra would stop at the first of them and advise a `+`. So they reach the validation, which reports everything that
    is wrong at once, with the nearest keys or the option that a key belongs to.
    """
    known = schema.known_keys(config_class)
    return ["++" + word if _may_be_missing(word, known) else word for word in arguments]


def _may_be_missing(word: str, known: Mapping[str, schema.Key]) -> bool:
    if not re.match(r"[A-Za-z_][\w./]*=", word):
        return False
    key = word.partition("=")[0]
    parents = [key.rsplit(".", depth)[0] for depth in range(1, key.count(".") + 1)]
    if any(parent in known and known[parent].free_form for parent in parents):
        return False
    return not (key in known and known[key].always) and not key.startswith(HYDRA_ONLY)


def _resumed_in_place(arguments: list[str], job: str) -> list[str]:
    """The command line, which with resume=FOLDER lets Hydra log into that folder instead of making a new one."""
    words = [word for word in arguments if word.startswith("resume=")]
    value = OverridesParser.create().parse_overrides(words)[-1].value() if words else None
    folder = Path(value).expanduser() if isinstance(value, str) else None
    if folder is None or not _can_be_resumed(folder, job):
        return arguments
    if not os.access(folder, os.W_OK):
        raise CheckpointError(f"resume={folder}: can't be written to; get write permission, or resume a copy of it")
    return [*arguments, f"hydra.run.dir={quoted(str(folder.resolve()))}", "hydra.output_subdir=null"]


def _can_be_resumed(folder: Path, job: str) -> bool:
    """Whether `folder` is a run of this kind; another one, or a checkpoint, is not written to."""
    if not (folder / RUN_FILE).is_file() or (folder / MANIFEST_FILE).exists():
        return False
    try:
        return read_run_yaml(folder).get("job") == job
    except CheckpointError:
        return False


def plain_config(cfg: DictConfig) -> dict[str, Any]:
    """The resolved config as plain data; a broken interpolation is a ConfigError."""
    try:
        values = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise schema.ConfigError([str(error).splitlines()[0]]) from error
    return {str(key): value for key, value in dict(values).items()}  # type: ignore[arg-type]


def explicit_keys() -> dict[str, str]:
    """What the command line itself set: key or group to its text, e.g. {"lora.r": "32", "encoder": "shape"}."""
    overrides = OverridesParser.create().parse_overrides(list(HydraConfig.get().overrides.task))
    return {override.key_or_group: str(override.get_value_element_as_str()) for override in overrides}
