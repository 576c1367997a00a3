"""Turn prompts into completions: a cached greedy or sampling loop over a batch. Knows tokens and no grids.

A loop of our own instead of `generate`, because rows that have ended leave the batch, each row may have its own limit
and its own random numbers, the log-probability comes for free, and positions may jump (`generate` only counts on).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import cast

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from arcft.errors import ArcftError
from arcft.inference.cache import make_cache
from arcft.text.tokens import Positions


class DecodingError(ArcftError):
    """The model can't answer: its logits are not numbers, or a prompt or limit makes no sense."""


@dataclasses.dataclass(frozen=True)
class Completion:
    """What the model wrote after one prompt."""

    token_ids: list[int]
    """Without the end token."""

    logprob: float
    """Natural logarithm of the completion's probability, the end token included, under the model's own distribution:
    temperature and top_p change what is drawn, not what it is worth."""

    num_tokens: int
    """Tokens produced, the end token included."""

    finished: bool
    """Whether the model ended by itself; False where the limit cut it off."""


@dataclasses.dataclass
class _Row:
    """A prompt while it is being completed."""

    ids: list[int]
    """Prompt and produced tokens, without the end token."""

    prompt_length: int
    limit: int
    logprob: float = 0.0
    num_tokens: int = 0
    finished: bool = False

    def add(self, token: int, logprob: float, end_ids: frozenset[int]) -> bool:
        """Take the next token; return whether the row goes on."""
        self.logprob += logprob
        self.num_tokens += 1
        if token in end_ids:
            self.finished = True
            return False
        self.ids.append(token)
        return self.num_tokens < self.limit

    def completion(self) -> Completion:
        return Completion(self.ids[self.prompt_length :], self.logprob, self.num_tokens, self.finished)


def decode(
    model: PreTrainedModel | PeftModel,
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int | Sequence[int],
    end_ids: Sequence[int],
    pad_id: int,
    temperature: float | None = None,
    top_p: float | None = None,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    positions: Positions | None = None,
    route: Callable[[Sequence[int]], None] | None = None,
) -> list[Completion]:
    """Complete all `prompts` together and return a Completion for each, in their order.

    `model` is a causal language model of transformers, or a PEFT model around one; it is put into evaluation mode
    meanwhile. Without `temperature` and `top_p` each token is the likeliest one, equal to `generate` token for token
    in float32; with one of them it is drawn with a CPU `generator`. With one generator for each prompt, what is drawn
    for a prompt does not depend on the others beside it. `max_new_tokens` is one limit for all, or one for each prompt.
    `route` is told which prompts the batch holds, by their numbers, before the first pass and whenever some have ended.

    Prompts of equal length are fastest: they need no padding, so attention needs no mask.

    Raises DecodingError for logits that are not finite, an empty prompt, a limit below 1, or a wrong generator.
    """
    rows = _make_rows(prompts, max_new_tokens)
    if not rows:
        return []
    sampler = _make_sampler(rows, temperature, top_p, generator)
    was_training = model.training
    model.eval()
    try:
        _complete(model, rows, frozenset(end_ids), pad_id, sampler, positions, route)
    finally:
        model.train(was_training)
    return [row.completion() for row in rows]


def _make_rows(prompts: Sequence[list[int]], max_new_tokens: int | Sequence[int]) -> list[_Row]:
    limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
    if len(limits) != len(prompts):
        raise DecodingError(f"{len(limits)} values of max_new_tokens for {len(prompts)} prompts; give one for each")
    for number, (prompt, limit) in enumerate(zip(prompts, limits, strict=True)):
        if not prompt:
            raise DecodingError(f"prompt {number} is empty; a model needs at least one token to go on from")
        if limit < 1:
            raise DecodingError(f"max_new_tokens={limit} for prompt {number}: at least 1")
    return [_Row(list(prompt), len(prompt), limit) for prompt, limit in zip(prompts, limits, strict=True)]


