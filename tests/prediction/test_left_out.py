"""Demonstrations that prompts leave out to fit the context are counted."""

from __future__ import annotations

import pytest

from arcft.prediction.prompts import augmented_prompts, demonstrations_left_out
from arcft.runs.setup.build import view_dealer
from tests.support.arc import ARC
from tests.support.evaluate_command import SMALL_EVALUATION_TASKS, arc_tasks
from tests.support.small_engine import inference_config, make_builder

CONFIG = inference_config(predictions_per_test=4, max_new_tokens=None, grammar=False)


@pytest.mark.parametrize("limit", [60, 110, 160, 220, 300, 512])
def test_a_count_for_each_task_with_a_shorter_prompt(limit: int) -> None:
    """Held to the prompts themselves."""
    whole, short = make_builder(), make_builder()
    short.max_seq_length = limit
    deal = view_dealer(ARC, CONFIG)
    for task in arc_tasks("evaluation", *SMALL_EVALUATION_TASKS):
        tests = range(len(task.test))
        expected = [
            (len(long.token_ids), len(cut.token_ids))
            for index in tests
            for long, cut in zip(
                *(augmented_prompts(one, deal, task, index, CONFIG) for one in (whole, short)), strict=True
            )
        ]
        found = demonstrations_left_out(short, deal, task, CONFIG)
        if any(cut == 0 for _, cut in expected):
            assert found is None
        elif all(cut == long for long, cut in expected):
            assert found == 0
        else:
            assert found is not None
            assert 1 <= found < len(task.train)
