"""The memory of a pass, measured without memory, against the sizes that can be counted by hand."""

from __future__ import annotations

import torch
from torch import nn

from arcft.training.footprint import Footprint, footprint

CPU = torch.device("cpu")


def two_layers() -> nn.Module:
    with torch.device("meta"):
        return nn.Sequential(nn.Linear(256, 1024, bias=False), nn.ReLU(), nn.Linear(1024, 256, bias=False))


def loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    # Integers are real: their values decide about shapes.
    rows = int(batch["rows"].max())
    with torch.no_grad():
        inputs = torch.ones(rows, 256)
    return model(inputs).sum()


def test_weights_gradients_and_what_is_saved_for_the_backward_pass_are_counted() -> None:
    found = footprint(
        two_layers(), [{"rows": torch.tensor([100])}], loss, device=CPU, autocast=None, keeps_gradients=False
    )
    weight = 256 * 1024 * 4
    assert found.weights == found.gradients == 2 * weight
    assert found.largest == weight
    hidden, ends = 100 * 1024 * 4, 100 * 256 * 4
    # At the end: both gradients, what the first layer's needs, and at most a few tensors on the way.
    at_least = 2 * weight + 2 * weight + hidden + ends
    assert at_least <= found.peak <= at_least + 2 * hidden + 2 * ends


def test_gradients_of_earlier_passes_are_there_while_activations_are() -> None:
    def peak(keeps_gradients: bool) -> int:
        batch = {"rows": torch.tensor([8192])}
        return footprint(two_layers(), [batch], loss, device=CPU, autocast=None, keeps_gradients=keeps_gradients).peak

    assert peak(True) - peak(False) >= 256 * 1024 * 4


def test_nothing_is_allocated() -> None:
    batch = {"rows": torch.tensor([2**30])}
    found = footprint(two_layers(), [batch], loss, device=CPU, autocast=None, keeps_gradients=False)
    assert found.peak > 2**40


def test_what_the_c_library_keeps_is_counted_apart() -> None:
    batches = [{"rows": torch.tensor([rows])} for rows in (300, 2000, 700, 2500)]

    def found(limit: int) -> Footprint:
        return footprint(
            two_layers(), batches, loss, device=CPU, autocast=None, keeps_gradients=False, heap_limit=limit
        )

    assert found(0).kept == 0
    assert found(2**40).peak == found(0).peak
    assert 0 <= found(2**40).kept < 2 * found(0).peak
