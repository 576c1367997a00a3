"""What is shown in the terminal, and the picture of predicted against true grids."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor
from rich.console import Console

from arcft.problems.arc.drawing.colors import PALETTE
from arcft.problems.arc.scoring.metrics import METRICS, ArcMetrics
from arcft.problems.arc.task import GridAnswer, Pair, Task, as_grid
from arcft.reporting.pictures.problems import predictions_picture
from arcft.reporting.previews import metrics_table, print_example
from tests.support.arc import ARC

TOKENS = ["Say", " [bold]", "\n", "1", "\n", "<end>"]
MASK = [False, False, False, True, True, True]
METRIC_VALUES = dict(zip(METRICS, (0.25, 0.5, 0.75, 0.875, 1.0, 0.5, 0.0, 0.125, 0.25), strict=True))
ERRORS = dict.fromkeys(METRICS, 0.0625)


def console(*, color: bool = False, width: int = 80) -> Console:
    system = "truecolor" if color else None
    return Console(file=io.StringIO(), color_system=system, force_terminal=color, width=width)


def printed(target: Console) -> str:
    assert isinstance(target.file, io.StringIO)
    return target.file.getvalue()


def rows_of(text: str) -> list[str]:
    return [line.rstrip() for line in text.splitlines() if line.strip()]


def test_an_example_without_colours_is_marked() -> None:
    target = console()
    print_example(target, TOKENS, MASK)
    assert printed(target) == (
        "The first training example: 6 tokens, 3 of them supervised (between >>> and <<<)\nSay [bold]\n>>>1\n<end><<<\n"
    )


def test_an_example_in_colour() -> None:
    target = console(color=True)
    print_example(target, TOKENS, MASK)
    text = printed(target)
    learned, dim, end = "\x1b[1;30;42m", "\x1b[2m", "\x1b[0m"
    assert f"{dim}Say [bold]{end}\n{learned}1↵{end}\n{learned}<end>{end}\n" in text
    assert ">>>" not in text


def test_every_change_of_the_mask_is_shown() -> None:
    target = console()
    print_example(target, list("abcdef"), [True, False, False, True, False, True])
    assert printed(target).splitlines()[1] == ">>>a<<<bc>>>d<<<e>>>f<<<"


def test_the_middle_of_a_long_example_is_left_out() -> None:
    target = console(width=10_000)
    print_example(target, ["a"] * 2000 + ["b"], [False] * 2000 + [True])
    lines = printed(target).splitlines()
    assert lines[0].startswith("The first training example: 2,001 tokens, 1 of them supervised")
    assert lines[1:] == ["a" * 750, "... 501 tokens not shown ...", "a" * 749 + ">>>b<<<"]


def test_a_mask_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="6 tokens, but a mask for 2"):
        print_example(console(), TOKENS, [True, False])


def test_one_column_of_metrics_says_what_each_means() -> None:
    target = console()
    target.print(
        metrics_table({"checkpoint-20": METRIC_VALUES}, ArcMetrics(), errors={"checkpoint-20": ERRORS}, title="8 tasks")
    )
    lines = rows_of(printed(target))
    assert lines[0] == "8 tasks"
    assert lines[1].split(maxsplit=2) == ["metric", "checkpoint-20", "share of, averaged over tasks"]
    assert [line.split()[0] for line in lines[2:]] == list(METRICS)
    assert lines[2].split(maxsplit=4) == ["accuracy", "25.0%", "±", "6.2", "predictions that are exactly right"]
    assert lines[6].split()[:2] == ["any_correct_size", "100%"]


def test_several_rows_of_metrics_fit_into_80_columns() -> None:
    names = ["checkpoint-100", "checkpoint-2000"]
    values = dict.fromkeys(names, METRIC_VALUES)
    target = console()
    target.print(metrics_table(values, ArcMetrics(), errors=dict.fromkeys(names, ERRORS)))
    lines = rows_of(printed(target))
    assert lines[0].split() == ["correct", "correct", "pass", "un-", "vote", "vote"]
    assert lines[1].split() == ["accuracy", "pixels", "size", "n", "answered", "1", "2"]
    assert lines[2].split() == ["checkpoint-100", "25.0%", "50.0%", "75.0%", "50.0%", "0%", "12.5%", "25.0%"]
    assert lines[3].split() == ["±6.2"] * 7
    assert lines[4].split()[0] == "checkpoint-2000"
    assert len(lines) == 6


def test_where_all_tasks_agree_an_interval_is_shown() -> None:
    errors = {"a": dict.fromkeys(METRICS, 0.0) | {"accuracy": 0.0001}}
    values = dict.fromkeys(METRICS, 0.0) | {"accuracy": 0.0002, "vote_2": 1.0}
    target = console()
    target.print(metrics_table({"a": values}, ArcMetrics(), errors=errors, number=4))
    lines = rows_of(printed(target))
    assert lines[1].split(maxsplit=4)[1:4] == ["0.0%", "±", "<0.1"]
    assert lines[8].split(maxsplit=3)[1:3] == ["0%", "(0–49%)"]
    assert lines[9].split(maxsplit=3)[1:3] == ["100%", "(51–100%)"]
    names = ["checkpoint-100", "checkpoint-2000"]
    target = console()
    target.print(
        metrics_table(dict.fromkeys(names, values), ArcMetrics(), errors=dict.fromkeys(names, errors["a"]), number=4)
    )
    lines = rows_of(printed(target))
    assert lines[3].split() == ["±<0.1", *["0–49"] * 5, "51–100"]
    assert len(lines) == 6


def test_errors_that_are_not_known_are_not_shown() -> None:
    target = console()
    target.print(metrics_table({"a": METRIC_VALUES}, ArcMetrics(), errors={"a": dict.fromkeys(METRICS, float("nan"))}))
    target.print(metrics_table({"a": METRIC_VALUES, "b": {}}, ArcMetrics()))
    assert "±" not in printed(target)
    assert not re.search(r"\bnan\b", printed(target))


def test_grids_as_digits_without_colours() -> None:
    target = console()
    target.print(
        ARC.card.terminal(
            [("predicted", GridAnswer(as_grid([[1, 2, 3]]))), ("true", GridAnswer(as_grid([[4], [5]]))), ("2nd", None)]
        )
    )
    assert rows_of(printed(target)) == ["predicted   true   2nd", "123         4      none", "            5"]


def test_two_rows_of_cells_share_a_line_of_blocks() -> None:
    target = console(color=True)
    target.print(ARC.card.terminal([("g", GridAnswer(as_grid([[0, 1], [2, 3], [4, 5]])))]))
    lines = [line for line in printed(target).splitlines() if "▀" in line]
    red, green, blue = ({}, {}, {})
    for color, code in enumerate(PALETTE):
        red[color], green[color], blue[color] = ImageColor.getrgb(code)[:3]

    def cell(upper: int, lower: int | None) -> str:
        code = f"38;2;{red[upper]};{green[upper]};{blue[upper]}"
        if lower is not None:
            code += f";48;2;{red[lower]};{green[lower]};{blue[lower]}"
        return f"\x1b[{code}m▀\x1b[0m"

    assert lines[0].rstrip() == cell(0, 2) + cell(1, 3)
    assert lines[1].rstrip() == cell(4, None) + cell(5, None)
    assert len(lines) == 2


def test_picture_holds_the_grids_and_no_more_tests_than_asked_for(tmp_path: Path) -> None:
    true, wrong = as_grid([[3]]), as_grid([[6]])
    tasks = [Task(name, (Pair(true, true),), (Pair(as_grid([[8]]), true),)) for name in ("a", "b", "c")]
    right, other, third = (GridAnswer(grid) for grid in (true, wrong, as_grid([[9]])))
    attempts = {("a", 0): [other, right], ("b", 0): [other], ("c", 0): [third]}
    predictions_picture(tmp_path / "preview.png", tasks, attempts, ARC.card, shown=2, count=2)
    with Image.open(tmp_path / "preview.png") as picture:
        colors = {color for _, color in picture.convert("RGB").getcolors(2**24) or []}
        two = picture.size
    expected = {index: ImageColor.getrgb(PALETTE[index]) in colors for index in (3, 6, 8, 9)}
    assert expected == {3: True, 6: True, 8: True, 9: False}  # 9 is only in the third test
    predictions_picture(tmp_path / "preview.png", tasks, attempts, ARC.card, shown=2, count=1)
    with Image.open(tmp_path / "preview.png") as picture:
        assert picture.width < two[0]
        assert picture.height == two[1]


def test_picture_of_tests_without_answers_and_attempts(tmp_path: Path) -> None:
    tasks = [Task("a", (Pair(as_grid([[1]]), as_grid([[2]])),), (Pair(as_grid(np.zeros((30, 30), int))),) * 3)]
    predictions_picture(tmp_path / "p.png", tasks, {}, ARC.card, shown=2, count=10)
    with Image.open(tmp_path / "p.png") as picture:
        # Three tests, two beside each other, each with input and two places for attempts.
        assert picture.width > picture.height > 300
    with pytest.raises(ValueError, match="no tests to draw"):
        predictions_picture(tmp_path / "p.png", [], {}, ARC.card, shown=2, count=10)