@torch.inference_mode()
def _complete(
    model: PreTrainedModel | PeftModel,
    rows: list[_Row],
    end_ids: frozenset[int],
    pad_id: int,
    sampler: _Sampler | None,
    positions: Positions | None,
    route: Callable[[Sequence[int]], None] | None,
) -> None:
    """Extend `rows` in place until each has ended."""
    live = list(range(len(rows)))  # which rows the batch still holds, in its order
    if route is not None:
        route(live)
    feed = _Feed(rows, pad_id, model.device, positions)
    cache = make_cache(model.config)
    for step in range(max(row.limit for row in rows)):
        outputs = model(**feed.arguments(), past_key_values=cache, use_cache=True, logits_to_keep=1)
        logits = outputs.logits[:, -1].float()  # [batch, vocabulary]
        tokens = logits.argmax(dim=-1) if sampler is None else sampler.draw(logits, live, step)
        chosen, logprobs = _to_lists(logits, tokens)
        for place, logprob in enumerate(logprobs):
            # A NaN anywhere in a row reaches its normaliser, so the chosen token's value tells about all of them.
            if not math.isfinite(logprob):
                raise DecodingError(
                    f"prompt {live[place]}: the model's logits are not finite numbers after {step} tokens; the weights "
                    "are damaged, or overflow in this dtype: try inference.dtype=float32"
                )
        keep = [place for place, row in enumerate(live) if rows[row].add(chosen[place], logprobs[place], end_ids)]
        if not keep:
            return
        if len(keep) < len(live):
            live = [live[place] for place in keep]
            if route is not None:
                route(live)
            kept = torch.tensor(keep, device=model.device)
            cache.reorder_cache(cast(torch.LongTensor, kept))
            feed.select(keep, kept)
            tokens = tokens[kept]
        feed.extend(tokens, [rows[row].ids[-1] for row in live])


def _to_lists(logits: torch.Tensor, tokens: torch.Tensor) -> tuple[list[int], list[float]]:
    """The chosen `tokens` [batch] and their log-probabilities; the one place in a step that waits for the device."""
    logprobs = logits.gather(1, tokens[:, None]).squeeze(1) - logits.logsumexp(dim=-1)
    return tokens.tolist(), logprobs.tolist()


class _Feed:
    """What the model is given next: `input_ids` [batch, new tokens], and where prompts differ in length or positions
    jump, `mask` [batch, all columns that there may be] and `position_ids` [batch, new tokens].

    Shorter prompts are padded on the left, so that all rows go on in the same column.
    """

    def __init__(self, rows: list[_Row], pad_id: int, device: torch.device, positions: Positions | None) -> None:
        lengths = [row.prompt_length for row in rows]
        self.width = max(lengths)
        self.positions = positions
        self.last_places: list[int] = []
        """Where each row's last token stands; kept only where positions jump."""
        self.input_ids = torch.tensor(
            [[pad_id] * (self.width - len(row.ids)) + row.ids for row in rows], dtype=torch.long, device=device
        )
        self.mask: torch.Tensor | None = None
        self.position_ids: torch.Tensor | None = None
        if positions is None and len(set(lengths)) == 1:
            return
        # Jumping positions come with a mask even when nothing is padded: without one, transformers takes a jump for
        # the border between two packed sequences.
        self.mask = torch.ones(len(rows), self.width + max(row.limit for row in rows), dtype=torch.long)
        places = []
        for row, length in enumerate(lengths):
            padding = self.width - length
            self.mask[row, :padding] = 0
            places.append([0] * padding + (list(range(length)) if positions is None else positions(rows[row].ids)))
        if positions is not None:
            self.last_places = [own[-1] for own in places]
        self.mask = self.mask.to(device)
        self.position_ids = torch.tensor(places, dtype=torch.long, device=device)

    def arguments(self) -> dict[str, torch.Tensor | None]:
        mask = None if self.mask is None else self.mask[:, : self.width]
        return {"input_ids": self.input_ids, "attention_mask": mask, "position_ids": self.position_ids}

    def select(self, keep: list[int], kept: torch.Tensor) -> None:
        """Keep only the rows at the places `keep`, which are `kept` [rows] on the device."""
        if self.mask is not None and self.position_ids is not None:
            self.mask = self.mask[kept]
            self.position_ids = self.position_ids[kept]
        if self.positions is not None:
            self.last_places = [self.last_places[place] for place in keep]

    def extend(self, tokens: torch.Tensor, chosen: list[int]) -> None:
        """Feed one more token a row next: `tokens` [batch], which are `chosen` in plain numbers."""
        self.input_ids = tokens[:, None]
        self.width += 1
        if self.positions is not None:
            pairs = zip(chosen, self.last_places, strict=True)
            self.last_places = [place for token, last in pairs for place in self.positions([token], last)]
            self.position_ids = torch.tensor(self.last_places, dtype=torch.long, device=tokens.device)[:, None]
        elif self.position_ids is not None:
            self.position_ids = self.position_ids[:, -1:] + 1


