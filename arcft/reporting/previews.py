"""What train.py and evaluate.py show in the terminal: the first example, and tables of metrics."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from arcft.protocols import MetricSet
from arcft.reporting.words import count, percent, spread

LEARNED = "bold black on green"
NOT_LEARNED = "dim"
LONGEST_EXAMPLE = 1500
"""Tokens shown of an example; of a longer one, its beginning and its end."""


def print_example(console: Console, tokens: Sequence[str], labels_mask: Sequence[bool]) -> None:
    """Print the text of a training example, in colour where `labels_mask` says that a token is learned.

    Without colours the learned parts stand between the marks >>> and <<<.
    """
    if len(tokens) != len(labels_mask):
        raise ValueError(f"{len(tokens)} tokens, but a mask for {len(labels_mask)}")
    colored = console.color_system is not None
    text = Text()
    for start, end in _shown(len(tokens)):
        if start:
            text.append(f"\n... {count(start - LONGEST_EXAMPLE // 2, 'token')} not shown ...\n", style="italic")
        for first, last in _runs(labels_mask, start, end):
            part = "".join(tokens[first:last])
            if not labels_mask[first]:
                text.append(part, style=NOT_LEARNED)
            elif colored:
                # A newline has no width; the sign shows whether it is supervised.
                text.append(part.replace("\n", "↵\n"), style=LEARNED)
            else:
                text.append(f">>>{part}<<<")
    learned = sum(labels_mask)
    how = "green" if colored else "between >>> and <<<"
    words = f": {count(len(tokens), 'token')}, {learned:,} of them supervised ({how})"
    console.print(Text.assemble(("The first training example", "bold"), words), soft_wrap=True)
    console.print(text)


def metrics_table(
    metrics: Mapping[str, Mapping[str, float]],
    metric_set: MetricSet,
    *,
    errors: Mapping[str, Mapping[str, float]] | None = None,
    number: int = 0,
    title: str | None = None,
) -> Table:
    """A table of metrics in percent, for a rich console.

    `metrics` and, where known, their standard `errors` over `number` problems are by name (of a checkpoint, a run,
    ...); where an error is 0, an interval is shown. A single one is
    written from top to bottom with what each metric means; several are a row each, in `metric_set.compared`.
    """
    errors = errors or {}
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    if len(metrics) == 1:
        ((name, values),) = metrics.items()
        table.add_column("metric")
        table.add_column(name, justify="right", overflow="fold")
        table.add_column("share of, averaged over tasks", style="dim")
        for metric in metric_set.names:
            if metric in values:
                table.add_row(
                    metric, _cell(values, errors.get(name, {}), number, metric), metric_set.definitions[metric]
                )
        return table
    table.add_column("", no_wrap=True)
    for heading in metric_set.compared.values():
        table.add_column(heading, justify="right", no_wrap=True)
    for name, values in metrics.items():
        cells = (_cell(values, errors.get(name, {}), number, metric) for metric in metric_set.compared)
        # Two narrow lines, `25.0%` and `±6.2` or `0–49`, let seven columns fit a terminal.
        table.add_row(name, *(re.sub(r"%\)|\(", "", cell.replace("± ", "±")).replace(" ", "\n") for cell in cells))
    return table


def _shown(number: int) -> list[tuple[int, int]]:
    if number <= LONGEST_EXAMPLE:
        return [(0, number)]
    half = LONGEST_EXAMPLE // 2
    return [(0, half), (number - half, number)]


def _runs(mask: Sequence[bool], start: int, end: int) -> list[tuple[int, int]]:
    """Stretches of equal values between start and end, as (first, last + 1)."""
    borders = [start, *(index for index in range(start + 1, end) if mask[index] != mask[index - 1]), end]
    return [(first, last) for first, last in itertools.pairwise(borders) if first < last]


def _cell(values: Mapping[str, float], errors: Mapping[str, float], number: int, metric: str) -> str:
    if metric not in values:
        return ""
    error = spread(values[metric], errors[metric], number) if metric in errors else ""
    return f"{percent(values[metric])} {error}".strip()
