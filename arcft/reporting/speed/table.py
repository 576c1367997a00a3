"""A speed study as tables for the terminal and as a CSV file."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from rich.table import Table

from arcft.reporting.speed.budget import Budget, LongestOutput, longest_output, same_but_for_output, share_of_budget
from arcft.reporting.speed.rows import Row, groups
from arcft.reporting.words import duration


def speed_tables(rows: Sequence[Row], budget: Budget | None) -> list[Table]:
    """A table for each model and precision; with a budget, what each setting takes of it and the longest output that
    fits."""
    longest = longest_outputs(rows, budget)
    return [_table(name, own, budget, longest) for name, own in groups(rows).items()]


def longest_outputs(rows: Sequence[Row], budget: Budget | None) -> dict[tuple[str, int, int], LongestOutput]:
    """By name, batch and input of the measured rows; empty without a budget."""
    if budget is None:
        return {}
    return {key: longest_output(budget, own) for key, own in same_but_for_output(rows).items()}


def _table(
    name: str, rows: Sequence[Row], budget: Budget | None, longest: dict[tuple[str, int, int], LongestOutput]
) -> Table:
    headings = ["batch", "input", "output", "read\ntok/s", "write\ntok/s", "first\ntoken", "per\nsample", "±", "GiB"]
    headings += ["of the\nbudget", "most\noutput"] if budget else []
    table = Table(title=f"{name}{_about(rows)}", title_justify="left", title_style="bold", box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        setting = row.setting
        cells = [str(setting.batch), f"{setting.input:,}", f"{setting.output:,}"]
        if row.is_measured:
            cells += [*_speeds(row), format_seconds(row.first_token_seconds), format_seconds(row.seconds_per_sample)]
            cells += [f"{row.spread:.0%}" if len(row.runs) > 1 else "-", gibibytes(row)]
            if budget is not None:
                cells += [format_share(budget, row), _longest(longest[row.name, setting.batch, setting.input])]
        else:
            cells += ["-"] * (len(headings) - len(cells))
        table.add_row(*cells)
    return table


def _about(rows: Sequence[Row]) -> str:
    loaded = next((row.loaded for row in rows if row.loaded), None)
    if loaded is None:
        return ""
    return f": {parameters(loaded.parameters)} parameters, ready in {duration(loaded.seconds)}"


def parameters(number: int) -> str:
    """For example `1.7M`, `135M`, `7.2B`."""
    for least, letter in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if number >= least:
            amount = number / least
            return f"{amount:.1f}{letter}" if amount < 100 else f"{amount:.0f}{letter}"
    return str(number)


def format_seconds(seconds: float) -> str:
    """A time of any length, e.g. `12 ms`, `0.32 s`, `3 min 20 s`."""
    return f"{1000 * seconds:.{0 if seconds >= 0.00995 else 1}f} ms" if seconds < 0.0995 else duration(seconds)


def _speeds(row: Row) -> list[str]:
    return [format_rate(row.read_per_second), format_rate(row.written_per_second)]


def format_rate(tokens_per_second: float | None) -> str:
    """Tokens per second with about three digits; a dash for none."""
    if tokens_per_second is None:
        return "-"
    return f"{tokens_per_second:,.0f}" if tokens_per_second >= 9.95 else f"{tokens_per_second:.1f}"


def gibibytes(row: Row) -> str:
    """The peak memory in GiB."""
    return f"{row.peak_bytes / 2**30:.2f}"


def format_share(budget: Budget, row: Row) -> str:
    """For example `12%` or `0.3%`, or `3.40x` where it does not fit."""
    taken = share_of_budget(budget, row)
    if taken > 1:
        return f"{taken:,.2f}x" if taken < 10 else f"{taken:,.0f}x"
    return f"{taken:.0%}" if taken >= 0.0995 else f"{taken:.1%}"


def _longest(longest: LongestOutput) -> str:
    if longest.tokens == 0:
        return "none"
    return f"{longest.tokens:,}" + ("+" if longest.is_longest_measured else "")


def speed_csv(rows: Sequence[Row], budget: Budget | None) -> str:
    """One line a setting, with medians; empty where nothing was measured."""
    longest = longest_outputs(rows, budget)
    lines = []
    for row in rows:
        setting = row.setting
        line: dict[str, object] = {
            "model": setting.model, "dtype": row.loaded.dtype if row.loaded else setting.dtype,
            "quantization": setting.quantization, "batch": setting.batch, "input": setting.input,
            "output": setting.output, "outcome": row.outcome,
        }  # fmt: skip
        if row.is_measured:
            assert row.loaded is not None
            line |= {
                "read_per_second": row.read_per_second, "written_per_second": row.written_per_second,
                "first_token_seconds": row.first_token_seconds, "seconds_per_sample": row.seconds_per_sample,
                "batch_seconds": row.seconds, "spread": row.spread, "runs": len(row.runs),
                "peak_bytes": row.peak_bytes, "load_seconds": row.loaded.seconds,
                "parameters": row.loaded.parameters, "decoder": row.loaded.decoder,
            }  # fmt: skip
            if budget is not None:
                most = longest[row.name, setting.batch, setting.input]
                line |= {"share_of_budget": share_of_budget(budget, row), "longest_output": most.tokens}
        line["reason"] = row.reason
        lines.append(line)
    columns = max(lines, key=len) if lines else {}
    file = io.StringIO()
    writer = csv.DictWriter(file, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return file.getvalue()
