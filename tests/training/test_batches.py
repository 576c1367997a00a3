"""Batches: padding, labels, positions, and that padding changes nothing."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from arcft.text.tokens import IGNORED, Example
from arcft.training.batches import Grouping, collate, group_by_length, pack
from arcft.training.evaluation import mean_loss
from arcft.training.loss import summed_cross_entropy
from tests.support.small_training import EVALUATION, PAD, VOCABULARY, adapted_model, small_model

SHORT = Example([5, 6, 7], [IGNORED, 6, 7], 1)
LONG = Example([8, 9, 10, 11, 12], [8, IGNORED, 10, IGNORED, 12], 0)


def test_rows_are_padded_on_the_right_and_the_first_label_is_never_a_target() -> None:
    batch = collate([SHORT, LONG], pad_id=3)
    assert batch.keys() == {"input_ids", "labels"}
    assert batch["input_ids"].tolist() == [[5, 6, 7, 3, 3], [8, 9, 10, 11, 12]]
    assert batch["labels"].tolist() == [[-100, 6, 7, -100, -100], [-100, -100, 10, -100, 12]]
    assert batch["input_ids"].dtype == batch["labels"].dtype == torch.int64


def of_lengths(*lengths: int) -> list[Example]:
    return [Example([5 + number] * length, [5] * length, 1) for number, length in enumerate(lengths)]


@pytest.mark.parametrize(
    ("max_tokens", "max_rows", "expected"),
    [
        (None, None, [[9, 5, 5, 3, 2, 2]]),
        (10, None, [[9], [5, 5], [3, 2, 2]]),
        (9, None, [[9], [5], [5], [3, 2, 2]]),
        (8, None, [[9], [5], [5], [3, 2], [2]]),
        (1, None, [[9], [5], [5], [3], [2], [2]]),
        (27, None, [[9, 5, 5], [3, 2, 2]]),
        (27, 2, [[9, 5], [5, 3], [2, 2]]),
        (None, 4, [[9, 5, 5, 3], [2, 2]]),
    ],
)
def test_groups_are_of_like_length_and_no_larger_than_allowed(
    max_tokens: int | None, max_rows: int | None, expected: list[list[int]]
) -> None:
    groups = group_by_length(of_lengths(2, 5, 9, 3, 5, 2), max_tokens=max_tokens, max_rows=max_rows)
    assert [[len(example.input_ids) for example in group] for group in groups] == expected
    # Equal lengths stay in their order, so that a batch is always grouped alike.
    assert [example.input_ids[0] for group in groups for example in group] == [7, 6, 9, 8, 5, 10]


def test_a_batch_without_groups_is_collated_as_it_comes() -> None:
    whole = Grouping(pad_id=3)([SHORT, LONG])
    assert whole["tokens"] == 8
    assert [group["input_ids"].tolist() for group in whole["groups"]] == [[[5, 6, 7, 3, 3], [8, 9, 10, 11, 12]]]
    grouped = Grouping(pad_id=3, max_batch_tokens=9)([SHORT, LONG])
    assert grouped["tokens"] == 8
    assert [group["input_ids"].tolist() for group in grouped["groups"]] == [[[8, 9, 10, 11, 12]], [[5, 6, 7]]]


def test_jumping_positions_come_with_a_mask_of_ones() -> None:
    def tens(ids: Sequence[int], after: int = -1) -> list[int]:
        return [after + 10 * place for place, _ in enumerate(ids, 1)]

    batch = collate([SHORT, LONG], pad_id=3, positions=tens)
    assert batch["position_ids"].tolist() == [[9, 19, 29, 39, 49]] * 2
    assert batch["attention_mask"].tolist() == [[1] * 5] * 2


def test_positions_that_jump_are_not_taken_for_packed_documents() -> None:
    model = small_model()
    ids = list(range(5, 15))
    whole = Example(ids, ids, 0)

    def jumping(row: Sequence[int], after: int = -1) -> list[int]:
        return [place if place < 5 else place + 20 for place, _ in enumerate(row, after + 1)]

    batch = collate([whole], PAD, jumping)
    with torch.no_grad():
        before = model(**{key: value for key, value in batch.items() if key != "labels"}).logits
        batch["input_ids"][0, 0] = 20
        after = model(**{key: value for key, value in batch.items() if key != "labels"}).logits
    # The last token still sees the first one, across the jump.
    assert not torch.allclose(before[0, -1], after[0, -1])


def plain_loss(model: torch.nn.Module, examples: list[Example]) -> tuple[float, int]:
    """Each example on its own, all logits, a Python loop over the labels."""
    total, count = 0.0, 0
    for example in examples:
        with torch.no_grad():
            logs = model(input_ids=torch.tensor([example.input_ids])).logits[0].double().log_softmax(-1)
        for position, label in enumerate(example.labels):
            if label != IGNORED and position > 0:
                total -= logs[position - 1, label].item()
                count += 1
    return total, count


def test_the_loss_is_that_of_a_plain_loop() -> None:
    model = small_model()
    examples = [*EVALUATION, LONG, SHORT]
    expected, count = plain_loss(model, examples)
    with torch.no_grad():
        loss, tokens = summed_cross_entropy(model, collate(examples, PAD))
    assert int(tokens) == count
    assert abs(loss.item() - expected) < 1e-3


def test_the_head_runs_only_where_it_is_needed() -> None:
    model = small_model()
    shapes: list[tuple[int, ...]] = []
    model.lm_head.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape)))
    summed_cross_entropy(model, collate([LONG, SHORT], PAD))
    # LONG is supervised at 2 and 4 (0 has nothing before it), SHORT at 1 and 2.
    assert shapes == [(1, 4, VOCABULARY)]


def test_the_mean_loss_does_not_depend_on_batches_or_order() -> None:
    model = adapted_model().eval()
    losses = [
        mean_loss(model, examples, Grouping(pad_id=PAD), batch_size=size)
        for size, examples in [(1, EVALUATION), (3, EVALUATION), (10, EVALUATION[::-1])]
    ]
    total, count = plain_loss(model, EVALUATION)
    assert all(abs(loss - total / count) < 1e-5 for loss in losses)


def test_packed_examples_lie_in_one_row_and_none_has_a_first_target() -> None:
    batch = pack([SHORT, LONG])
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9, 10, 11, 12]]
    assert batch["labels"].tolist() == [[-100, 6, 7, -100, -100, 10, -100, 12]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 2, 3, 4]]
    assert batch["lengths"] == (3, 5)
    assert pack([SHORT], lambda ids, after=-1: [7, 9, 40])["position_ids"].tolist() == [[7, 9, 40]]


@pytest.mark.parametrize(
    ("max_tokens", "max_rows", "expected"),
    [(None, None, [[9, 5, 5, 3, 2, 2]]), (12, None, [[9, 3], [5, 5, 2], [2]]), (14, 2, [[9, 5], [5, 3], [2, 2]])],
)
def test_packed_groups_are_filled_up(max_tokens: int | None, max_rows: int | None, expected: list[list[int]]) -> None:
    groups = group_by_length(of_lengths(2, 5, 9, 3, 5, 2), max_tokens=max_tokens, max_rows=max_rows, packing=True)
    assert [[len(example.input_ids) for example in group] for group in groups] == expected


def test_the_mean_loss_is_measured_in_halves_where_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model()
    rows: list[int] = []
    examples = [Example([2, 3, 4 + number, 5], [IGNORED, 3, 4 + number, 5], 1) for number in range(7)]
    whole = mean_loss(model, examples, Grouping(pad_id=0), batch_size=7)

    def limited(*arguments: object, input_ids: torch.Tensor, **options: object) -> object:
        rows.append(len(input_ids))
        if len(input_ids) > 2:
            raise torch.OutOfMemoryError
        return forward(*arguments, input_ids=input_ids, **options)

    forward = model.forward
    monkeypatch.setattr(model, "forward", limited)
    assert mean_loss(model, examples, Grouping(pad_id=0), batch_size=7) == pytest.approx(whole, rel=1e-6)
    assert rows[0] == 7
    assert sorted(count for count in rows if count <= 2) == [1, 2, 2, 2]
