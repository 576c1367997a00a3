"""Read one run folder: run.yaml and metrics.json, and other files only where these lack something."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from arcft.checkpoints import LOCK_FILE, RUN_FILE, CheckpointError, find_checkpoints, read_run_yaml
from arcft.config.run import EvaluateConfig, TrainConfig
from arcft.config.schema import ConfigError, to_dict
from arcft.json_text import json_lines
from arcft.reporting.charts.curves import history_lines
from arcft.reporting.words import count
from arcft.runs.evaluation.results import METRICS_FILE, PREDICTIONS_FILE
from arcft.runs.setup.kinds import KINDS, read_stored
from arcft.studies.costs import training_costs
from arcft.studies.runs import LOSSES, Run, Scores

JOBS: dict[str, type[TrainConfig] | type[EvaluateConfig]] = {"train": TrainConfig, "evaluate": EvaluateConfig}

_OF_TRAINING = ("model", "lora", "encoder", "prompt", "augmentation", "optimizer", "scheduler", "training")
"""Groups of an evaluated checkpoint that are its training run's."""

_OF_EVALUATION = ("data", "inference", "selection", "ttft", "prune_vocabulary")

_RECORD = re.compile(r"^\[[^]]*\]\[[^]]*\]\[(\w+)\] - (.*)$", re.MULTILINE)
"""A record of a job's log: level and message."""


def read_run(folder: Path) -> list[Run]:
    """The run in `folder`, which has a run.yaml; of an evaluation of several checkpoints one for each. Files that can't
    be read make it a damaged one. Empty for a run of another program."""
    try:
        stored = read_run_yaml(folder)
        job = stored.get("job")
        if job not in JOBS:
            return []
        config = to_dict(read_stored(JOBS[job], stored["config"], folder / RUN_FILE))
    except (CheckpointError, ConfigError, KeyError, TypeError, AttributeError) as error:
        return [Run(folder=folder, job="", state="damaged", reason=str(error))]
    if job == "train" or (folder / METRICS_FILE).is_file():
        return [_read_part(folder, folder, job, config)]
    parts = sorted(path.parent for path in folder.glob(f"*/{METRICS_FILE}"))
    runs = [_read_part(part, folder, job, config) for part in parts]
    keys = stored.get("keys")
    names = set(keys) if isinstance(keys, dict) else set()
    rest = sorted(names - {part.name for part in parts}, key=_number_last)
    if parts and not rest:
        return runs
    unfinished = _read_part(folder, folder, job, config)
    if parts:
        words = f"{len(parts)} of {count(len(names), 'checkpoint')} evaluated, not yet {', '.join(rest)}"
        reason = unfinished.reason if unfinished.state == "failed" else words
        unfinished = dataclasses.replace(unfinished, reason=reason)
    return [*runs, unfinished]


def _number_last(name: str) -> tuple[str, int]:
    """checkpoint-10 after checkpoint-9."""
    stem, _, number = name.rpartition("-")
    return (stem, int(number)) if number.isdecimal() else (name, 0)


def _read_part(part: Path, folder: Path, job: str, config: dict[str, Any]) -> Run:
    try:
        return _train_run(folder, config) if job == "train" else _evaluation(part, folder, config)
    except (KeyError, TypeError, ValueError, AttributeError):
        reason = f"{METRICS_FILE} is not as it was written"
        return Run(folder=folder, job=job, state="damaged", reason=reason, config=flat(config))


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by dotted key."""
    values: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict) and value:
            values |= flat(value, f"{prefix}{name}.")
        else:
            values[f"{prefix}{name}"] = value
    return values


def _train_run(folder: Path, config: dict[str, Any]) -> Run:
    run = Run(folder=folder, job="train", kind=config["data"]["kind"], state="unfinished", config=flat(config))
    content = _metrics_file(folder, run)
    if isinstance(content, Run):
        return content
    losses = {name: content[name] for name in LOSSES if name in content}
    costs = content.get("costs")
    if costs is None:
        costs = {}
        # A damaged line of the history costs no results.
        with contextlib.suppress(KeyError, TypeError, ValueError):
            costs = training_costs(history_lines(folder))
    metrics = content.get("metrics", {}) | losses
    run = dataclasses.replace(run, step=_whole(content.get("step")))
    return _finished(run, metrics=metrics, scores=_scores(content, folder, run.kind), costs=costs)


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) else None


def _evaluation(folder: Path, run_folder: Path, config: dict[str, Any]) -> Run:
    """`folder` holds the results of one checkpoint of the evaluation in `run_folder`."""
    own = {name: value for name, value in config.items() if name in _OF_EVALUATION}
    kind = config["data"]["kind"]
    run = Run(folder=folder, job="evaluate", kind=kind, state="unfinished", config=flat(own))
    content = _metrics_file(folder, run)
    done = {} if isinstance(content, Run) else content
    about = done.get("run", {})
    checkpoint = about.get("checkpoint") or config["checkpoint"]
    trained_in = None if checkpoint is None else _training_folder(Path(checkpoint))
    trained = done.get("trained") or (None if trained_in is None else _trained_config(trained_in))
    names = ("model", "encoder", "prompt", "lora", "augmentation", "predictions", "adapters")
    if trained is not None:
        own |= {name: trained[name] for name in _OF_TRAINING} | {"trained": {"data": trained["data"]}}
    else:
        own |= {name: config[name] for name in names if config[name] is not None} | {"checkpoint": checkpoint}
    if "step" in about:
        own["step"] = about["step"]
    run = dataclasses.replace(run, config=flat(own), trained_in=trained_in, step=_whole(about.get("step")))
    if isinstance(content, Run):
        return dataclasses.replace(run, state=content.state, reason=content.reason)
    costs = {"evaluation_seconds": about["seconds"]} if "seconds" in about else {}
    return _finished(run, metrics=content["metrics"], scores=_scores(content, folder, kind), costs=costs)


def _training_folder(checkpoint: Path) -> Path:
    """Of a checkpoint, or of a pattern of checkpoints."""
    return checkpoint.parent if re.fullmatch(r"checkpoint-[\d*?\[\]-]+", checkpoint.name) else checkpoint


def _trained_config(folder: Path) -> dict[str, Any] | None:
    try:
        return to_dict(read_stored(TrainConfig, read_run_yaml(folder)["config"], folder / RUN_FILE))
    except (CheckpointError, ConfigError, KeyError, TypeError, AttributeError):
        return None


def _finished(run: Run, *, metrics: Mapping[str, Any], scores: Scores | None, costs: Mapping[str, Any]) -> Run:
    return dataclasses.replace(
        run,
        state="finished",
        metrics=_numbers(metrics),
        scores=scores,
        costs=_numbers(costs),
        finished_at=(run.folder / METRICS_FILE).stat().st_mtime,
    )


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Those that are finite numbers."""
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    }


