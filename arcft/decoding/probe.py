"""Measure how a model can be decoded, where its architecture is not known to arcft/models/families.py.

Two prompts of different lengths are continued by the decoder side by side, and compared to plain forward passes over
each text alone.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from arcft.decoding.core.attention import decoding_attention
from arcft.decoding.core.forward import ForwardRunner, TokenChunk
from arcft.decoding.hf_generate import generate
from arcft.decoding.options import DecodingOptions
from arcft.errors import DecodingError
from arcft.models.base_model import base_model
from arcft.models.families import Decoder, known_decoder, not_causal, unlike_itself
from arcft.models.measuring import random_texts, relative_error, tolerance_of

_LENGTHS = (48, 29)
"""Tokens of the two prompts. Both are longer by the model's largest local window, as far as the context allows."""

_STEPS = (1, 1, 2)
"""Tokens fed after the prompts, pass by pass: a decoder takes several where they are known."""

_NEAR = 4

_measured: weakref.WeakKeyDictionary[torch.nn.Module, Decoder] = weakref.WeakKeyDictionary()


def decoder_for(model: PreTrainedModel | PeftModel, *, context: int | None = None) -> Decoder:
    """What completes the prompts of `model`: known by its architecture, or measured once for each loaded model.

    Args:
        model: A causal language model, with or without an adapter.
        context: The most tokens of prompt and answer; None for no limit.

    Raise ModelError if no decoder computes what the model does for a whole text.
    """
    base = base_model(model)
    if base not in _measured:
        own_code = not type(base).__module__.startswith("transformers.")
        known = None if own_code else known_decoder(base.config)
        _measured[base] = known or measure(model, context=context)
    return _measured[base]


def measure(model: PreTrainedModel | PeftModel, *, context: int | None = None) -> Decoder:
    """`decoder_for`, always measured."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            return _measure(model, context)
    finally:
        model.train(was_training)


def _measure(model: PreTrainedModel | PeftModel, context: int | None) -> Decoder:
    texts = random_texts(model.config, _LENGTHS, more=sum(_STEPS), context=context)
    expected = [_logits(model, text) for text in texts]
    kind = model.config.get_text_config(decoder=True).model_type
    tolerance = tolerance_of(model.dtype)
    cut = len(texts[0]) // 2
    # The last places before the cut: local attention sees no further.
    near = slice(cut - _NEAR, cut)
    if relative_error(_logits(model, texts[0][:cut])[near], expected[0][near]) > tolerance:
        raise not_causal(kind)
    try:
        found, ends = _decoded(model, texts)
        # Row by row, because the longest is right even where all are given its positions.
        rows = zip(found, expected, ends, strict=True)
        if all(relative_error(own, logits[at]) <= tolerance for own, logits, at in rows):
            return Decoder.OWN
    # Each architecture fails in its own way where it is fed what it does not expect.
    except Exception as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
    if _generates(model, texts, tolerance):
        return Decoder.GENERATE
    raise unlike_itself(kind)


def _logits(model: PreTrainedModel | PeftModel, text: Sequence[int]) -> torch.Tensor:
    """float32 [tokens, vocabulary] of a plain forward pass."""
    return model(input_ids=torch.tensor([text], device=model.device)).logits[0].float()


def _decoded(
    model: PreTrainedModel | PeftModel, texts: Sequence[Sequence[int]]
) -> tuple[list[torch.Tensor], list[list[int]]]:
    """Feed the texts side by side: their prompts, then a few tokens in each further pass.

    Returns for each text the logits after each pass, float32 [passes, vocabulary], and the places of the tokens that
    they follow.
    """
    starts = [0] * len(texts)
    ends: list[list[int]] = [[] for _ in texts]
    found: list[list[torch.Tensor]] = [[] for _ in texts]
    with decoding_attention(model):
        runner = ForwardRunner(model, len(texts), pad_id=0)
        for count in (None, *_STEPS):
            chunks = []
            for row, text in enumerate(texts):
                length = len(text) - sum(_STEPS) if count is None else count
                positions = list(range(starts[row], starts[row] + length))
                tokens = [text[place] for place in positions]
                chunks.append(TokenChunk(tokens, starts[row], positions, [length - 1]))
                starts[row] += length
                ends[row].append(positions[-1])
            scored = runner.run(0, range(len(texts)), chunks).logits
            for row in range(len(texts)):
                found[row].append(scored[row, 0])
    return [torch.stack(own) for own in found], ends


def _generates(model: PreTrainedModel | PeftModel, texts: Sequence[list[int]], tolerance: float) -> bool:
    """Whether `generate` writes what plain forward passes find likeliest."""
    options = DecodingOptions(pad_id=0)
    steps = sum(_STEPS)
    for text in texts:
        prompt = text[:-steps]
        try:
            (written,) = generate(model, [prompt], options, max_new_tokens=[steps])
        except (DecodingError, RuntimeError, TypeError, ValueError, AttributeError, IndexError, AssertionError):
            return False
        logits = _logits(model, prompt + written.token_ids)[len(prompt) - 1 : -1]
        tokens = torch.tensor(written.token_ids, device=logits.device)[:, None]
        behind = logits.max(dim=-1).values - logits.gather(-1, tokens).squeeze(-1)
        slack = tolerance * logits.std(dim=-1)
        logprob = float(logits.log_softmax(dim=-1).gather(-1, tokens).sum())
        if bool((behind > slack).any()) or abs(logprob - written.logprob) > float(slack.sum()):
            return False
    return True
