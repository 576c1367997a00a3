"""Prompts: the exact words, where outputs stand in them, and the way back from an answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from arcft.config.schema import from_dict
from arcft.problems.arc.config.prompt import PromptConfig
from arcft.problems.arc.format.encoders import (
    GridCodeBlockEncoder,
    GridEncoder,
    GridParseError,
    GridShapeEncoder,
    MinimalGridEncoder,
    RowNumberEncoder,
    build_encoder,
)
from arcft.problems.arc.format.grid_format import GridFormat
from arcft.problems.arc.questions import GridQuestion, ask_input, ask_output
from arcft.problems.arc.task import Pair, Task, as_grid
from tests.support.paths import ROOT

CONF = ROOT / "conf"
PROMPTS = sorted((CONF / "prompt").glob("*.yaml"))
ENCODERS = sorted((CONF / "encoder").glob("*.yaml"))
TASK = Task(
    "00000001",
    train=(
        Pair(as_grid([[1, 2]]), as_grid([[2, 1]])),
        Pair(as_grid([[3, 4]]), as_grid([[4, 3]])),
        Pair(as_grid([[3, 3]]), as_grid([[3, 3]])),
    ),
    test=(Pair(as_grid([[5, 6]]), as_grid([[6, 5]])), Pair(as_grid([[7], [8]]))),
)
WORDS = PromptConfig(
    system="Be brief.",
    intro="Solve {{this}}.\n",
    demonstration="Pair {number}: {input} to {output}.\n",
    test="Now {input}.\n",
    answer="It is ",
    input_intro="Inputs:\n",
    input_demonstration="{number} {input}\n",
    input_test="One more.\n",
    input_answer="Say ",
)


def prompt_config(path: Path) -> PromptConfig:
    return from_dict(PromptConfig, yaml.safe_load(path.read_text(encoding="utf-8")))


def encoder_of(path: Path) -> GridEncoder:
    return build_encoder(yaml.safe_load(path.read_text(encoding="utf-8"))["grid"])


def test_output_problem() -> None:
    text = GridFormat(WORDS, MinimalGridEncoder()).render(ask_output(TASK, 0))
    assert text.system == "Be brief."
    assert text.user == "Solve {this}.\nPair 1: 12 to 21.\nPair 2: 34 to 43.\nPair 3: 33 to 33.\nNow 56.\n"
    assert text.opener == "It is "
    assert text.completion == "65"
    assert [text.user[start:end] for start, end in text.output_spans] == ["21", "43", "33"]
    assert text.output_spans[2] == (64, 66)  # the output, not the input that reads the same


def test_input_problem() -> None:
    text = GridFormat(WORDS, MinimalGridEncoder()).render(ask_input(TASK, 1))
    assert text.user == "Inputs:\n1 12\n2 34\n3 33\nOne more.\n"
    assert text.opener == "Say "
    assert text.completion == "7\n8"
    assert [text.user[start:end] for start, end in text.output_spans] == ["12", "34", "33"]


def test_an_unknown_answer_has_no_completion() -> None:
    text = GridFormat(WORDS, MinimalGridEncoder()).render(ask_output(TASK, 1))
    assert text.completion == ""
    assert text.user.endswith("Now 7\n8.\n")


@pytest.mark.parametrize(
    ("encoder", "opener", "completion"),
    [
        (MinimalGridEncoder(), "It is ", "65"),
        (GridCodeBlockEncoder(MinimalGridEncoder()), "It is ```grid\n", "65\n```"),
        (GridShapeEncoder(RowNumberEncoder(MinimalGridEncoder())), "It is ```grid shape: ", "1x2\n1 65\n```"),
    ],
)
def test_the_opener_takes_what_is_fixed_of_the_grid(encoder: GridEncoder, opener: str, completion: str) -> None:
    format = GridFormat(WORDS, encoder)
    text = format.render(ask_output(TASK, 0))
    assert (text.opener, text.completion) == (opener, completion)
    assert format.parse(completion).to_json() == [[6, 5]]
    with pytest.raises(GridParseError):
        format.parse(completion + "\n")


def test_the_grid_only_prompt_to_the_letter() -> None:
    format = GridFormat(prompt_config(CONF / "prompt" / "grid_only.yaml"), MinimalGridEncoder())
    text = format.render(ask_output(TASK, 0))
    assert text.system == ""
    assert text.user + text.opener == (
        "Input\n12\nOutput\n21\nInput\n34\nOutput\n43\nInput\n33\nOutput\n33\nInput\n56\nOutput\n"
    )


@pytest.mark.parametrize("path", PROMPTS, ids=lambda path: path.stem)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_every_prompt_with_every_encoder(path: Path, data: Any) -> None:
    config = prompt_config(path)
    encoder = encoder_of(data.draw(st.sampled_from(ENCODERS)))
    side = st.integers(1, 4)
    rows = side.flatmap(lambda width: st.lists(st.lists(st.integers(0, 9), min_size=width, max_size=width), min_size=1))
    grids = st.builds(as_grid, rows.filter(lambda grid: len(grid) <= 30))
    pairs = tuple(data.draw(st.lists(st.builds(Pair, grids, grids), min_size=1, max_size=3)))
    kind = data.draw(st.sampled_from(["output", "input"]))
    answer = data.draw(grids)
    problem = GridQuestion("id", pairs, data.draw(grids) if kind == "output" else None, answer, kind)
    format = GridFormat(config, encoder)
    text = format.render(problem)
    shown = [pair.output if kind == "output" else pair.input for pair in pairs]
    assert [text.user[start:end] for start, end in text.output_spans] == [
        encoder.to_text(grid) for grid in shown if grid is not None
    ]
    assert (text.opener + text.completion).endswith(encoder.to_text(answer))
    assert format.parse(text.completion).to_json() == answer.tolist()
    if problem.query is not None:
        assert encoder.to_text(problem.query) in text.user[text.output_spans[-1][1] :]