def _metrics_file(folder: Path, run: Run) -> dict[str, Any] | Run:
    """What metrics.json holds, or `run` with the reason why there is nothing."""
    path = folder / METRICS_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or not isinstance(content.get("metrics"), dict):
            raise ValueError("it holds no metrics")
        if not all(isinstance(content.get(name, {}), dict) for name in ("tasks", "run", "by_test", "trained")):
            raise ValueError("it is not as it was written")
        return content
    except FileNotFoundError:
        return _unfinished(folder, run)
    except (OSError, ValueError, RecursionError) as error:
        return dataclasses.replace(run, state="damaged", reason=f"{METRICS_FILE} can't be read: {error}")


def _unfinished(folder: Path, run: Run) -> Run:
    """`run` with its state and how far it came."""
    words = _progress(folder, run)
    if _is_locked(folder):
        return dataclasses.replace(run, state="running", reason=words)
    with contextlib.suppress(OSError):
        records = _RECORD.findall((folder / f"{run.job}.log").read_text(encoding="utf-8", errors="replace"))
        # A run that was resumed after its error has records after it.
        level, message = records[-1] if records else ("", "")
        if level == "ERROR":
            return dataclasses.replace(run, state="failed", reason=message.removeprefix("error: "))
    return dataclasses.replace(run, state="unfinished", reason=words)


def _progress(folder: Path, run: Run) -> str:
    if run.job == "train":
        steps = max((line["step"] for line in history_lines(folder)), default=0)
        saved = find_checkpoints(folder)
        kept = f", {saved[-1].name} is saved" if saved else ""
        return f"step {steps:,} of {run.config['training.max_steps']:,}{kept}"
    done = len(_number_of_tests(folder))
    return f"{count(done, 'task')} predicted" if done else ""


def _is_locked(folder: Path) -> bool:
    """Whether a process holds the lock of the run."""
    try:
        with (folder / LOCK_FILE).open(encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except BlockingIOError:
        return True
    except OSError:
        return False


def losses_at(folder: Path, step: int) -> dict[str, float]:
    """The LOSSES that the training run in `folder` had at `step`, where it recorded them."""
    lines = [line for line in history_lines(folder) if line["step"] == step]
    return _numbers({name: line[name] for line in lines for name in LOSSES if name in line})


def _scores(content: Mapping[str, Any], folder: Path, kind: str) -> Scores | None:
    """None where metrics.json has no results of single tasks."""
    tasks = content.get("tasks")
    if not tasks:
        return None
    ids = tuple(sorted(tasks))
    metrics = tuple(tasks[ids[0]])
    values = np.array([[tasks[name][metric] for metric in metrics] for name in ids], dtype=np.float32)
    if not np.isfinite(values).all():
        raise ValueError("a score is no number")
    if "by_test" in content:
        by_test = {name: dict(digits) for name, digits in content["by_test"].items()}
        return Scores(ids, metrics, values, by_test)
    return Scores(ids, metrics, values, _estimated_by_test(folder, tasks, kind), is_exact=False)


def _estimated_by_test(folder: Path, tasks: Mapping[str, Any], kind: str) -> dict[str, dict[str, str]]:
    """From files of version 0.1.0: the number of tests of a task from its predictions, and of those that were solved
    from its mean."""
    number, metric_set = _number_of_tests(folder), KINDS[kind]().metrics
    if not all(name in number for name in tasks):
        return {}
    found: dict[str, dict[str, str]] = {}
    for metric in (metric_set.primary, metric_set.any_correct):
        solved = {name: round(values[metric] * number[name]) for name, values in tasks.items()}
        found[metric] = {name: "1" * done + "0" * (number[name] - done) for name, done in solved.items()}
    return found


def _number_of_tests(folder: Path) -> dict[str, int]:
    """By task of which there are predictions."""
    number: dict[str, int] = {}
    for line in json_lines(folder / PREDICTIONS_FILE):
        task, test = line.get("task_id"), line.get("test_index")
        if isinstance(task, str) and isinstance(test, int):
            number[task] = max(number.get(task, 0), test + 1)
    return number
