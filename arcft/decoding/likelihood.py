"""How probable given completions are: what `decode` would have reported if it had written them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from arcft.decoding.core.batch import Route, chosen, complete
from arcft.decoding.core.forward import TokenChunk
from arcft.decoding.core.lm_head import AllowedTokens, NextTokenLogits
from arcft.decoding.core.rows import Row
from arcft.errors import DecodingError
from arcft.protocols import Grammar, Positions

_LOGITS = 2**26
"""So many at most are computed in a pass."""


def score(
    model: PreTrainedModel | PeftModel,
    prompts: Sequence[list[int]],
    completions: Sequence[Sequence[list[int]]],
    *,
    pad_id: int,
    positions: Positions | None = None,
    grammar: Grammar | Sequence[Grammar] | None = None,
    batch_size: int | None = None,
    share_prefixes: bool = True,
    route: Route | None = None,
    adapters: Sequence[int] | None = None,
) -> list[list[float]]:
    """The natural logarithm of the probability of each of `completions`, which are some for each of `prompts`.

    A completion is token ids, the end token included where it counts. It is read in one pass, or in a few if it is long
    and the vocabulary large; a prompt is read once for all its completions. The options are those of `decode`, and
    mean the same: with a `grammar`, one for all prompts or one for each, probabilities are shares of the allowed
    tokens. `route` is told prompts by their numbers, and `adapters` are for each prompt.

    Raises DecodingError for logits that are not finite, empty prompts or completions, a completion that its grammar
    does not allow, or lists that are not of one length.
    """
    grammars = grammar if isinstance(grammar, Sequence) else [grammar] * len(prompts)
    for name, values in (("groups of completions", completions), ("grammars", grammars), ("adapters", adapters)):
        if values is not None and len(values) != len(prompts):
            raise DecodingError(f"{len(values)} {name} for {len(prompts)} prompts; give one for each")
    rows = [
        [GivenRow(number, prompt, one, positions, own) for one in group]
        for number, (prompt, group, own) in enumerate(zip(prompts, completions, grammars, strict=True))
    ]
    flat = [row for group in rows for row in group]
    if flat:
        size = min(batch_size or len(flat), len(flat))
        for row in flat:
            row.most_asked = max(1, _LOGITS // (size * model.config.get_text_config(decoder=True).vocab_size))
        complete(
            model,
            flat,
            chosen(_given),
            pad_id=pad_id,
            batch_size=batch_size,
            share_prefixes=share_prefixes,
            route=route,
            adapters=None if adapters is None else [adapters[row.number] for row in flat],
        )
    return [[row.logprob for row in group] for group in rows]


class GivenRow(Row):
    """A prompt and a completion that is known."""

    def __init__(
        self,
        number: int,
        prompt: Sequence[int],
        completion: Sequence[int],
        positions: Positions | None,
        grammar: Grammar | None,
    ) -> None:
        if not prompt or not completion:
            raise DecodingError(f"prompt {number} or one of its completions is empty")
        super().__init__(number, prompt, positions)
        self.logprob = 0.0
        self.most_asked = len(completion)
        """Tokens that are asked about in a pass."""
        self._completion = list(completion)
        self._choices = None if grammar is None else _walk(number, self._completion, grammar)
        self.ids += self._completion[:-1]

    def chunk(self, most: int) -> TokenChunk:
        begun = max(0, self.fed - self.prompt_length + 1)  # tokens of the completion that are known
        last = self.prompt_length - 1 + begun + self.most_asked
        tokens = self.ids[self.fed : min(self.fed + most, last)]
        # After the token in column c comes token c + 1 - prompt_length of the completion.
        places = range(max(0, self.prompt_length - 1 - self.fed), len(tokens))
        comes = {place: self.fed + place + 1 - self.prompt_length for place in places}
        choices: list[AllowedTokens] | None = None
        if self._choices is not None:
            comes = {place: token for place, token in comes.items() if len(self._choices[token]) > 1}
            choices = [self._choices[token] for token in comes.values()]
        given = [self._completion[token] for token in comes.values()]
        return TokenChunk(tokens, self.fed, self._places(tokens), list(comes), choices, given)

    def read(self, chunk: TokenChunk, tokens: Sequence[int], logprobs: Sequence[float]) -> None:
        self._feed(chunk, len(chunk.tokens))
        self.logprob += sum(logprobs[: len(chunk.asked)])
        if not math.isfinite(self.logprob):
            raise DecodingError(
                f"prompt {self.number}: the model's logits are not finite numbers; the weights are damaged, or "
                "overflow in this dtype: try inference.dtype=float32"
            )
        self.is_live = self.fed < len(self.ids)


def _walk(number: int, completion: Sequence[int], grammar: Grammar) -> list[AllowedTokens]:
    """What might have come in place of each token."""
    cursor = grammar()
    choices = []
    for place, token in enumerate(completion):
        choices.append(tuple(cursor.choices))
        if token not in choices[-1]:
            raise DecodingError(
                f"prompt {number}: token {place} of a completion, {token}, is none of the {len(choices[-1])} that the "
                "grammar allows there; score it without a grammar"
            )
        cursor.advance(token)
    return choices


def _given(rows: Sequence[Row], chunks: Sequence[TokenChunk], scores: NextTokenLogits) -> torch.Tensor:
    most = scores.logits.shape[1]
    # Beyond a row's own, any token will do.
    first = 0 if scores.tokens is None else int(scores.tokens[0])
    given = [[*chunk.given, *[first] * (most - len(chunk.given))] for chunk in chunks]
    tokens = torch.tensor(given, device=scores.logits.device)
    return tokens if scores.tokens is None else torch.searchsorted(scores.tokens, tokens)
