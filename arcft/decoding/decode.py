"""Greedy decoding and sampling with a key-value cache.

A decoding loop of our own instead of transformers' `generate`: rows that end leave the batch and waiting prompts take
their place, common prefixes are computed once, each row has its own token limit and random numbers, log-probabilities
come for free, and position ids may jump (`generate` can only count up). Models that this loop can't serve
(arcft/models/families.py) go through `generate`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from arcft.decoding.core.batch import advance_by, complete
from arcft.decoding.core.completion import Completion, Row, WrittenRow
from arcft.decoding.core.draft import Draft
from arcft.decoding.core.forward import TokenChunk
from arcft.decoding.core.lm_head import NextTokenLogits
from arcft.decoding.core.sampling import Sampler, make_sampler
from arcft.decoding.hf_generate import generate
from arcft.decoding.options import DecodingOptions, check_one_each, token_limits
from arcft.decoding.probe import decoder_for
from arcft.errors import DecodingError
from arcft.models.families import Decoder

__all__ = ["Completion", "DecodingError", "DecodingOptions", "decode"]


def decode(
    model: PreTrainedModel | PeftModel,
    prompts: Sequence[list[int]],
    options: DecodingOptions,
    *,
    max_new_tokens: int | Sequence[int],
    draft_tokens: Sequence[Sequence[int] | None] | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
) -> list[Completion]:
    """Complete each prompt once.

    Args:
        model: A causal language model of transformers, or a PEFT model around one. It runs in evaluation mode; its
            mode is restored afterwards.
        prompts: Token ids, at least one each.
        options: Shared with `search` and `score`.
        max_new_tokens: The limit for all prompts, or one for each; at least 1. The end token counts.
        draft_tokens: For each prompt a likely completion, or None. Drafts are verified many tokens per forward pass
            (speculative decoding): they change the time it takes, not the result. Greedy decoding only; unused for
            models that go through `generate`.
        temperature: Divides the logits before sampling; None together with `top_p` None decodes greedily, and then
            equals `generate` token for token in float32.
        top_p: Nucleus sampling: the smallest set of tokens with at least this probability.
        generator: A CPU generator for sampling. With one for each prompt, the tokens drawn for a prompt do not depend
            on the other prompts.

    Returns:
        A completion for each prompt, in the order of `prompts`.

    Raises:
        DecodingError: logits that are not finite, an empty prompt, a limit below 1, a missing or unused generator, or
            a list that does not have one entry for each prompt.
        ModelError: the model can't be decoded.
    """
    limits = token_limits(prompts, max_new_tokens)
    if not prompts:
        return []
    sampler = make_sampler(limits, temperature, top_p, generator)
    if sampler is not None and draft_tokens is not None:
        raise DecodingError("draft_tokens need greedy decoding; leave them out, or temperature and top_p")
    check_one_each(prompts, {"draft_tokens": draft_tokens, "adapters": options.adapters})
    if decoder_for(model) is Decoder.GENERATE:
        return generate(model, prompts, options, max_new_tokens=limits, sampler=sampler)
    rows = [
        WrittenRow(
            number,
            prompt,
            limits[number],
            end_ids=frozenset(options.end_ids),
            positions=options.positions,
            cursor=None if grammar is None else grammar(),
            draft=None if draft_tokens is None else Draft(draft_tokens[number] or []),
        )
        for number, (prompt, grammar) in enumerate(zip(prompts, options.grammars(prompts), strict=True))
    ]
    choose = _most_likely if sampler is None else functools.partial(_sampled, sampler)
    complete(model, rows, advance_by(choose), options)
    return [row.completion() for row in rows]


def _most_likely(rows: Sequence[Row], chunks: Sequence[TokenChunk], scored: NextTokenLogits) -> torch.Tensor:
    return scored.logits.argmax(dim=-1)


def _sampled(
    sampler: Sampler, rows: Sequence[Row], chunks: Sequence[TokenChunk], scored: NextTokenLogits
) -> torch.Tensor:
    # Without drafts, each row asks about one place per pass.
    numbers, steps = [row.prompt_index for row in rows], [row.num_tokens for row in rows]
    return sampler.draw(scored.logits[:, 0], numbers, steps)[:, None]
