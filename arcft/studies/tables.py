"""A study as a table for the terminal, as Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from arcft.reporting.words import percent
from arcft.studies.runs import COSTS, LOSSES, Missing
from arcft.studies.settings import shown, typed
from arcft.studies.study import Row, Study
from arcft.studies.words import (
    METHOD,
    cost_words,
    coverage_words,
    difference_words,
    p_words,
    plan,
    size,
    title,
    value_words,
    verdict,
)

COST_HEADINGS = {
    "seconds": "training",
    "evaluation_seconds": "predicting",
    "tokens_per_second": "tokens/s",
    "peak_bytes": "peak memory",
    "trainable_parameters": "trainable",
}


def terminal_table(study: Study) -> Table:
    """The columns that fit a terminal."""
    table = Table(
        title=title(study), title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0)
    )
    table.add_column(", ".join(study.grouping.by) or "", overflow="fold")
    for heading in ("seeds", study.metric, "difference", "p", "among\ncandidates"):
        table.add_column(heading, justify="right")
    for row in study.rows:
        cells = _main_cells(study, row)
        candidates = "" if row.coverage is None else percent(row.coverage.candidates)
        table.add_row(_name(row), *cells, candidates, style="bold" if row.is_best else None)
    return table


def markdown(study: Study, missing: Sequence[Missing], chart: str | None) -> str:
    """The whole study."""
    lines = [f"# {title(study)}", "", f"{size(study)}.", "", verdict(study), *filter(None, [plan(study)]), ""]
    lines += [*_rows_table(study), ""]
    bold = "Best in bold where it is better than each other setting by more than the noise. " if study.can_claim else ""
    lines += [f"{bold}{_method(study)}", ""]
    lines += [*study.notes, ""] if study.notes else []
    if chart is not None:
        lines += [f"![{title(study)}]({chart})", ""]
    if study.pooled is not None:
        lines += ["## Coverage", "", coverage_words(study), "", *_coverage_table(study), ""]
    if missing:
        lines += ["## Missing", "", *missing_table(missing), ""]
    return "\n".join(lines)


def missing_table(missing: Sequence[Missing]) -> list[str]:
    """What is missing, as Markdown."""
    rows = [[one.name, one.state, one.reason, f"`{one.command}`" if one.command else ""] for one in missing]
    return _table(["run", "state", "", "command"], rows)


def csv_text(study: Study) -> str:
    """A row a setting; shares are from 0 to 1."""
    rows = [_csv_row(study, row) for row in study.rows]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def json_content(study: Study, missing: Sequence[Missing]) -> dict[str, Any]:
    """Everything, as plain data; what is not known is null."""
    grouping = study.grouping
    return _known(
        {
            "metric": study.metric,
            "compared_over": study.over,
            "by": list(grouping.by),
            "over": list(grouping.over),
            "baseline": study.baseline.label,
            "tasks": study.num_tasks,
            "verdict": verdict(study),
            "plan": plan(study),
            "variances": None if study.spread is None else dataclasses.asdict(study.spread),
            "coverage": None if study.pooled is None else dataclasses.asdict(study.pooled) | {"exact": study.is_exact},
            "settings": [_json_row(study, row) for row in study.rows],
            "notes": study.notes,
            "missing": [dataclasses.asdict(one) for one in missing],
        }
    )


def _main_cells(study: Study, row: Row) -> list[str]:
    gap = "baseline" if row.difference is None else difference_words(study, row.difference)
    p = "" if row.p_holm is None else p_words(row.p_holm)
    return [str(len(row.setting.replicates)), value_words(study, row.value), gap, p]


def _name(row: Row) -> str:
    return " ".join(shown(value) for value in row.setting.values) or row.setting.label


def _rows_table(study: Study) -> list[str]:
    names = list(dict.fromkeys(name for row in study.rows for name in row.metrics))
    by = list(study.grouping.by) or ["setting"]
    headings = [*by, "seeds", study.metric, "difference", "p", *(COST_HEADINGS.get(name, name) for name in names)]
    rows = []
    for row in study.rows:
        values = [shown(value) for value in row.setting.values] or [row.setting.label]
        cells = [*values, *_main_cells(study, row), *(_mean(name, row.metrics.get(name)) for name in names)]
        rows.append([f"**{cell}**" if row.is_best and cell else cell for cell in cells])
    return _table(headings, rows, text_columns=len(by))


def _coverage_table(study: Study) -> list[str]:
    by = list(study.grouping.by) or ["setting"]
    rows = []
    together = ""
    for row in study.rows:
        if row.coverage is not None:
            together = "of its run" if row.coverage.runs == 1 else f"of any of {row.coverage.runs:,} runs"
            values = [shown(value) for value in row.setting.values] or [row.setting.label]
            shares = (row.coverage.submitted, row.coverage.candidates, row.coverage.pooled)
            rows.append([*values, *map(percent, shares)])
    return _table([*by, "submitted", "among candidates", together], rows, text_columns=len(by))


def _mean(name: str, value: tuple[float, float] | None) -> str:
    """A mean over seeds with its standard error."""
    if value is None:
        return ""
    mean, error = value
    if name in COSTS:
        return cost_words(name, mean)
    if name in LOSSES:
        return f"{mean:.3f}" + (f" ± {error:.3f}" if error > 0 else "")
    return percent(mean) + (f" ± {100 * error:.1f}" if error > 0 else "")


def _method(study: Study) -> str:
    if study.over == "seeds":
        return "Intervals are 95%, over seeds (Welch); p-values are corrected for the number of settings (Holm)."
    return f"{METHOD} ± is the standard error over seeds."


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int | None = None) -> list[str]:
    numeric = len(headings) if text_columns is None else text_columns
    rules = ["---" if number < numeric else "---:" for number in range(len(headings))]
    return [_line(cells) for cells in (headings, rules, *rows)]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _csv_row(study: Study, row: Row) -> dict[str, Any]:
    gap = row.difference
    values = dict(zip(study.grouping.by, map(typed, row.setting.values), strict=True))
    found: dict[str, Any] = (values or {"setting": row.setting.label}) | {
        "seeds": len(row.setting.replicates),
        "runs": len(row.setting.runs),
        study.metric: row.value.value,
        f"{study.metric}_low": row.value.low,
        f"{study.metric}_high": row.value.high,
        "difference": None if gap is None else gap.value,
        "difference_low": None if gap is None else gap.low,
        "difference_high": None if gap is None else gap.high,
        "p": row.p,
        "p_holm": row.p_holm,
        "is_best": row.is_best,
    }
    for name, (mean, error) in row.metrics.items():
        found |= {name: mean, f"{name}_error": error}
    if row.coverage is not None:
        found |= {f"coverage_{name}": value for name, value in dataclasses.asdict(row.coverage).items()}
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in found.items()}


def _json_row(study: Study, row: Row) -> dict[str, Any]:
    runs = [
        {
            "folder": str(run.folder),
            "replicate": number,
            "seeds": {key: run.config.get(key) for key in study.grouping.over},
            "metrics": dict(run.metrics),
            "costs": dict(run.costs),
        }
        for number, replicate in enumerate(row.setting.replicates)
        for run in replicate
    ]
    return {
        "setting": dict(zip(study.grouping.by, row.setting.values, strict=True)),
        "label": row.setting.label,
        "value": dataclasses.asdict(row.value),
        "by_seed": row.by_seed,
        "difference": None if row.difference is None else dataclasses.asdict(row.difference),
        "p": row.p,
        "p_holm": row.p_holm,
        "is_claimed": row.is_claimed,
        "is_best": row.is_best,
        "metrics": {name: {"mean": mean, "error": error} for name, (mean, error) in row.metrics.items()},
        "coverage": None if row.coverage is None else dataclasses.asdict(row.coverage),
        "runs": runs,
    }


def _known(value: Any) -> Any:
    """`value` with null for NaN, which JSON does not have."""
    if isinstance(value, Mapping):
        return {name: _known(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_known(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
