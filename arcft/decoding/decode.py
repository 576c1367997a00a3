"""Turn prompts into completions: a cached greedy or sampling loop over a batch. Knows tokens and no grids.

A loop of our own instead of `generate`, because rows that have ended leave the batch and others take their place, what
prompts begin with in common is computed once, each row may have its own limit and its own random numbers, the
log-probability comes for free, and positions may jump (`generate` only counts on).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from arcft.decoding.core.batch import Route, chosen, complete
from arcft.decoding.core.completion import Completion, WrittenRow
from arcft.decoding.core.draft import Draft
from arcft.decoding.core.forward import TokenChunk
from arcft.decoding.core.lm_head import NextTokenLogits
from arcft.decoding.core.rows import Row
from arcft.decoding.core.sampling import Sampler, make_sampler
from arcft.errors import DecodingError
from arcft.protocols import Grammar, Positions

__all__ = ["Completion", "DecodingError", "decode"]


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
    route: Route | None = None,
    adapters: Sequence[int] | None = None,
    batch_size: int | None = None,
    share_prefixes: bool = True,
    grammar: Grammar | Sequence[Grammar] | None = None,
    guesses: Sequence[Sequence[int] | None] | None = None,
) -> list[Completion]:
    """Complete `prompts` and return a Completion for each, in their order.

    `model` is a causal language model of transformers, or a PEFT model around one; it is put into evaluation mode
    meanwhile. Without `temperature` and `top_p` each token is the likeliest one, equal to `generate` token for token
    in float32; with one of them it is drawn with a CPU `generator`. With one generator for each prompt, what is drawn
    for a prompt does not depend on the others beside it. `max_new_tokens` is one limit for all, or one for each prompt.

    `batch_size` prompts at most are completed side by side (None: all), similar ones together; where one ends, another
    takes its place. With `share_prefixes`, what prompts begin with in common is computed once and copied. Sums of
    floating-point numbers differ in their last bits with the shape of a pass, and so with what else is in a call: where
    answers must not depend on that, the caller has to choose by itself what goes into a call.

    With a `grammar`, for all prompts or one for each, only tokens that it allows are chosen, and what it leaves no
    choice about is written without a pass of its own; log-probabilities are over the allowed tokens. `guesses`, token
    ids for each prompt or None, are what somebody thinks the completions will be: they are verified many tokens a pass,
    and change how long it takes but nothing else. They go with greedy decoding only.

    `route` is told which prompts the rows of the batch hold, by their numbers, before the first pass and whenever they
    are others. Where it gives rows different weights, prompts share a beginning only within the same one of `adapters`,
    numbers for each prompt, and without these none do.

    Raises DecodingError for logits that are not finite, an empty prompt, a limit below 1, a wrong generator, or lists
    that are not of one length.
    """
    limits = token_limits(prompts, max_new_tokens)
    if not prompts:
        return []
    sampler = make_sampler(limits, temperature, top_p, generator)
    if sampler is not None and guesses is not None:
        raise DecodingError("guesses are verified by greedy decoding only; leave them out, or temperature and top_p")
    grammars = grammar if isinstance(grammar, Sequence) else [grammar] * len(prompts)
    for name, values in (("grammars", grammars), ("guesses", guesses), ("adapters", adapters)):
        if values is not None and len(values) != len(prompts):
            raise DecodingError(f"{len(values)} {name} for {len(prompts)} prompts; give one for each")
    rows = [
        WrittenRow(
            number,
            prompt,
            limits[number],
            end_ids=frozenset(end_ids),
            positions=positions,
            cursor=None if own is None else own(),
            guess=None if guesses is None else Draft(guesses[number] or []),
        )
        for number, (prompt, own) in enumerate(zip(prompts, grammars, strict=True))
    ]
    complete(
        model,
        rows,
        chosen(_greedy if sampler is None else functools.partial(_drawn, sampler)),
        pad_id=pad_id,
        batch_size=batch_size,
        share_prefixes=share_prefixes,
        route=route,
        adapters=adapters,
    )
    return [row.completion() for row in rows]


def _greedy(rows: Sequence[Row], chunks: Sequence[TokenChunk], scores: NextTokenLogits) -> torch.Tensor:
    return scores.logits.argmax(dim=-1)


def _drawn(
    sampler: Sampler, rows: Sequence[Row], chunks: Sequence[TokenChunk], scores: NextTokenLogits
) -> torch.Tensor:
    numbers, steps = [row.number for row in rows], [row.num_tokens for row in rows]
    return sampler.draw(scores.logits[:, 0], numbers, steps)[:, None]


def token_limits(prompts: Sequence[list[int]], max_new_tokens: int | Sequence[int]) -> list[int]:
    """One for each prompt, checked as decode says."""
    limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
    if len(limits) != len(prompts):
        raise DecodingError(f"{len(limits)} values of max_new_tokens for {len(prompts)} prompts; give one for each")
    for number, (prompt, limit) in enumerate(zip(prompts, limits, strict=True)):
        if not prompt:
            raise DecodingError(f"prompt {number} is empty; a model needs at least one token to go on from")
        if limit < 1:
            raise DecodingError(f"max_new_tokens={limit} for prompt {number}: at least 1")
    return limits
