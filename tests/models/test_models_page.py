"""docs/models.md is what is measured. `python -m tests.support.models_page` writes it anew."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers

from arcft.models.families import MEASURED_WITH
from tests.support.model_table import measured, names
from tests.support.models_page import PAGE, on_two_ranks, page, row, rows_of

pytestmark = pytest.mark.skipif(
    tuple(map(int, transformers.__version__.split(".")[:2])) != MEASURED_WITH, reason="measured with another release"
)
# One of each kind of row; all are measured with the slow tests.
SAMPLE = ("llama", "qwen3_moe", "mamba", "bart", "falcon", "laguna")
ROWS = rows_of(PAGE.read_text(encoding="utf-8"))


def test_the_page_is_whole() -> None:
    assert list(ROWS) == names()
    assert page(ROWS) == PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "name", [name if name in SAMPLE else pytest.param(name, marks=pytest.mark.slow) for name in names()]
)
def test_a_row_is_what_is_measured(name: str, tmp_path: Path) -> None:
    assert row(measured(name, tmp_path), ROWS[name]["ranks"]) == ROWS[name]


@pytest.mark.slow
def test_two_ranks_take_the_step_of_one_process() -> None:
    assert on_two_ranks(names()) == {name: cells["ranks"] for name, cells in ROWS.items()}
