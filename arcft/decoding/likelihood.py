"""Log-probabilities of given completions: what `decode` would report if it had written them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from arcft.decoding.core.batch import advance_by, complete
from arcft.decoding.core.completion import Row, not_finite
from arcft.decoding.core.forward import TokenChunk
from arcft.decoding.core.lm_head import AllowedTokens, Head, NextTokenLogits
from arcft.decoding.options import DecodingOptions, check_one_each
from arcft.decoding.probe import decoder_for
from arcft.errors import DecodingError
from arcft.models.families import Decoder
from arcft.protocols import Grammar, Positions

_MAX_LOGITS = 2**26
"""Logits computed per forward pass, to bound memory: 256 MiB in float32."""


def score(
    model: PreTrainedModel | PeftModel,
    prompts: Sequence[list[int]],
    completions: Sequence[Sequence[list[int]]],
    options: DecodingOptions,
) -> list[list[float]]:
    """Log-probabilities (natural log) of given completions.

    A completion is read in one forward pass, or in a few if it is long and the vocabulary large; a prompt is read once
    for all its completions. For a model that goes through `generate`, prompt and completion are read together, and one
    after the other.

    Args:
        model: A causal language model, as for `decode`.
        prompts: Token ids, at least one each.
        completions: For each prompt any number of completions: token ids, at least one each, with the end token where
            it counts.
        options: Shared with `decode` and `search`. Under a grammar, probabilities are normalised over the allowed
            tokens.

    Returns:
        The log-probability of each completion, in the shape of `completions`.

    Raises:
        DecodingError: logits that are not finite, an empty prompt or completion, a completion that its grammar does not
            allow, or a list that does not have one entry for each prompt.
    """
    check_one_each(prompts, {"groups of completions": completions, "adapters": options.adapters})
    groups = [
        [GivenRow(number, prompt, completion, options.positions, grammar) for completion in group]
        for number, (prompt, group, grammar) in enumerate(
            zip(prompts, completions, options.grammars(prompts), strict=True)
        )
    ]
    rows = [row for group in groups for row in group]
    if rows and decoder_for(model) is Decoder.GENERATE:
        _read_whole(model, rows, options)
    elif rows:
        size = min(options.batch_size or len(rows), len(rows))
        for row in rows:
            row.max_logits = max(1, _MAX_LOGITS // (size * model.config.get_text_config(decoder=True).vocab_size))
        complete(model, rows, advance_by(_given), options)
    return [[row.logprob for row in group] for group in groups]


def _read_whole(model: PreTrainedModel | PeftModel, rows: Sequence[GivenRow], options: DecodingOptions) -> None:
    """Read each row in one forward pass of its own, without a cache."""
    if options.positions is not None:
        raise DecodingError("this model goes through transformers' generate, which can't take positions that jump")
    head, was_training = Head(model), model.training
    model.eval()
    try:
        with torch.inference_mode():
            for row in rows:
                if options.on_rows_changed is not None:
                    options.on_rows_changed([row.prompt_index])
                row.max_logits = len(row.ids)
                chunk = row.next_chunk(len(row.ids))
                inputs = {"input_ids": torch.tensor([chunk.tokens], device=model.device), "use_cache": False}
                if not chunk.logits_at:
                    row.advance(chunk, [], [])
                    continue
                scored = head(inputs, [chunk.logits_at], None if chunk.allowed is None else [chunk.allowed])
                advance_by(_given)([row], [chunk], scored)
    finally:
        model.train(was_training)


class GivenRow(Row):
    """A row whose completion is known."""

    def __init__(
        self,
        prompt_index: int,
        prompt: Sequence[int],
        completion: Sequence[int],
        positions: Positions | None,
        grammar: Grammar | None,
    ) -> None:
        """Raise DecodingError for an empty prompt or completion, or one that `grammar` does not allow."""
        if not prompt or not completion:
            raise DecodingError(f"prompt {prompt_index} or one of its completions is empty")
        super().__init__(prompt_index, prompt, positions)
        self.logprob = 0.0
        """Natural log of the probability of the tokens read so far."""
        self.max_logits = len(completion)
        """Completion tokens that are scored per forward pass."""
        self._completion = list(completion)
        self._allowed = None if grammar is None else _allowed(prompt_index, self._completion, grammar)
        # The last token is scored but never fed: nothing follows it.
        self.ids += self._completion[:-1]

    def next_chunk(self, max_tokens: int) -> TokenChunk:
        """The next tokens of prompt and completion, with logits for each completion token that has alternatives."""
        scored = max(0, self.cached - self.prompt_length + 1)  # completion tokens whose logits were read
        end = self.prompt_length - 1 + scored + self.max_logits
        tokens = self.ids[self.cached : min(self.cached + max_tokens, end)]
        # The logits after column c score completion token c + 1 - prompt_length.
        places = range(max(0, self.prompt_length - 1 - self.cached), len(tokens))
        target_at = {place: self.cached + place + 1 - self.prompt_length for place in places}
        allowed: list[AllowedTokens] | None = None
        if self._allowed is not None:
            target_at = {place: number for place, number in target_at.items() if len(self._allowed[number]) > 1}
            allowed = [self._allowed[number] for number in target_at.values()]
        targets = [self._completion[number] for number in target_at.values()]
        return TokenChunk(tokens, self.cached, self._next_positions(tokens), list(target_at), allowed, targets)

    def advance(self, chunk: TokenChunk, tokens: Sequence[int], logprobs: Sequence[float]) -> None:
        """Add the log-probabilities of the chunk's targets."""
        self._mark_cached(chunk, len(chunk.tokens))
        self.logprob += sum(logprobs[: len(chunk.logits_at)])
        if not math.isfinite(self.logprob):
            raise not_finite(self.prompt_index)
        self.is_live = self.cached < len(self.ids)


def _allowed(prompt_index: int, completion: Sequence[int], grammar: Grammar) -> list[AllowedTokens]:
    """The tokens that the grammar allows at each place of `completion`."""
    cursor = grammar()
    allowed = []
    for place, token in enumerate(completion):
        allowed.append(tuple(cursor.choices))
        if token not in allowed[-1]:
            raise DecodingError(
                f"prompt {prompt_index}: token {place} of a completion, {token}, is not one of the {len(allowed[-1])} "
                "that the grammar allows there; score it without a grammar"
            )
        cursor.advance(token)
    return allowed


def _given(rows: Sequence[Row], chunks: Sequence[TokenChunk], scored: NextTokenLogits) -> torch.Tensor:
    """Choose the targets: indices into the last dimension of the logits, int64 [rows, places]."""
    most = scored.logits.shape[1]
    # Any token will do beyond a row's own places.
    first = 0 if scored.tokens is None else int(scored.tokens[0])
    targets = [[*chunk.targets, *[first] * (most - len(chunk.targets))] for chunk in chunks]
    tokens = torch.tensor(targets, device=scored.logits.device)
    return tokens if scored.tokens is None else torch.searchsorted(scored.tokens, tokens)
