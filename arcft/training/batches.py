"""Batches of tensors from examples of different lengths."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, TypedDict

import torch

from arcft.protocols import Positions
from arcft.text.tokens import IGNORED, Example

Group = dict[str, Any]
"""The tensors of a forward pass; from `pack`, also the lengths of its examples."""
IDLE_TOKENS = 2
"""Tokens of a forward pass that only keeps other ranks company."""


class Batch(TypedDict):
    """What the data loader yields: examples whose losses are summed, in groups that share a forward pass."""

    groups: list[Group]
    """As `collate` or `pack` makes them."""

    examples: list[Example]
    """What the groups hold, in the order given."""

    tokens: int
    """Tokens of all examples, without padding."""


@dataclasses.dataclass(frozen=True)
class StepShare:
    """What one rank contributes to an optimizer step."""

    supervised: int
    """Supervised tokens."""

    tokens: int
    """All tokens, without padding."""

    passes: list[int]
    """Forward passes of each batch."""


def step_share(batches: Sequence[Batch]) -> StepShare:
    """The share of an optimizer step that `batches` are."""
    return StepShare(
        supervised=sum(int(group["labels"].ne(IGNORED).sum()) for batch in batches for group in batch["groups"]),
        tokens=sum(batch["tokens"] for batch in batches),
        passes=[len(batch["groups"]) for batch in batches],
    )


def add_idle_passes(batches: Sequence[Batch], passes: Sequence[Sequence[int]]) -> None:
    """Give each of `batches` as many groups as the rank with the most has for it, by groups without a label.

    `passes` are those of each rank's batches.
    """
    for batch, wanted in zip(batches, map(max, zip(*passes, strict=True)), strict=True):
        last = batch["groups"][-1]
        idle: Group = {name: value[:1, :IDLE_TOKENS] for name, value in last.items() if isinstance(value, torch.Tensor)}
        idle["labels"] = torch.full_like(idle["labels"], IGNORED)
        if "lengths" in last:
            idle["lengths"] = (idle["labels"].shape[1],)
        batch["groups"] += [idle] * (wanted - len(batch["groups"]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grouping:
    """How examples become forward passes; the collate function of the data loader."""

    pad_id: int
    """Token that pads rows on the right."""

    positions: Positions | None = None
    """Position ids that jump; None counts from 0."""

    max_batch_tokens: int | None = None
    """Maximum tokens in a forward pass, padding included."""

    packing: bool = False
    """Lay the examples of a forward pass in one row without padding."""

    def __call__(self, examples: Sequence[Example], max_rows: int | None = None) -> Batch:
        """A batch of `examples` in groups of at most `max_rows`; without limits one group, in the order given."""
        unlimited = self.max_batch_tokens is None and max_rows is None
        groups = [examples] if unlimited else self.groups(examples, max_rows)
        return Batch(
            groups=[self.collate(group) for group in groups],
            examples=list(examples),
            tokens=sum(len(example.input_ids) for example in examples),
        )

    def groups(self, examples: Sequence[Example], max_rows: int | None = None) -> Sequence[Sequence[Example]]:
        """The examples of each forward pass, by `group_by_length`."""
        return group_by_length(examples, max_tokens=self.max_batch_tokens, max_rows=max_rows, packing=self.packing)

    def collate(self, examples: Sequence[Example]) -> Group:
        """A forward pass."""
        if self.packing:
            return pack(examples, self.positions)
        return collate(examples, self.pad_id, self.positions)


def rows_of(group: Group) -> int:
    """The number of examples in a group."""
    return len(group["lengths"] if "lengths" in group else group["labels"])


def group_by_length(
    examples: Sequence[Example], *, max_tokens: int | None, max_rows: int | None = None, packing: bool = False
) -> list[list[Example]]:
    """Sort `examples`, the longest first, into groups of at most `max_tokens` tokens each and `max_rows` examples; None
    is no limit. An example longer than `max_tokens` forms its own group.

    With `packing`, padding does not count, and an example goes into the first group that has room for it.
    """
    if packing:
        return _fill(examples, max_tokens, max_rows)
    groups: list[list[Example]] = []
    # The longest first, so that a run that does not fit in memory fails early.
    for example in sorted(examples, key=lambda example: len(example.input_ids), reverse=True):
        rows = len(groups[-1]) + 1 if groups else 1
        padded = rows * len(groups[-1][0].input_ids) if groups else 0
        full = (max_tokens is not None and padded > max_tokens) or (max_rows is not None and rows > max_rows)
        if full or not groups:
            groups.append([])
        groups[-1].append(example)
    return groups


def _fill(examples: Sequence[Example], max_tokens: int | None, max_rows: int | None) -> list[list[Example]]:
    groups: list[list[Example]] = []
    sizes: list[int] = []
    for example in sorted(examples, key=lambda example: len(example.input_ids), reverse=True):
        size = len(example.input_ids)
        for number, group in enumerate(groups):
            fits = max_tokens is None or sizes[number] + size <= max_tokens
            if fits and (max_rows is None or len(group) < max_rows):
                group.append(example)
                sizes[number] += size
                break
        else:
            groups.append([example])
            sizes.append(size)
    return groups


def collate(examples: Sequence[Example], pad_id: int, positions: Positions | None = None) -> Group:
    """Pad `examples` on the right to one length.

    Returns:
        `input_ids` and `labels`, int64 [batch, length], padded with `pad_id` and IGNORED. With `positions`, also
        `position_ids` and `attention_mask` of the same shape.

    Without positions there is no attention mask: no token attends to padding on its right, and a mask would rule out
    the fast causal kernels. With positions the mask is all ones, because transformers takes jumping positions without
    a mask for packed documents, and cuts attention at every jump.

    The first label is never a target, since nothing precedes it; it is IGNORED, so that counting labels counts targets.
    """
    length = max(len(example.input_ids) for example in examples)
    input_ids = torch.full((len(examples), length), pad_id)
    labels = torch.full((len(examples), length), IGNORED)
    for row, example in enumerate(examples):
        end = len(example.input_ids)
        input_ids[row, :end] = torch.tensor(example.input_ids)
        labels[row, 1:end] = torch.tensor(example.labels[1:])
    batch: Group = {"input_ids": input_ids, "labels": labels}
    if positions is not None:
        batch["position_ids"] = torch.stack([torch.tensor(positions(row)) for row in input_ids.tolist()])
        batch["attention_mask"] = torch.ones_like(input_ids)
    return batch


def pack(examples: Sequence[Example], positions: Positions | None = None) -> Group:
    """Lay `examples` in one row without padding, for models/packed_attention.py.

    Returns:
        `input_ids`, `labels` and `position_ids`, int64 [1, tokens], and `lengths`, the tokens of each example.
        Positions begin anew with each example: `positions` of it, or counted from 0. No example's first label is a
        target.
    """
    lengths = tuple(len(example.input_ids) for example in examples)
    labels = [label for example in examples for label in (IGNORED, *example.labels[1:])]
    own = [range(length) for length in lengths] if positions is None else [positions(one.input_ids) for one in examples]
    return {
        "input_ids": torch.tensor([[token for example in examples for token in example.input_ids]]),
        "labels": torch.tensor([labels]),
        "position_ids": torch.tensor([[place for places in own for place in places]]),
        "lengths": lengths,
    }
