"""Greedy decoding by transformers' own `generate`: the reference that our decoder is held to."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from peft import PeftModel
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from arcft.decoding.core.completion import Completion, not_finite
from arcft.decoding.options import DecodingOptions
from arcft.errors import DecodingError


def generate(
    model: PreTrainedModel | PeftModel,
    prompts: Sequence[list[int]],
    options: DecodingOptions,
    *,
    max_new_tokens: Sequence[int],
) -> list[Completion]:
    """Complete one or more prompts side by side, greedily; `decode` does the same in less time.

    Args:
        model: A causal language model of any architecture, or a PEFT model around one. It runs in evaluation mode;
            settings of its own generation_config, such as penalties, have no effect.
        prompts: Token ids, at least one each.
        options: Of these, `end_ids`, `pad_id` and `on_rows_changed` apply. Rows stay in place until the last one ends.
        max_new_tokens: The limit of each prompt, at least 1.

    Returns:
        A completion for each prompt, in order.

    Raises:
        DecodingError: logits that are not finite, or options with positions or a grammar, which `generate` does
            not support.
    """
    if options.positions is not None or options.grammar is not None:
        raise DecodingError("generate takes neither positions nor a grammar; use decode")
    width = max(map(len, prompts))
    device = model.device
    ids = torch.tensor([[options.pad_id] * (width - len(prompt)) + prompt for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    recorder = _LogprobRecorder()
    inner: PreTrainedModel = model.get_base_model() if isinstance(model, PeftModel) else model  # type: ignore[assignment]
    was_training, own_config = model.training, inner.generation_config
    model.eval()
    # `generate` merges the model's own settings into any config it is passed, so they have to be replaced.
    inner.generation_config = GenerationConfig(
        max_new_tokens=max(max_new_tokens),
        do_sample=False,
        eos_token_id=list(options.end_ids),
        pad_token_id=options.pad_id,
    )
    try:
        if options.on_rows_changed is not None:
            options.on_rows_changed(range(len(prompts)))
        written: torch.Tensor = inner.generate(  # type: ignore[operator]
            input_ids=ids, attention_mask=mask, logits_processor=LogitsProcessorList([recorder])
        )
    finally:
        inner.generation_config = own_config
        model.train(was_training)
    logprobs = torch.stack(recorder.logprobs, dim=1).tolist()
    return [
        _completion(number, tokens[:limit], values, frozenset(options.end_ids))
        for number, (tokens, values, limit) in enumerate(
            zip(written[:, width:].tolist(), logprobs, max_new_tokens, strict=True)
        )
    ]


class _LogprobRecorder(LogitsProcessor):
    """Records the log-probability of the likeliest token; keeping whole rows of logits would fill the memory."""

    def __init__(self) -> None:
        self.logprobs: list[torch.Tensor] = []
        """float [batch] for each step."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.logprobs.append(scores.max(dim=-1).values - scores.logsumexp(dim=-1))
        return scores


def _completion(number: int, tokens: list[int], logprobs: list[float], end_ids: frozenset[int]) -> Completion:
    """A row of `generate`, which is padded after its end."""
    end = next((place for place, token in enumerate(tokens) if token in end_ids), None)
    count = len(tokens) if end is None else end + 1
    logprob = math.fsum(logprobs[:count])
    if not math.isfinite(logprob):
        raise not_finite(number)
    return Completion(tokens[: count - (end is not None)], logprob, count, end is not None)
