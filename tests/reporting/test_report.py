"""The report: complete, self-contained, escaped, honest about what it leaves out; and the summary picture."""

from __future__ import annotations

import base64
import dataclasses
import io
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageColor

import arcft.reporting.html.page
from arcft.problems.arc.drawing.colors import PALETTE
from arcft.problems.arc.drawing.drawings import grid_html
from arcft.problems.arc.scoring.verifier import Consistency
from arcft.problems.arc.task import Grid, Pair, Task, as_grid
from arcft.reporting.charts.curves import Curves
from arcft.reporting.outcomes import sorted_results
from arcft.reporting.pictures.summary import EDGE, WARNING, evenly
from arcft.reporting.pictures.tiles import PAPER, fit_box, tile_size
from arcft.reporting.report import write_report
from arcft.reporting.words import percent
from arcft.scoring.predictions import Prediction, PredictionError, group_by_test
from arcft.scoring.resampling import SubsampledMetrics
from arcft.scoring.selection import Score, Selector, Verify, Vote
from tests.support.arc import ARC, METRICS, prediction, scored

TRUTH, NEAR, FAR = as_grid([[1, 2], [3, 4]]), as_grid([[1, 2], [3, 0]]), as_grid([[5]])
CURVES = Curves(train_loss=((1, 2.0), (2, 1.0)), metrics={"vote_2": ((2, 0.5),)})
VOID = {"meta", "img", "br", "hr"}


def task(task_id: str, *truths: Grid | None) -> Task:
    return Task(task_id, (Pair(TRUTH, NEAR),), tuple(Pair(FAR, truth) for truth in truths or (TRUTH,)))


def answers(task_id: str, *grids: Grid | None, test_index: int = 0) -> list[Prediction]:
    return [prediction(grid, task_id, test_index, error=None if grid is not None else "row 3 <b>") for grid in grids]


# One task for each way to end, in an order that is not the report's.
TASKS = [task("none"), task("far"), task("half", TRUTH, TRUTH), task("hidden"), task("near"), task("full")]
PREDICTIONS = [
    *answers("none", None, None),
    *answers("far", FAR),
    *answers("half", TRUTH),
    *answers("half", NEAR, test_index=1),
    *answers("hidden", NEAR, NEAR, FAR, FAR, TRUTH),
    *answers("near", NEAR, FAR),
    *answers("full", TRUTH, NEAR),
]


def write(
    folder: Path,
    tasks: Sequence[Task],
    predictions: Sequence[Prediction],
    selector: Selector = Vote(),  # noqa: B008
    **options: Any,
) -> str:
    candidates = selector.candidates(tasks, predictions)
    scores = scored(tasks, predictions, selector)
    values: dict[str, Any] = {"title": "A run", "run": {"model": {"name": "tiny"}}, "curves": CURVES, **options}
    write_report(
        folder,
        scores=scores if scores.metrics else None,
        problems=tasks,
        predictions=predictions,
        candidates=candidates,
        metric_set=METRICS,
        card=ARC.card,
        **values,
    )
    assert {path.name for path in folder.iterdir()} - {"numbers.png"} == {"report.html", "summary.png"}
    return (folder / "report.html").read_text(encoding="utf-8")


