"""The language-model head, computed only after the tokens and for the next tokens that matter."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from arcft.models.selected_logits import HeadTap

AllowedTokens = tuple[int, ...]
"""Ids of the tokens that may come next, ascending."""


@dataclasses.dataclass(frozen=True)
class NextTokenLogits:
    """Logits for the next token, after the tokens of a forward pass for which they were requested."""

    logits: torch.Tensor
    """float32 [rows, places, vocabulary], or [rows, places, tokens] with `tokens`; -inf where a token is not allowed.
    Entries beyond a row's own number of places are meaningless."""

    tokens: torch.Tensor | None = None
    """int64 [tokens]: the ids that the last dimension stands for, ascending; None for the whole vocabulary."""


class Head:
    """Runs a model and returns logits for selected places, and under a grammar for allowed tokens only.

    Where the model applies a plain linear output layer and nothing after it, that layer is multiplied for the allowed
    tokens only. Models that do more (scale or cap logits, adapt the head) run the whole layer.
    """

    def __init__(self, model: PreTrainedModel | PeftModel) -> None:
        self.model = model
        self._is_plain: bool | None = None  # None until a first pass with allowed tokens has shown it
        self._unions: dict[frozenset[AllowedTokens], _Union] = {}

    def __call__(
        self,
        inputs: dict[str, Any],
        logits_at: Sequence[Sequence[int]],
        allowed: Sequence[Sequence[AllowedTokens]] | None = None,
    ) -> NextTokenLogits:
        """Run one forward pass.

        Args:
            inputs: The model's arguments, with `input_ids` int64 [rows, length] among them.
            logits_at: For each row the columns after which logits are wanted; none at all is valid.
            allowed: For each row the allowed tokens at these columns; None for the whole vocabulary.
        """
        most = max(map(len, logits_at))
        length = inputs["input_ids"].shape[1]
        if most == 0 or (allowed is None and all(columns == [length - 1] for columns in logits_at)):
            return NextTokenLogits(self.model(**inputs, logits_to_keep=1).logits[:, -1:].float())
        padded = [
            [row * length + column for column in [*columns, *[0] * (most - len(columns))]]
            for row, columns in enumerate(logits_at)
        ]
        places = torch.tensor(padded, device=self.model.device)
        if allowed is None:
            return NextTokenLogits(self._logits(inputs, places).float())
        distinct = sorted({own for row in allowed for own in row})
        union = self._union(distinct)
        if self._is_plain:
            logits = linear(self._hidden(inputs, places), *union.rows(self.model.get_output_embeddings()))
        else:
            logits = self._logits(inputs, places).index_select(-1, union.tokens)
        logits = logits.float()
        if len(distinct) > 1:
            numbers = {own: number for number, own in enumerate(distinct)}
            which = [[*(numbers[own] for own in row), *[0] * (most - len(row))] for row in allowed]
            logits.masked_fill_(union.forbidden[torch.tensor(which, device=logits.device)], -torch.inf)
        return NextTokenLogits(logits, union.tokens)

    def _logits(self, inputs: dict[str, Any], places: torch.Tensor) -> torch.Tensor:
        """Logits [rows, places, vocabulary] at `places` [rows, places] of the flattened batch."""
        with HeadTap(self.model.get_output_embeddings(), places) as tap:
            logits = tap.select(self.model(**inputs).logits)
        if tap.output is None:
            self._is_plain = False
        elif self._is_plain is None:
            self._is_plain = type(tap.head) is nn.Linear and torch.equal(tap.output.to(logits.dtype), logits)
        return logits

    def _hidden(self, inputs: dict[str, Any], places: torch.Tensor) -> torch.Tensor:
        """The head's input [rows, places, hidden size]; the head itself does not run."""
        with HeadTap(self.model.get_output_embeddings(), places, skip=True) as tap:
            self.model(**inputs)
        assert tap.hidden is not None
        return tap.hidden

    def _union(self, distinct: list[AllowedTokens]) -> _Union:
        # Grammars repeat: the same few sets of allowed tokens come up at every row of a grid.
        key = frozenset(distinct)
        if key not in self._unions:
            self._unions[key] = _Union(distinct, self.model.device)
        return self._unions[key]


class _Union:
    """All tokens that are allowed somewhere in a forward pass."""

    def __init__(self, distinct: Sequence[AllowedTokens], device: torch.device) -> None:
        tokens = sorted(set().union(*distinct))
        self.tokens = torch.tensor(tokens, device=device)
        self.forbidden = torch.tensor([[token not in own for token in tokens] for own in distinct], device=device)
        """bool [distinct, tokens]"""
        self._rows: tuple[torch.Tensor, torch.Tensor | None] | None = None

    def rows(self, head: nn.Linear) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The head's weight [tokens, hidden size] and bias [tokens] for these tokens."""
        if self._rows is None:
            self._rows = head.weight[self.tokens], None if head.bias is None else head.bias[self.tokens]
        return self._rows
