"""Curves: what is read from a run's history, and what is drawn of it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from matplotlib.figure import Figure
from PIL import Image

from arcft.reporting.charts.curves import Curves, _draw_metrics, curves_png, curves_svg, read_history
from arcft.reporting.charts.numbers import _draw
from arcft.scoring.resampling import SubsampledMetrics
from tests.support.arc import METRICS

FULL = Curves(
    train_loss=((1, 2.5), (2, 2.0)),
    eval_loss=((2, 2.25),),
    metrics={"accuracy": ((2, 0.125),), "correct_pixels": ((2, 0.5),)},
)


def write_history(folder: Path, *lines: str) -> None:
    (folder / "history.jsonl").write_text("\n".join(lines), encoding="utf-8")


def svg_texts(svg: str) -> list[str]:
    return [
        "".join(element.itertext()).strip() for element in ElementTree.fromstring(svg).iter() if "text" in element.tag
    ]


def test_history_is_read_by_name(tmp_path: Path) -> None:
    write_history(
        tmp_path,
        '{"step": 1, "loss": 2.5, "learning_rate": 0.1, "grad_norm": 1.0}',
        '{"step": 2, "loss": 2.0}',
        '{"step": 2, "eval_loss": 2.25}',
        '{"step": 2, "eval_correct_pixels": 0.5, "eval_accuracy": 0.125}',
    )
    curves = read_history(tmp_path, METRICS)
    assert curves == FULL
    assert list(curves.metrics) == ["accuracy", "correct_pixels"]
    assert curves.steps == (2,)


def test_a_resumed_run_repeats_steps_and_the_later_line_holds(tmp_path: Path) -> None:
    losses = [(1, 4.0), (2, 3.0), (3, 9.0), (2, 2.0), (3, 1.0)]
    write_history(tmp_path, *(json.dumps({"step": step, "loss": loss}) for step, loss in losses))
    assert read_history(tmp_path, METRICS).train_loss == ((1, 4.0), (2, 2.0), (3, 1.0))


def test_what_is_no_finite_number_at_a_step_is_passed_over(tmp_path: Path) -> None:
    write_history(
        tmp_path,
        '{"step": 1, "loss": NaN}',
        '{"step": 2, "loss": "high"}',
        '{"step": 3, "loss": true}',
        '{"step": 3, "loss": -Infinity}',
        f'{{"step": 3, "loss": 1{"0" * 400}}}',
        "[" * 100_000,
        '{"loss": 1.0}',
        "[1, 2]",
        "",
        '{"step": 4, "loss": 0}',
        '{"step": 5, "lo',
    )
    assert read_history(tmp_path, METRICS) == Curves(train_loss=((4, 0.0),))


def test_a_run_without_history_has_empty_curves(tmp_path: Path) -> None:
    curves = read_history(tmp_path, METRICS)
    assert curves == Curves()
    assert curves.is_empty
    assert curves_svg(curves, METRICS) == ""
    with pytest.raises(ValueError, match="no curves to draw"):
        curves_png(curves, METRICS)


def test_a_sweep_replaces_the_metrics_and_keeps_the_losses() -> None:
    sweep = FULL.with_metrics({20: {"vote_2": 0.5, "accuracy": 0.25}, 10: {"accuracy": 0.0}, 30: {}}, METRICS)
    assert sweep.metrics == {"accuracy": ((10, 0.0), (20, 0.25)), "vote_2": ((20, 0.5),)}
    assert sweep.steps == (10, 20)
    assert (sweep.train_loss, sweep.eval_loss) == (FULL.train_loss, FULL.eval_loss)


def test_svg_has_a_panel_for_what_is_known_and_takes_the_page_s_colour() -> None:
    svg = curves_svg(FULL, METRICS)
    texts = svg_texts(svg)
    assert [name for name in ("Loss", "Solved", "Grids") if name in texts] == ["Loss", "Solved", "Grids"]
    assert {"training", "validation", "accuracy", "correct_pixels"} <= set(texts)
    assert not {"vote_2", "pass_n", "correct_size"} & set(texts)
    assert "currentColor" in svg
    assert "#010203" not in svg
    assert "matplotlib.org" not in svg
    assert curves_svg(FULL, METRICS) == svg


def test_svg_of_losses_alone_has_one_panel() -> None:
    texts = svg_texts(curves_svg(Curves(train_loss=((1, 1.0), (2, 0.5))), METRICS))
    assert "Loss" in texts
    assert not {"Solved", "Grids", "validation"} & set(texts)


@pytest.mark.parametrize("stacked", [True, False])
def test_png_has_the_size_asked_for(stacked: bool) -> None:
    with Image.open(io.BytesIO(curves_png(FULL, METRICS, pixel_size=(540, 700), stacked=stacked))) as picture:
        assert picture.size == (540, 700)
        assert picture.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
    with Image.open(io.BytesIO(curves_png(Curves(metrics={"vote_2": ((5, 0.0),)}), METRICS))) as picture:
        assert picture.size == (560, 400)


def test_metrics_are_drawn_in_percent_from_zero() -> None:
    axes = Figure().subplots()
    _draw_metrics(Curves(metrics={"pass_n": ((10, 0.25), (20, 0.5))}), {"pass_n": "#7cc4f0"}, axes)
    (line,) = axes.get_lines()
    assert line.get_xydata().tolist() == [[10, 25], [20, 50]]
    low, high = axes.get_ylim()
    assert low < 0 < 50 < high
    assert axes.get_ylabel() == "%"


def test_scores_by_number_of_predictions_are_drawn_in_percent_with_their_deviation() -> None:
    axes = Figure().subplots()
    names = list(METRICS.by_rank)
    numbers = [
        SubsampledMetrics(count, mean=dict.fromkeys(names, mean), deviation=dict.fromkeys(names, 0.05))
        for count, mean in [(1, 0.25), (2, 0.5)]
    ]
    _draw(numbers, METRICS, axes)
    assert len(axes.containers) == len(names)
    line, _, (bars,) = axes.containers[0].lines
    assert line.get_xydata().tolist() == [[1, 25], [2, 50]]
    assert [bar[:, 1].tolist() for bar in bars.get_segments()] == [[20, 30], [45, 55]]