class Balance(HTMLParser):
    """Raises where an end tag does not close the tag that is open."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"line {self.getpos()}"

    def handle_data(self, data: str) -> None:
        self.text += data


def parsed(html: str) -> Balance:
    balance = Balance()
    balance.feed(html)
    balance.close()
    assert balance.open == []
    return balance


def test_one_file_that_is_well_formed_and_fetches_nothing(tmp_path: Path) -> None:
    html = write(tmp_path, TASKS, PREDICTIONS)
    page = parsed(html)
    assert not page.tags & {"script", "link", "iframe", "object"}
    addresses = set(re.findall(r"https?://[^\s\"']+", html))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert set(re.findall(r"\bsrc=\"(\w+:)", html)) == {"data:"}
    assert "svg" in page.tags
    assert "model.name" in page.text


def test_tasks_are_sorted_by_how_they_ended(tmp_path: Path) -> None:
    groups = group_by_test(TASKS, PREDICTIONS)
    candidates = Vote().candidates(TASKS, PREDICTIONS)
    results = sorted_results(TASKS, scored(TASKS, PREDICTIONS), groups, candidates, METRICS)
    assert [(result.problem.id, result.outcome.name) for result in results] == [
        ("full", "solved"),
        ("half", "partly solved"),
        ("hidden", "found, not chosen"),
        ("near", "unsolved"),
        ("far", "unsolved"),
        ("none", "unanswered"),
    ]
    html = write(tmp_path, TASKS, PREDICTIONS)
    assert re.findall(r"<h3>(\w+)</h3>", html) == ["full", "half", "hidden", "near", "far", "none"]
    titles = re.findall(r"<h2>(\w[^<]*): (\d+) tasks?</h2>", html)
    assert titles == [
        ("Solved", "1"), ("Partly solved", "1"), ("Found, not chosen", "1"), ("Unsolved", "2"), ("Unanswered", "1"),
    ]  # fmt: skip


def test_numbers_and_verdicts(tmp_path: Path) -> None:
    text = parsed(write(tmp_path, TASKS, PREDICTIONS)).text
    assert "6 tasks, 7 tests, 1 to 5 predictions a test" in text
    assert "25.0%± 17.1vote_2" in re.sub(r"\s*±", "±", text).replace("\n", "")  # (1 + 1/2) of 6 tasks
    assert "attempt 1 ✓ right" in text
    assert "attempt 1 ✗ 1 wrong cell" in text
    assert "attempt 1 ✗ wrong size" in text
    assert (
        "5 predictions, 3 different grids (votes: 2, 2, 1). The right answer is there, in place 3 with 1 vote." in text
    )
    assert "Why 2 predictions had no valid grid" in text
    assert "row # <b>" in text


def test_what_a_selection_goes_by(tmp_path: Path) -> None:
    scored = [
        dataclasses.replace(one, scores=scores)
        for one, scores in zip(answers("full", NEAR, TRUTH, FAR, NEAR), [(-4.5,), (-0.25,), None, None], strict=True)
    ]
    text = parsed(write(tmp_path, [task("full")], scored, selector=Score(views=8))).text
    assert "4 predictions, 3 different grids (votes: 1, 2, 1; scores: -0.25, -4.5, –)." in text
    assert "attempt 1 ✓ right" in text
    verify = Verify(Consistency())
    text = parsed(write(tmp_path, [task("full")], answers("full", NEAR, FAR), selector=verify)).text
    assert "(votes: 1, 1; scores: 0.667, 0.333)." in text
    assert "Attempt 1 breaks what the demonstrations share: not the input itself." in text


def test_numbers_of_predictions(tmp_path: Path) -> None:
    at = {"pass_n": 0.5, "vote_1": 0.0, "vote_2": 0.25}
    numbers = [
        SubsampledMetrics(1, mean=at, deviation=dict.fromkeys(at, 0.125)),
        SubsampledMetrics(3, mean=at, deviation=dict.fromkeys(at, 0.0)),
    ]  # fmt: skip
    html = write(tmp_path, TASKS, PREDICTIONS, numbers=numbers)
    section = html.partition("<h2>Numbers of predictions</h2>")[2].partition("<h2>")[0]
    page = parsed(section)
    rows = [" ".join(parsed(row).text.split()) for row in re.findall("<tr>.*?</tr>", section)]
    assert rows[0] == "predictions a testpass_nvote_1vote_2"
    assert rows[1:3] == ["150.0% ± 12.50% ± 12.525.0% ± 12.5", "350.0%0%25.0%"]
    assert "svg" in page.tags
    assert "standard deviation over draws" in page.text
    with Image.open(tmp_path / "numbers.png") as picture:
        assert picture.size[0] > 400
    assert "Numbers of predictions" not in write(tmp_path, TASKS, PREDICTIONS)


def test_text_of_strangers_is_escaped(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\"'&"
    html = write(
        tmp_path, [task(evil)], [prediction(None, evil, text=evil, error=evil)], title=evil, run={evil: {evil: evil}}
    )
    page = parsed(html)
    assert "script" not in page.tags
    assert page.text.count(evil) >= 6
    assert "default-src 'none'" in html


def test_control_characters_reach_neither_page_nor_pictures(tmp_path: Path) -> None:
    evil = "a\x1b[31m\x07\r\nb\u202e\ud800$\\frac$"
    html = write(
        tmp_path, [task(evil)], [prediction(None, evil, text=evil, error=evil)], title=evil, run={evil: {evil: evil}}
    )
    assert html.count(r"a\x1b[31m\x07\r") >= 6
    assert all(character.isprintable() or character == "\n" for character in html)
    with Image.open(tmp_path / "summary.png") as picture:
        assert picture.size == (1920, 1080)


def test_text_that_is_no_unicode_is_shown_all_the_same(tmp_path: Path) -> None:
    assert r"half \ud800 a pair" in write(tmp_path, [task("a")], [prediction(None, "a", text="half \ud800 a pair")])


def test_without_known_answers(tmp_path: Path) -> None:
    tasks = [task("a", None), task("b", None)]
    html = write(tmp_path, tasks, answers("a", NEAR), curves=None)
    text = parsed(html).text
    assert "The right answers are not known, so there are no metrics." in text
    assert "1 answered" in text
    assert "1 unanswered" in text
    assert "No predictions." in text
    for word in ("true output", "wrong", "✓", "✗", "vote_2", "Training"):
        assert word not in text.partition("How to read this")[0]


def test_one_task_alone_has_no_standard_error(tmp_path: Path) -> None:
    text = parsed(write(tmp_path, [task("full")], answers("full", TRUTH), curves=None)).text
    assert "Means over 1 task." in text
    assert "±" not in text
    assert not re.search(r"\bnan\b", text)


def test_what_does_not_fit_is_listed_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = write(tmp_path, TASKS, PREDICTIONS)
    monkeypatch.setattr(arcft.reporting.html.page, "MOST_BYTES", 6000)
    html = write(tmp_path, TASKS, PREDICTIONS)
    assert len(re.findall("<article", html)) == len(TASKS)
    assert 0 < html.count("<img") < whole.count("<img")
    left_out = sum("<img" not in card for card in html.split("<article")[1:])
    assert f"<b>{left_out} tasks</b> above could not be drawn" in html
    assert "could not be drawn" not in whole


def test_predictions_of_other_tasks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PredictionError, match="none of the 1 predictions"):
        write_report(
            tmp_path,
            title="",
            scores=None,
            problems=TASKS,
            predictions=answers("z", FAR),
            candidates={},
            metric_set=METRICS,
            card=ARC.card,
            run={},
            curves=None,
        )
    assert list(tmp_path.iterdir()) == []


def images_of(html: str) -> list[Image.Image]:
    encoded = re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", html)
    return [Image.open(io.BytesIO(base64.b64decode(text))) for text in encoded]


def test_a_drawn_grid_holds_every_cell() -> None:
    grid = as_grid(np.arange(30).reshape(3, 10) % 10)
    html = grid_html(grid, 8)
    (image,) = images_of(html)
    assert "--w:10;--h:3;--c:8" in html
    colors = [ImageColor.getrgb(color) for color in PALETTE]
    pixels = np.asarray(image.convert("RGB"))
    assert pixels.tolist() == [[list(colors[cell]) for cell in row] for row in grid]


def test_wrong_cells_and_no_others_carry_a_dot() -> None:
    truth = as_grid(np.zeros((2, 3), dtype=int))
    attempt = as_grid([[0, 7, 0], [0, 0, 7]])
    _, dots = images_of(grid_html(attempt, 8, truth=truth))
    alpha = np.asarray(dots.convert("RGBA"))[..., 3].reshape(2, 5, 3, 5).max(axis=(1, 3)) > 0
    assert alpha.tolist() == [[False, True, False], [False, False, True]]
    assert len(images_of(grid_html(truth, 8, truth=truth))) == 1
    assert len(images_of(grid_html(FAR, 8, truth=truth))) == 1


@pytest.mark.parametrize("curves", [CURVES, None])
@pytest.mark.parametrize("number", [1, 60])
@pytest.mark.parametrize("known", [True, False])
def test_summary_picture(tmp_path: Path, number: int, known: bool, curves: Curves | None) -> None:
    tasks = [task(f"task{index}", TRUTH if known else None) for index in range(number)]
    predictions = [one for each in tasks for one in answers(each.id, NEAR)]
    write(tmp_path, tasks, predictions, curves=curves, title="A very long title " * 20)
    with Image.open(tmp_path / "summary.png") as picture:
        assert picture.size == (1920, 1080)
        pixels = np.asarray(picture.convert("RGB"))
    # Something is drawn, and nothing runs into the border.
    assert (pixels != 255).any()
    border = np.concatenate(
        [pixels[:24].ravel(), pixels[-12:].ravel(), pixels[:, :40].ravel(), pixels[:, -40:].ravel()]
    )
    assert (border == 255).all()


def test_boxes_are_as_large_as_fits() -> None:
    for num_tiles, area in [(1, (1800, 700)), (7, (1800, 700)), (400, (1800, 700)), (30, (1200, 660))]:
        box, room = fit_box(num_tiles, 3, area, smallest=104, largest=520)
        width, height = tile_size(3, box)
        assert 104 <= box <= 520
        assert 1 <= room <= num_tiles
        assert width <= area[0]
        assert height <= area[1]
        assert fit_box(room, 3, area, smallest=104, largest=520) == (box, room)
    assert fit_box(1, 3, (1800, 700), smallest=104, largest=520)[0] == 520


def test_examples_are_spread_evenly() -> None:
    assert evenly(range(10), 4) == [0, 3, 6, 9]
    assert evenly(range(3), 5) == [0, 1, 2]
    assert evenly(range(9), 1) == [0]
    assert evenly(range(9), 0) == []


def test_percentages() -> None:
    assert [percent(value) for value in (0, 0.0004, 0.125, 0.9996, 1)] == ["0%", "0.0%", "12.5%", "100.0%", "100%"]


@pytest.mark.parametrize("note", ["25 of 25 tasks were trained on", "all of it was seen before, " * 4])
def test_the_warning_in_the_summary_picture_stands_clear_of_the_words_beside_it(tmp_path: Path, note: str) -> None:
    write(tmp_path, TASKS, PREDICTIONS, note=note)
    with Image.open(tmp_path / "summary.png") as picture:
        line = np.asarray(picture.convert("RGB")).astype(int)[96:132]
    is_red = (abs(line - ImageColor.getrgb(WARNING)) < 8).all(axis=-1).any(axis=0)
    begins = int(is_red.argmax())
    assert begins > EDGE
    before = line[:, begins - 20 : begins - 2]
    assert (before == ImageColor.getrgb(PAPER)).all()
    assert (line[:, EDGE : begins - 20] != ImageColor.getrgb(PAPER)).any()