class _Sampler:
    """Draws tokens by inverting the cumulative distribution at one uniform number for each row and step.

    All numbers, `uniform` [prompts, steps] float64, are drawn beforehand, row by row, so a row's tokens do not depend
    on when other rows end.
    """

    def __init__(self, uniform: torch.Tensor, temperature: float, top_p: float) -> None:
        self.uniform = uniform
        self.temperature = temperature
        self.top_p = top_p

    def draw(self, logits: torch.Tensor, live: list[int], step: int) -> torch.Tensor:
        """Return the next tokens [batch], int64, for `logits` [batch, vocabulary]; `live` are the rows' places among
        all prompts."""
        uniform = self.uniform[live, step].to(logits.device)
        # float64, because a running sum over a large vocabulary loses the rarest tokens in float32.
        probabilities = (logits.double() / self.temperature).softmax(dim=-1)
        order = None
        if self.top_p < 1:
            probabilities, order = probabilities.sort(dim=-1, descending=True)
            before = probabilities.cumsum(dim=-1) - probabilities
            probabilities = probabilities.masked_fill(before >= self.top_p, 0.0)
        cumulative = probabilities.cumsum(dim=-1)
        target = uniform[:, None] * cumulative[:, -1:]
        places = torch.searchsorted(cumulative, target, right=True)
        # Rounding can push the target onto the very end of the sum: then the last token that has any probability.
        # (The second bound keeps NaN, which no place is right for, inside the vocabulary until it is reported.)
        last = torch.searchsorted(cumulative, cumulative[:, -1:].contiguous())
        places = torch.minimum(places, last).clamp(max=cumulative.shape[-1] - 1)
        return (places if order is None else order.gather(1, places)).squeeze(1)


def _make_sampler(
    rows: list[_Row],
    temperature: float | None,
    top_p: float | None,
    generator: torch.Generator | Sequence[torch.Generator] | None,
) -> _Sampler | None:
    if temperature is None and top_p is None:
        if generator is not None:
            raise DecodingError("a generator has no effect on greedy decoding; give temperature or top_p with it")
        return None
    temperature = 1.0 if temperature is None else temperature
    top_p = 1.0 if top_p is None else top_p
    if not temperature > 0:
        raise DecodingError(f"temperature={temperature}: above 0; for the likeliest token leave it out")
    if not 0 < top_p <= 1:
        raise DecodingError(f"top_p={top_p}: above 0, at most 1")
    if generator is None:
        raise DecodingError("sampling needs a generator: a torch.Generator, or one for each prompt")
    generators = [generator] * len(rows) if isinstance(generator, torch.Generator) else list(generator)
    if len(generators) != len(rows):
        raise DecodingError(f"{len(generators)} generators for {len(rows)} prompts; give one for each")
    uniform = torch.zeros(len(rows), max(row.limit for row in rows), dtype=torch.float64)
    for number, (row, own) in enumerate(zip(rows, generators, strict=True)):
        uniform[number, : row.limit] = torch.rand(row.limit, generator=own, dtype=torch.float64)
    return _Sampler(uniform, temperature, top_p)
