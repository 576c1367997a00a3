"""Prompts into completions by transformers' own `generate`: the reference that decoders are held to."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from peft import PeftModel
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from arcft.decoding.core.batch import Route
from arcft.decoding.core.completion import Completion
from arcft.errors import DecodingError


def generate(
    model: PreTrainedModel | PeftModel,
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: Sequence[int],
    end_ids: Sequence[int],
    pad_id: int,
    route: Route | None = None,
) -> list[Completion]:
    """Complete `prompts`, one or more, side by side, each token the likeliest one; return them in their order.

    `model` is put into evaluation mode meanwhile, and what its generation_config asks for is left aside. `route` is
    told once which prompts the rows hold: they stay where they are. Of the rest see `decode`, which says the same in
    less time; it also takes positions that jump, which `generate` can't. Raises DecodingError for logits that are not
    finite.
    """
    width = max(map(len, prompts))
    device = model.device
    ids = torch.tensor([[pad_id] * (width - len(prompt)) + prompt for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    recorder = _Recorder()
    inner: PreTrainedModel = model.get_base_model() if isinstance(model, PeftModel) else model  # type: ignore[assignment]
    was_training, own_config = model.training, inner.generation_config
    model.eval()
    # Penalties and the like of a model's own would be added to any config that is handed over.
    inner.generation_config = GenerationConfig(
        max_new_tokens=max(max_new_tokens), do_sample=False, eos_token_id=list(end_ids), pad_token_id=pad_id
    )
    try:
        if route is not None:
            route(range(len(prompts)))
        written: torch.Tensor = inner.generate(  # type: ignore[operator]
            input_ids=ids, attention_mask=mask, logits_processor=LogitsProcessorList([recorder])
        )
    finally:
        inner.generation_config = own_config
        model.train(was_training)
    logprobs = torch.stack(recorder.logprobs, dim=1).tolist()
    return [
        _completion(number, tokens[:limit], values, frozenset(end_ids))
        for number, (tokens, values, limit) in enumerate(
            zip(written[:, width:].tolist(), logprobs, max_new_tokens, strict=True)
        )
    ]


class _Recorder(LogitsProcessor):
    """Keeps the log-probability of each likeliest token, for scores of whole vocabularies would fill the memory."""

    def __init__(self) -> None:
        self.logprobs: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.logprobs.append(scores.max(dim=-1).values - scores.logsumexp(dim=-1))
        return scores


def _completion(number: int, tokens: list[int], logprobs: list[float], end_ids: frozenset[int]) -> Completion:
    """What stands beyond the end is padding."""
    end = next((place for place, token in enumerate(tokens) if token in end_ids), None)
    count = len(tokens) if end is None else end + 1
    logprob = math.fsum(logprobs[:count])
    if not math.isfinite(logprob):
        raise DecodingError(
            f"prompt {number}: the model's logits are not finite numbers; the weights are damaged, or overflow in this "
            "dtype: try inference.dtype=float32"
        )
    return Completion(tokens[: count - (end is not None)], logprob, count, end is not None)
