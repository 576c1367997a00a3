"""A model's head, computed where it is asked for only: after some tokens of a pass, and for some tokens to come."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

AllowedTokens = tuple[int, ...]
"""Token ids that may come next, ascending."""


@dataclasses.dataclass(frozen=True)
class NextTokenLogits:
    """What a model says after the tokens that were asked about."""

    logits: torch.Tensor
    """[rows, asked, vocabulary or tokens], float32; minus infinity where a token may not come."""

    tokens: torch.Tensor | None = None
    """[tokens]: what the last dimension stands for, ascending; None for the whole vocabulary."""


class Head:
    """Runs `model` and hands over its logits where they are wanted.

    Hidden states that are not asked about are taken away right before the output embeddings, so whatever a model does
    to its logits afterwards is done. Where it does nothing, and the output embeddings are a plain linear layer, it is
    computed for the allowed tokens only.
    """

    def __init__(self, model: PreTrainedModel | PeftModel) -> None:
        self.model = model
        self._is_plain: bool | None = None  # None until it was seen at work
        self._unions: dict[frozenset[AllowedTokens], _Union] = {}

    def __call__(
        self,
        inputs: dict[str, Any],
        asked: Sequence[Sequence[int]],
        choices: Sequence[Sequence[AllowedTokens]] | None = None,
    ) -> NextTokenLogits:
        """One forward pass. `asked` are the places in each row's chunk after which the scores are wanted; what stands
        beyond a row's own number of them means nothing. `choices` are the tokens that may come there; None for all.
        """
        most = max(map(len, asked))
        last = [inputs["input_ids"].shape[1] - 1]
        if most == 0 or (choices is None and all(places == last for places in asked)):
            return NextTokenLogits(self.model(**inputs, logits_to_keep=1).logits[:, -1:].float())
        padded = [[*places, *[0] * (most - len(places))] for places in asked]
        index = torch.tensor(padded, dtype=torch.long, device=self.model.device)
        if choices is None:
            return NextTokenLogits(self._logits(inputs, index).float())
        distinct = sorted({own for row in choices for own in row})
        union = self._union(distinct)
        if self._is_plain:
            logits = linear(self._hidden(inputs, index), *union.rows(self.model.get_output_embeddings()))
        else:
            logits = self._logits(inputs, index).index_select(-1, union.tokens)
        logits = logits.float()
        if len(distinct) > 1:
            numbers = {own: number for number, own in enumerate(distinct)}
            which = [[*(numbers[own] for own in row), *[0] * (most - len(row))] for row in choices]
            logits.masked_fill_(union.forbidden[torch.tensor(which, device=logits.device)], -torch.inf)
        return NextTokenLogits(logits, union.tokens)

    def _logits(self, inputs: dict[str, Any], index: torch.Tensor) -> torch.Tensor:
        """After the tokens at `index` [rows, asked]: [rows, asked, vocabulary]."""
        with _Tap(self.model.get_output_embeddings(), index) as tap:
            logits: torch.Tensor = self.model(**inputs).logits
        if tap.output is None:
            # The model computes with the embeddings' weight by itself.
            self._is_plain = False
            return logits.gather(1, index[:, :, None].expand(-1, -1, logits.shape[-1]))
        if self._is_plain is None:
            self._is_plain = type(tap.head) is nn.Linear and torch.equal(tap.output.to(logits.dtype), logits)
        return logits

    def _hidden(self, inputs: dict[str, Any], index: torch.Tensor) -> torch.Tensor:
        """[rows, asked, hidden size]."""
        with _Tap(self.model.get_output_embeddings(), index, takes=True) as tap:
            self.model(**inputs)
        assert tap.hidden is not None
        return tap.hidden

    def _union(self, distinct: list[AllowedTokens]) -> _Union:
        key = frozenset(distinct)
        if key not in self._unions:
            self._unions[key] = _Union(distinct, self.model.device)
        return self._unions[key]


class _Union:
    """All tokens that may come next somewhere in a pass."""

    def __init__(self, distinct: Sequence[AllowedTokens], device: torch.device) -> None:
        tokens = sorted(set().union(*distinct))
        self.tokens = torch.tensor(tokens, device=device)
        self.forbidden = torch.tensor([[token not in own for token in tokens] for own in distinct], device=device)
        """[distinct, tokens]"""
        self._rows: tuple[torch.Tensor, torch.Tensor | None] | None = None

    def rows(self, head: nn.Linear) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weight [tokens, hidden size] and bias [tokens] of the head for these tokens."""
        if self._rows is None:
            self._rows = head.weight[self.tokens], None if head.bias is None else head.bias[self.tokens]
        return self._rows


class _Tap:
    """Before `head` runs, cuts its input down to the places `index` [rows, asked], or to nothing if it `takes` them;
    afterwards keeps what came out."""

    def __init__(self, head: nn.Module, index: torch.Tensor, *, takes: bool = False) -> None:
        self.head = head
        self.hidden: torch.Tensor | None = None
        self.output: torch.Tensor | None = None
        self._index = index
        self._takes = takes

    def __enter__(self) -> _Tap:
        self._handles = [
            self.head.register_forward_pre_hook(self._before),
            self.head.register_forward_hook(self._after),
        ]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def _before(self, head: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        states, *others = args
        self.hidden = states.gather(1, self._index[:, :, None].expand(-1, -1, states.shape[-1]))
        return (self.hidden[:, :0] if self._takes else self.hidden, *others)

    def _after(self, head: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        self.output = output
