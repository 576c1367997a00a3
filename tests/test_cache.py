"""The roomy cache holds what transformers' own holds, whatever is done to it."""

from __future__ import annotations

import torch
from transformers.cache_utils import DynamicLayer

from arcft.inference.cache import ROOM, RoomyLayer


def test_a_roomy_layer_holds_what_a_dynamic_layer_holds() -> None:
    generator = torch.Generator().manual_seed(0)
    plain, roomy = DynamicLayer(), RoomyLayer()

    def update(batch: int, tokens: int) -> None:
        keys, values = torch.randn(2, batch, 2, tokens, 4, generator=generator)
        expected, found = plain.update(keys, values), roomy.update(keys, values)
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
        assert roomy.get_seq_length() == plain.get_seq_length()

    update(3, 7)
    for _ in range(ROOM + 20):  # past the end of the first room
        update(3, 1)
    rows = torch.tensor([2, 0])
    for layer in (plain, roomy):
        layer.reorder_cache(rows)  # type: ignore[arg-type]
    update(2, 1)
    update(2, 5)
    for layer in (plain, roomy):
        layer.crop(-4)
    update(2, 2)
    for layer in (plain, roomy):
        layer.batch_repeat_interleave(3)
    update(6, 1)
    for layer in (plain, roomy):
        layer.batch_select_indices(torch.tensor([5, 1, 1]))
    update(3, 1)
    update(3, ROOM + 1)


def test_a_step_does_not_copy_what_came_before() -> None:
    roomy = RoomyLayer()
    roomy.update(torch.zeros(1, 1, 10, 4), torch.zeros(1, 1, 10, 4))
    places = set()
    for _ in range(ROOM):
        keys, _ = roomy.update(torch.ones(1, 1, 1, 4), torch.ones(1, 1, 1, 4))
        places.add(keys.data_ptr())
    assert len(places) == 1
