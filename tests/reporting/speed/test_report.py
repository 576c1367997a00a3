"""What a speed study shows: figures, tables, sentences, the CSV file and the chart, of rows worked out by hand."""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Sequence

import pytest
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console

from arcft.reporting.charts import speed_chart
from arcft.reporting.charts.charts import Panel
from arcft.reporting.charts.speed_chart import COLORS, apart, speed_png
from arcft.reporting.speed.budget import Budget
from arcft.reporting.speed.rows import Row, row_from_json, row_to_json
from arcft.reporting.speed.table import format_rate, format_seconds, parameters, speed_csv, speed_tables
from arcft.reporting.speed.words import budget_words, reasons, summary
from tests.support.speed_rows import measured, missing, setting

ROWS = [
    measured(setting(), (0.5, 2.5), (0.4, 2.4), (0.6, 3.0)),
    measured(setting(batch=4), (1.0, 5.0)),
    measured(setting("large", quantization="nf4", batch=4), (10.0, 60.0), parameters=135_000_000),
    missing(setting("large", quantization="nf4", batch=8), "too slow", "it took more than max_time=1m"),
]
BUDGET = Budget(seconds=1000.0, samples=100)


def printed(rows: Sequence[Row], budget: Budget | None) -> str:
    console = Console(width=80, file=io.StringIO(), color_system=None)
    with console.capture() as capture:
        for table in speed_tables(rows, budget):
            console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def test_figures_are_medians() -> None:
    row = ROWS[0]
    assert (row.first_token_seconds, row.seconds, row.seconds_per_sample) == (0.5, 2.5, 2.5)
    assert row.read_per_second == 100 / 0.5
    assert row.written_per_second == pytest.approx(10 / 2.0)  # the median of 2.0, 2.0 and 2.4 seconds
    assert row.spread == pytest.approx(0.3 / 2.5)
    assert ROWS[1].seconds_per_sample == 5.0 / 4
    assert ROWS[1].written_per_second == 4 * 10 / 4.0


def test_a_single_token_has_no_writing_speed() -> None:
    assert measured(setting(output=1), (1.0, 1.0)).written_per_second is None


def test_rows_survive_json() -> None:
    assert [row_from_json(json.loads(json.dumps(row_to_json(row)))) for row in ROWS] == ROWS


def test_the_tables() -> None:
    assert (
        printed(ROWS, None)
        == """\
small, float32: 1.0M parameters, ready in 10 s
                       read  write   first     per
batch  input  output  tok/s  tok/s   token  sample    ±   GiB
    1    100      11    200    5.0  0.50 s   2.5 s  12%  1.00
    4    100      11    400     10   1.0 s   1.2 s    -  1.00
large, float32, nf4: 135M parameters, ready in 10 s
                       read  write  first     per
batch  input  output  tok/s  tok/s  token  sample  ±   GiB
    4    100      11     40    0.8   10 s    15 s  -  1.00
    8    100      11      -      -      -       -  -     -"""
    )


def test_the_tables_with_a_budget() -> None:
    # 10 s of loading, then 100 batches of 2.5 s, or 25 of 5 s, or 25 of 60 s.
    lines = printed(ROWS, BUDGET).splitlines()
    assert lines[3].split()[-2:] == ["26%", "11+"]
    assert lines[4].split()[-2:] == ["14%", "11+"]
    # 39.6 s a batch: 10 s to the first token, then 5 s each.
    assert lines[8].split()[-2:] == ["1.51x", "6"]
    assert max(map(len, lines)) <= 80


def test_the_sentences() -> None:
    assert summary(ROWS) == (
        "large (float32, nf4; batch 4, input 100, output 11) reads 40 tokens a second and writes 0.8: writing a token "
        "takes as long as reading 50."
    )
    assert summary([ROWS[3]]) == ""
    assert list(reasons(ROWS)) == [
        "large, float32, nf4, batch 8, input 100, output 11: it took more than max_time=1m",
    ]
    assert list(budget_words(BUDGET, ROWS)) == [
        "16 min 40 s for 100 samples is 10 s per sample; with loading, 2 of 3 measured settings fit; the largest model "
        "that fits is small (1.0M parameters), for example in float32 with batch 4, input 100, output 11.",
        "The longest output that fits, on straight lines between the lengths measured (a length of 1 is the time to "
        "the first token), for the best precision and batch:",
        "  small, input 100: 11 tokens or more, the longest measured (float32, batch 4)",
        "  large, input 100: 6 tokens (float32, nf4, batch 4)",
    ]
    assert (
        list(budget_words(Budget(seconds=5.0, samples=100), ROWS))[2] == "  small, input 100: not even the first token"
    )
    assert list(budget_words(BUDGET, [ROWS[3]])) == [
        "16 min 40 s for 100 samples is 10 s per sample; with loading, 0 of 0 measured settings fit."
    ]


