"""What a speed study shows, in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from arcft.config.speed import Setting
from arcft.reporting.speed.budget import Budget, share_of_budget
from arcft.reporting.speed.rows import Row, groups
from arcft.reporting.speed.table import format_rate, longest_outputs, parameters
from arcft.reporting.words import count, duration


def summary(rows: Sequence[Row]) -> str:
    """How reading and writing compare where the largest model writes fastest; "" if nothing was measured."""
    measured = [row for row in _measured(rows) if row.written_per_second is not None]
    if not measured:
        return ""
    most = max(_size(row) for row in measured)
    row = max((row for row in measured if _size(row) == most), key=lambda row: row.written_per_second or 0.0)
    assert row.written_per_second is not None
    setting, ratio = row.setting, row.read_per_second / row.written_per_second
    return (
        f"{setting.model} ({row.precision}; batch {setting.batch}, input {setting.input:,}, output "
        f"{setting.output:,}) reads {format_rate(row.read_per_second)} tokens a second and writes "
        f"{format_rate(row.written_per_second)}: {_compared(ratio)}."
    )


def _compared(ratio: float) -> str:
    """What it means to read `ratio` times as many tokens a second as are written."""
    if ratio >= 1.5:
        return f"writing a token takes as long as reading {ratio:,.0f}"
    if ratio <= 1 / 1.5:
        return f"reading a token takes as long as writing {1 / ratio:,.0f}"
    return "about the same"


def reasons(rows: Sequence[Row]) -> Iterator[str]:
    """One line for each reason why settings of a model and precision have no figures."""
    for name, own in groups(rows).items():
        settings: dict[str, list[Row]] = {}
        for row in own:
            if not row.is_measured:
                settings.setdefault(row.reason, []).append(row)
        for reason, without in settings.items():
            where = in_words(without[0].setting) if len(without) == 1 else count(len(without), "setting")
            yield f"{name}, {where}: {reason}"


def in_words(setting: Setting) -> str:
    """For example `batch 8, input 1,024, output 32`."""
    return f"batch {setting.batch}, input {setting.input:,}, output {setting.output:,}"


def budget_words(budget: Budget, rows: Sequence[Row]) -> Iterator[str]:
    """The answer to the budget question: a sentence on what fits, then one on each model's longest output."""
    measured = _measured(rows)
    fits = [row for row in measured if share_of_budget(budget, row) <= 1]
    settings = count(len(measured), "measured setting")
    each = f", {budget.predictions} predictions each" if budget.predictions > 1 else ""
    yield (
        f"{duration(budget.seconds)} for {count(budget.samples, 'sample')}{each} is "
        f"{_three_digits(budget.seconds_per_sample)} per sample; with loading, {len(fits)} of {settings} "
        f"{'fits' if len(measured) == 1 else 'fit'}{_largest(budget, fits)}."
    )
    if not measured:
        return
    yield (
        "The longest output that fits, on straight lines between the lengths measured (a length of 1 is the time to "
        "the first token), for the best precision and batch:"
    )
    longest = longest_outputs(rows, budget)
    for model, size in dict.fromkeys((row.setting.model, row.setting.input) for row in measured):
        own = [row for row in measured if (row.setting.model, row.setting.input) == (model, size)]
        keys = {(row.name, row.setting.batch, size): row for row in own}
        # Of those that write as much, the one that takes the least time.
        best = max(keys, key=lambda key: (longest[key].tokens, -keys[key].seconds_per_sample))
        found, row = longest[best], keys[best]
        if found.tokens == 0:
            said = "not even the first token"
        else:
            more = " or more, the longest measured" if found.is_longest_measured else ""
            said = f"{count(found.tokens, 'token')}{more} ({row.precision}, batch {row.setting.batch})"
        yield f"  {model}, input {size:,}: {said}"


def _three_digits(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds < 100 else duration(seconds)


def _largest(budget: Budget, fits: Sequence[Row]) -> str:
    """The largest model that fits, in the precision and batch that leave most of the budget."""
    if not fits:
        return ""
    row = max(fits, key=lambda row: (_size(row), -share_of_budget(budget, row)))
    return (
        f"; the largest model that fits is {row.setting.model} ({parameters(_size(row))} parameters), for example in "
        f"{row.precision} with {in_words(row.setting)}"
    )


def _measured(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.is_measured]


def _size(row: Row) -> int:
    return row.loaded.parameters if row.loaded else 0
