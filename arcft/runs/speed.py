"""A speed study: its config settled and checked, its folder started, every setting measured, the outcome shown."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from arcft import __version__
from arcft.checkpoints import RUN_FILE, CheckpointError, lock_run, read_run_yaml, write_run_yaml
from arcft.config.duration import parse_duration
from arcft.config.model import ModelConfig
from arcft.config.run import EvaluateConfig
from arcft.config.schema import ConfigError, from_dict, to_dict
from arcft.config.speed import SpeedConfig
from arcft.console import say, say_path, show
from arcft.errors import ArcftError
from arcft.reporting.speed.budget import Budget
from arcft.reporting.speed.rows import Row
from arcft.reporting.speed.table import speed_tables
from arcft.reporting.speed.words import budget_words, reasons, summary
from arcft.reporting.words import count
from arcft.runs.common.command import stopped
from arcft.runs.common.signals import resumable


def speed(config: SpeedConfig, models: Mapping[str, EvaluateConfig], folder: Path) -> list[Row]:
    """Measure every setting of `config` and write the outcome into `folder`; goes on with what is there.

    `models` are evaluations with each model of `config` and the format it recommends, by what reports call it.

    Returns the rows in the order of the settings. Raises ArcftError, before anything is measured or written, where a
    model can't be found or a setting can't work, and at the end where nothing could be measured; Stopped after a
    signal, with all that was measured on the disk.
    """
    # Imported only now: it takes seconds.
    from arcft.runs.speed_study.results import CHART_FILE, JSON_FILE, Results
    from arcft.runs.speed_study.study import run_study
    from arcft.runs.speed_study.subjects import refuse_impossible
    from arcft.runs.speed_study.worker import Subject

    subjects = {
        name: Subject(model=_model(one), kind=one.data.kind, encoder=one.encoder, prompt=one.prompt)
        for name, one in models.items()
    }
    named = dataclasses.replace(config, model=list(models), paths=None)
    refuse_impossible(config, dict(zip(config.axes["model"], subjects.values(), strict=True)))
    if config.dry_run:
        for setting in named.settings():
            say(", ".join(f"{axis} {value}" for axis, value in dataclasses.asdict(setting).items()))
        say(f"dry run: {count(len(config.settings()), 'setting')}; nothing was measured or written")
        return []
    budget = _budget(config)
    with resumable(stopped("speed", folder)), lock_run(folder):
        _refuse_another(folder, {name: subject.model for name, subject in subjects.items()})
        chosen = {name: to_dict(subject.model) for name, subject in subjects.items()}
        run = {"arcft": __version__, "job": "speed", "config": to_dict(config), "models": chosen}
        results = Results(folder, named, budget)
        write_run_yaml(folder, run)
        run_study(named, subjects, results.rows, results.record, results.check_machine)
        has_chart = results.write_tables()
    rows = results.ordered
    _show(rows, budget, config.clock)
    if not any(row.is_measured for row in rows):
        raise ArcftError(f"no setting could be measured; {folder / JSON_FILE} says why")
    say_path("every figure", folder / JSON_FILE)
    if has_chart:
        say_path("chart", folder / CHART_FILE)
    return rows


def _show(rows: Sequence[Row], budget: Budget | None, clock: str) -> None:
    for table in speed_tables(rows, budget):
        show(table)
        say("")
    if clock == "processor":
        say("Times are processor time, of all threads together.")
    for line in (*reasons(rows), summary(rows), *(budget_words(budget, rows) if budget else ())):
        if line:
            say(line)


def _model(config: EvaluateConfig) -> ModelConfig:
    assert config.model is not None
    return config.model


def _budget(config: SpeedConfig) -> Budget | None:
    if config.budget is None or config.samples is None:
        return None
    return Budget(seconds=parse_duration(config.budget), samples=config.samples, predictions=config.predictions)


def _refuse_another(folder: Path, models: Mapping[str, ModelConfig]) -> None:
    """Raise CheckpointError where `folder` holds another run, or a study of models that have changed since."""
    if not (folder / RUN_FILE).is_file():
        return
    stored = read_run_yaml(folder)
    if stored.get("job") != "speed":
        raise CheckpointError(f"{folder}: holds another run; choose another folder")
    changed = [name for name, model in models.items() if not _is_same(model, (stored.get("models") or {}).get(name))]
    if changed:
        raise CheckpointError(
            f"{folder}: the options of {', '.join(changed)} (conf/model) were changed since it was measured; start a "
            "new study"
        )


def _is_same(model: ModelConfig, stored: Any) -> bool:
    """Whether a model is the stored one; keys of conf/model that came later have their defaults there, and what it
    recommends for other groups does not matter."""
    if not isinstance(stored, dict):
        return False
    try:
        then = from_dict(ModelConfig, {key: value for key, value in stored.items() if key != "recommended"})
    except ConfigError:
        return False
    return dataclasses.replace(then, recommended=model.recommended) == model
