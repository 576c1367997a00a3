"""Sampling the next token of each row."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from arcft.decoding.options import check_one_each
from arcft.errors import DecodingError


class Sampler:
    """Samples by inverting the cumulative distribution at one uniform number for each prompt and step.

    All uniform numbers are drawn in advance, prompt by prompt, so the tokens sampled for one prompt do not depend on
    when others begin or end.
    """

    def __init__(self, uniform: torch.Tensor, temperature: float, top_p: float) -> None:
        """`uniform` is float64 [prompts, steps] in [0, 1)."""
        self.uniform = uniform
        self.temperature = temperature
        self.top_p = top_p

    def draw(self, logits: torch.Tensor, prompts: Sequence[int], steps: Sequence[int]) -> torch.Tensor:
        """Sample one token for each row.

        Args:
            logits: float [rows, vocabulary]; -inf for tokens that are not allowed.
            prompts: The prompt index of each row.
            steps: The completion tokens that each row has so far.

        Returns:
            Indices into the vocabulary, int64 [rows].
        """
        uniform = self.uniform[prompts, steps].to(logits.device)
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
        # Rounding can push the target to the very end of the sum: then take the last token with any probability.
        # The second bound keeps NaN inside the vocabulary until it is reported.
        last = torch.searchsorted(cumulative, cumulative[:, -1:].contiguous())
        places = torch.minimum(places, last).clamp(max=cumulative.shape[-1] - 1)
        return (places if order is None else order.gather(1, places)).squeeze(1)


def make_sampler(
    limits: Sequence[int],
    temperature: float | None,
    top_p: float | None,
    generator: torch.Generator | Sequence[torch.Generator] | None,
) -> Sampler | None:
    """The sampler for the arguments of `decode`; None for greedy decoding.

    `limits` is the maximum number of tokens of each prompt. Raise DecodingError for values out of range, or a generator
    that is missing, unused or not one for each prompt.
    """
    if temperature is None and top_p is None:
        if generator is not None:
            raise DecodingError("a generator has no effect on greedy decoding; give temperature or top_p with it")
        return None
    temperature = 1.0 if temperature is None else temperature
    top_p = 1.0 if top_p is None else top_p
    if not temperature > 0:
        raise DecodingError(f"temperature={temperature}: above 0; leave it out for greedy decoding")
    if not 0 < top_p <= 1:
        raise DecodingError(f"top_p={top_p}: above 0, at most 1")
    if generator is None:
        raise DecodingError("sampling needs a generator: a torch.Generator, or one for each prompt")
    generators = [generator] * len(limits) if isinstance(generator, torch.Generator) else list(generator)
    check_one_each(limits, {"generators": generators})
    uniform = torch.zeros(len(limits), max(limits), dtype=torch.float64)
    for number, (limit, own) in enumerate(zip(limits, generators, strict=True)):
        uniform[number, :limit] = torch.rand(limit, generator=own, dtype=torch.float64)
    return Sampler(uniform, temperature, top_p)
