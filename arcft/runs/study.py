"""`arcft study`: read runs, compare their settings, write and show the outcome."""

from __future__ import annotations

import time
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from arcft.config.study import StudyConfig
from arcft.console import note, say, say_path, show, warn
from arcft.files import write_bytes, write_json, write_text
from arcft.names import visible
from arcft.reporting.words import count
from arcft.runs.common.extras import extra
from arcft.runs.common.paths import absolute
from arcft.runs.setup.kinds import KINDS
from arcft.runs.sweeps.finding import FoundRuns, find_runs
from arcft.runs.sweeps.missing import missing_runs, unknown_jobs
from arcft.runs.sweeps.reading import losses_at
from arcft.studies.runs import Missing, Run
from arcft.studies.settings import StudyError, group, join_evaluations, typed
from arcft.studies.study import Study, compare
from arcft.studies.tables import csv_text, json_content, markdown, terminal_table
from arcft.studies.words import coverage_words, plan, size, verdict

MARKDOWN_FILE = "study.md"
CSV_FILE = "study.csv"
JSON_FILE = "study.json"
CHART_FILE = "study.png"

SHOWN = 8
"""Missing runs that the terminal lists."""


def study(config: StudyConfig) -> Study:
    """Compare what `config` names, and write study.md, study.csv, study.json and study.png.

    Raises ArcftError, before anything is written, where there are no runs, none is finished, or they can't be compared.
    """
    found = find_runs(config.names("runs") or [])
    finished = [run for run in found.runs if run.state == "finished"]
    runs, not_evaluated = join_evaluations(finished, losses_at)
    begun = [str(run.trained_in) for run in found.runs if run.job == "evaluate" and run.state != "finished"]
    not_evaluated = [run for run in not_evaluated if not any(fnmatch(str(run.folder), one) for one in begun)]
    evaluations = [run for run in runs if run.job == "evaluate"]
    missing = missing_runs(found, not_evaluated, evaluations)
    if not runs:
        _show_missing(missing)
        raise StudyError(f"none of {count(len(found.runs), 'run')} is finished, so there is nothing to compare yet")
    _refuse_mixed_jobs(runs)
    kinds = sorted({run.kind for run in runs})
    if len(kinds) > 1:
        raise StudyError(f"runs of different kinds of problems ({', '.join(kinds)}); name only those of one with runs=")
    folder = _folder(config, found)
    baseline = None if config.baseline is None else typed(config.baseline)
    study = compare(
        group(runs, config.names("by"), config.names("over")),
        KINDS[kinds[0]]().metrics,
        metric=config.metric,
        baseline=baseline,
        tasks=config.tasks,
    )
    study.notes.extend(_baseline_note(config, study, found))
    study.notes.extend(unknown_jobs(found))
    _write(folder, study, missing)
    _show(study, missing, folder)
    return study


def _refuse_mixed_jobs(runs: Sequence[Run]) -> None:
    examples = {run.job: run.folder for run in runs}
    if len(examples) > 1:
        raise StudyError(
            f"training runs and evaluations together (e.g. {' and '.join(map(str, examples.values()))}), but none of "
            "the evaluations is of one of the training runs; name only those of one job with runs="
        )


def _baseline_note(config: StudyConfig, study: Study, found: FoundRuns) -> list[str]:
    """Where another setting may have been the first one, if its runs were finished."""
    grouping = study.grouping
    there = [one.values for one in grouping.settings]
    lacking = [run for run in found.runs if run.state != "finished" and grouping.by and grouping.by[0] in run.config]
    lacks = any(tuple(run.config.get(key) for key in grouping.by) not in there for run in lacking)
    if config.baseline is not None or not lacks:
        return []
    return [f"The baseline is {study.baseline.label}, the first setting with a finished run; baseline= names another."]


def _folder(config: StudyConfig, found: FoundRuns) -> Path:
    """Where the study is written."""
    if config.out is not None:
        folder = Path(absolute(config.out))
        for path in (folder, *folder.parents):
            if path.exists() and not path.is_dir():
                raise StudyError(f"out={config.out}: {path} is a file; name a folder, which is made if it is not there")
        return folder
    (name, *others) = config.names("runs") or []
    if not others and [Path(absolute(name))] == found.sweeps:
        return found.sweeps[0]
    return Path(absolute(time.strftime("outputs/study/%Y-%m-%d_%H-%M-%S")))


def _write(folder: Path, study: Study, missing: Sequence[Missing]) -> None:
    chart = picture = None
    with extra("the chart", of="study"):
        # Imported only now: matplotlib takes a second.
        from arcft.studies.chart import study_png

        picture = study_png(study)
        chart = CHART_FILE
    text, table, content = visible(markdown(study, missing, chart)), csv_text(study), json_content(study, missing)
    folder.mkdir(parents=True, exist_ok=True)
    if picture is not None:
        write_bytes(folder / CHART_FILE, picture)
    else:
        (folder / CHART_FILE).unlink(missing_ok=True)
    write_text(folder / MARKDOWN_FILE, text)
    write_text(folder / CSV_FILE, table)
    write_json(folder / JSON_FILE, content)


def _show(study: Study, missing: Sequence[Missing], folder: Path) -> None:
    show(terminal_table(study))
    say(f"\n{size(study)}")
    for line in (verdict(study), plan(study), coverage_words(study)):
        if line:
            say(line)
    for line in study.notes:
        note(line)
    _show_missing(missing)
    say_path("table, figures and chart", folder / MARKDOWN_FILE)


def _show_missing(missing: Sequence[Missing]) -> None:
    if not missing:
        return
    warn(f"{count(len(missing), 'run')} missing or unfinished:")
    for one in missing[:SHOWN]:
        reason = f" ({one.reason})" if one.reason else ""
        say(f"  {one.name}: {one.state}{reason}")
        if one.command:
            say(f"    {one.command}")
    if len(missing) > SHOWN:
        say(f"  and {len(missing) - SHOWN} more, which {JSON_FILE} lists")