@pytest.mark.parametrize(
    ("times", "compared"),
    [
        ((1.0, 2.0), "reads 100 tokens a second and writes 10: writing a token takes as long as reading 10."),
        ((1.0, 1.1), "reads 100 tokens a second and writes 100: about the same."),
        ((10.0, 10.125), "reads 10 tokens a second and writes 80: reading a token takes as long as writing 8."),
    ],
)
def test_reading_and_writing_are_compared(times: tuple[float, float], compared: str) -> None:
    assert summary([measured(setting(), times)]).endswith(compared)


def test_the_csv_file() -> None:
    lines = list(csv.DictReader(io.StringIO(speed_csv(ROWS, BUDGET))))
    assert [line["outcome"] for line in lines] == ["measured"] * 3 + ["too slow"]
    assert float(lines[1]["read_per_second"]) == 400
    assert float(lines[1]["share_of_budget"]) == pytest.approx(0.135)
    assert (lines[2]["quantization"], lines[2]["longest_output"]) == ("nf4", "6")
    assert (lines[3]["read_per_second"], lines[3]["reason"]) == ("", "it took more than max_time=1m")


@pytest.mark.parametrize(
    ("number", "text"), [(999, "999"), (1_733_760, "1.7M"), (134_515_008, "135M"), (7_241_732_096, "7.2B")]
)
def test_parameters(number: int, text: str) -> None:
    assert parameters(number) == text


def test_small_numbers() -> None:
    assert [format_rate(value) for value in (None, 0.84, 9.96, 12345.6)] == ["-", "0.8", "10", "12,346"]
    assert [format_seconds(value) for value in (0.0043, 0.0316, 0.0994, 0.0996, 75)] == [
        "4.3 ms", "32 ms", "99 ms", "0.10 s", "1 min 15 s",
    ]  # fmt: skip


def test_a_model_has_its_colour_in_every_panel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a larger batch of another model did not fit."""
    panels: list[Panel] = []
    monkeypatch.setattr(speed_chart, "charts_png", lambda these, **options: panels.extend(these) or b"")
    speed_png(
        [
            measured(setting("large"), (1.0, 2.0)),
            measured(setting("small"), (1.0, 2.0)),
            measured(setting("small", batch=8), (1.0, 2.0)),
        ]
    )
    colors: dict[str, set[str]] = {}
    for panel in panels:
        figure = Figure()
        panel.draw(axes := figure.add_subplot())
        for text in axes.texts:
            colors.setdefault(text.get_text().partition(",")[0], set()).add(str(text.get_color()))
    assert colors == {"large": {COLORS[0]}, "small": {COLORS[1]}}


def test_the_chart_has_a_row_for_each_batch() -> None:
    for rows, batches in ((ROWS, 2), (ROWS[:1], 1)):
        picture = Image.open(io.BytesIO(speed_png(rows)))
        assert picture.size == (1400, 60 + 400 * batches)
        assert len(picture.convert("RGB").getcolors(2**20) or []) > 50


@pytest.mark.parametrize(
    ("places", "moved"),
    [
        ([10.0, 50.0], [10.0, 50.0]),
        ([30.0, 30.0], [25.0, 35.0]),
        ([95.0, 95.0], [90.0, 100.0]),  # down from the upper edge
        ([2.0, 2.0], [0.0, 10.0]),
        ([], []),
    ],
)
def test_labels_are_moved_apart(places: list[float], moved: list[float]) -> None:
    assert apart(places, 10.0, 100.0) == pytest.approx(moved)


def test_many_labels_keep_their_distance() -> None:
    moved = apart([50.0, 50.0, 50.5, 51.0, 90.0], 10.0, 100.0)
    assert all(later - earlier >= 10 - 1e-3 for earlier, later in itertools.pairwise(moved))
    assert moved == sorted(moved)
