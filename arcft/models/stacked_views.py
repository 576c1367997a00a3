"""Views of stacked adapters' weights, in the shapes in which the layers take them."""

from __future__ import annotations

import dataclasses
import functools

import torch

from arcft.models.stacked_layers import Factors
from arcft.models.stacked_parts import Layout, Parts


@dataclasses.dataclass(frozen=True)
class SlotWeights:
    """The weights of some adjacent slots."""

    factors: list[Factors]
    """One for each adapted linear layer."""

    copies: list[list[list[torch.Tensor]]]
    """For each module that is trained whole, and each slot, its parameters."""

    pairs: list[list[tuple[torch.Tensor, torch.Tensor]]]
    """For each module with adapted parameters, A and B of each of them, of the first slot."""


def slot_views(parts: Parts, layout: Layout, compute: torch.Tensor, low: int, high: int) -> SlotWeights:
    """Views of slots `low` to `high - 1` of `compute` [K, P], without gradients."""
    rows = low if high - low == 1 else slice(low, high)
    view = layout.view
    factors = [Factors(view(compute[rows], a), view(compute[rows], b)) for _, a, b in parts.linears]
    copies = [
        [[view(compute[slot], piece) for piece in pieces] for slot in range(low, high)] for _, pieces in parts.wholes
    ]
    pairs = [[(view(compute[low], a), view(compute[low], b)) for a, b in pieces] for _, pieces in parts.parameters]
    return SlotWeights(factors, copies, pairs)


def slot_leaves(
    parts: Parts, layout: Layout, compute: torch.Tensor, gradient: torch.Tensor, first: int, count: int
) -> SlotWeights:
    """Views of `count` slots from `first` on of `compute` [K, P], whose gradients accumulate in `gradient` [K, P]."""
    rows = first if count == 1 else slice(first, first + count)
    view, own_compute, own_gradient = layout.view, compute[rows], gradient[rows]
    factors = [
        Factors(view(own_compute, a), view(own_compute, b), view(own_gradient, a), view(own_gradient, b))
        for _, a, b in parts.linears
    ]

    @functools.cache
    def leaf(piece: int, slot: int) -> torch.Tensor:
        # Tied weights share a leaf.
        weight = view(compute[slot], piece).requires_grad_()
        weight.grad = view(gradient[slot], piece)
        return weight

    copies = [
        [[leaf(piece, slot) for piece in pieces] for slot in range(first, first + count)] for _, pieces in parts.wholes
    ]
    pairs = [[(leaf(a, first), leaf(b, first)) for a, b in pieces] for _, pieces in parts.parameters]
    return SlotWeights(factors, copies, pairs)
