"""Draws the next token of each row."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from arcft.errors import DecodingError


class Sampler:
    """Draws tokens by inverting the cumulative distribution at one uniform number for each prompt and step.

    All numbers, `uniform` [prompts, steps] float64, are drawn beforehand, prompt by prompt, so what is drawn for one
    does not depend on when others begin or end.
    """

    def __init__(self, uniform: torch.Tensor, temperature: float, top_p: float) -> None:
        self.uniform = uniform
        self.temperature = temperature
        self.top_p = top_p

    def draw(self, logits: torch.Tensor, prompts: Sequence[int], steps: Sequence[int]) -> torch.Tensor:
        """Return places in the vocabulary [rows], int64, for `logits` [rows, vocabulary], which may hold minus
        infinity; the rows are at these steps of these prompts."""
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
        # Rounding can push the target onto the very end of the sum: then the last token that has any probability.
        # (The second bound keeps NaN, which no place is right for, inside the vocabulary until it is reported.)
        last = torch.searchsorted(cumulative, cumulative[:, -1:].contiguous())
        places = torch.minimum(places, last).clamp(max=cumulative.shape[-1] - 1)
        return (places if order is None else order.gather(1, places)).squeeze(1)


def make_sampler(
    limits: Sequence[int],
    temperature: float | None,
    top_p: float | None,
    generator: torch.Generator | Sequence[torch.Generator] | None,
) -> Sampler | None:
    """None for greedy decoding; raise DecodingError where the settings do not go together. `limits` [prompts] are the
    most tokens that are drawn for each."""
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
    generators = [generator] * len(limits) if isinstance(generator, torch.Generator) else list(generator)
    if len(generators) != len(limits):
        raise DecodingError(f"{len(generators)} generators for {len(limits)} prompts; give one for each")
    uniform = torch.zeros(len(limits), max(limits), dtype=torch.float64)
    for number, (limit, own) in enumerate(zip(limits, generators, strict=True)):
        uniform[number, :limit] = torch.rand(limit, generator=own, dtype=torch.float64)
    return Sampler(uniform, temperature, top_p)
