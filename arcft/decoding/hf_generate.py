"""Completion by transformers' own `generate`: the reference for our decoder, and what runs models that it can't."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from peft import PeftModel
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from arcft.decoding.core.completion import Completion, not_finite
from arcft.decoding.core.sampling import Sampler
from arcft.decoding.options import DecodingOptions
from arcft.errors import DecodingError
from arcft.models.base_model import base_model
from arcft.protocols import Cursor


def generate(
    model: PreTrainedModel | PeftModel,
    prompts: Sequence[list[int]],
    options: DecodingOptions,
    *,
    max_new_tokens: Sequence[int],
    sampler: Sampler | None = None,
) -> list[Completion]:
    """Complete one or more prompts, greedily or by `sampler`; where it can, `decode` does the same in less time.

    Only prompts of the same length are completed side by side: padding in front of a prompt changes what some
    architectures compute.

    Args:
        model: A causal language model of any architecture, or a PEFT model around one. It runs in evaluation mode;
            settings of its own generation_config, such as penalties, have no effect.
        prompts: Token ids, at least one each.
        options: All but `positions`, `share_prefixes` and `adapters` apply. Rows stay in place until the last one of
            their length ends.
        max_new_tokens: The limit of each prompt, at least 1.
        sampler: Draws the tokens; None for the likeliest ones.

    Returns:
        A completion for each prompt, in order.

    Raises:
        DecodingError: logits that are not finite, or options with positions, which `generate` does not support.
    """
    if options.positions is not None:
        raise DecodingError("generate can't take positions that jump; use decode")
    grammars = options.grammars(prompts)
    completions: dict[int, Completion] = {}
    inner = base_model(model)
    was_training, own_config = model.training, inner.generation_config
    model.eval()
    try:
        for numbers in _batches(prompts, options.batch_size or len(prompts)):
            if options.on_rows_changed is not None:
                options.on_rows_changed(numbers)
            limits = [max_new_tokens[number] for number in numbers]
            # `generate` merges the model's own settings into any config it is passed, so they have to be replaced.
            inner.generation_config = GenerationConfig(
                max_new_tokens=max(limits),
                do_sample=False,
                eos_token_id=list(options.end_ids),
                pad_token_id=options.pad_id,
            )
            cursors = [None if grammar is None else grammar() for grammar in (grammars[one] for one in numbers)]
            chooser = _Chooser(numbers, cursors, limits, frozenset(options.end_ids), sampler)
            ids = torch.tensor([prompts[number] for number in numbers], device=model.device)
            inner.generate(  # type: ignore[operator]
                input_ids=ids, attention_mask=torch.ones_like(ids), logits_processor=LogitsProcessorList([chooser])
            )
            completions |= dict(zip(numbers, chooser.completions(), strict=True))
    finally:
        inner.generation_config = own_config
        model.train(was_training)
    return [completions[number] for number in range(len(prompts))]


def _batches(prompts: Sequence[Sequence[int]], size: int) -> list[list[int]]:
    """The prompts' numbers, those of equal length together, at most `size` of them."""
    by_length: dict[int, list[int]] = {}
    for number, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt), []).append(number)
    return [group[start : start + size] for group in by_length.values() for start in range(0, len(group), size)]


class _Chooser(LogitsProcessor):
    """Chooses the next token of each row, and leaves `generate` no other; records tokens and log-probabilities."""

    def __init__(
        self,
        numbers: Sequence[int],
        cursors: Sequence[Cursor | None],
        limits: Sequence[int],
        end_ids: frozenset[int],
        sampler: Sampler | None,
    ) -> None:
        """`numbers` are the prompts of the rows."""
        self._numbers = numbers
        self._cursors = cursors
        self._limits = limits
        self._end_ids = end_ids
        self._sampler = sampler
        self._tokens: list[list[int]] = [[] for _ in numbers]
        self._logprobs = [0.0] * len(numbers)
        self._finished = [False] * len(numbers)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """float [rows, vocabulary] in and out: -inf for all but the token chosen for each row."""
        logits = scores.float()
        live = [row for row in range(len(self._tokens)) if self._is_live(row)]
        for row in live:
            cursor = self._cursors[row]
            if cursor is not None:
                allowed = torch.tensor(cursor.choices, device=logits.device)
                logits[row] = torch.full_like(logits[row], -math.inf).scatter_(0, allowed, logits[row, allowed])
        if self._sampler is None:
            chosen = logits.argmax(dim=-1)
        else:
            steps = [min(len(tokens), self._sampler.uniform.shape[1] - 1) for tokens in self._tokens]
            chosen = self._sampler.draw(logits, self._numbers, steps)
        logprobs = logits.gather(-1, chosen[:, None]).squeeze(-1) - logits.logsumexp(dim=-1)
        tokens, values = chosen.tolist(), logprobs.tolist()
        for row in live:
            self._append(row, tokens[row], values[row])
        return torch.full_like(scores, -math.inf).scatter_(-1, chosen[:, None], 0.0)

    def completions(self) -> list[Completion]:
        """What was written, row by row."""
        return [
            Completion(tokens[: len(tokens) - ended], logprob, len(tokens), ended)
            for tokens, logprob, ended in zip(self._tokens, self._logprobs, self._finished, strict=True)
        ]

    def _is_live(self, row: int) -> bool:
        return not self._finished[row] and len(self._tokens[row]) < self._limits[row]

    def _append(self, row: int, token: int, logprob: float) -> None:
        if not math.isfinite(logprob):
            raise not_finite(self._numbers[row], f" after {len(self._tokens[row])} tokens")
        self._tokens[row].append(token)
        self._logprobs[row] += logprob
        self._finished[row] = token in self._end_ids
        cursor = self._cursors[row]
        if cursor is None:
            return
        cursor.advance(token)
        if self._is_live(row) and not cursor.choices:
            raise DecodingError(
                f"prompt {self._numbers[row]}: the grammar ends with token {token}, which is not in end_ids"
            )
