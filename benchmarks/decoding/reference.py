"""The reference: transformers' `generate` with its default attention."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import DynamicCache, GenerationConfig, PreTrainedModel

from arcft.protocols import Positions


@contextlib.contextmanager
def usual_attention(model: Any) -> Iterator[None]:
    """Make `model` use transformers' sdpa attention inside the context."""
    before = model.config._attn_implementation
    model.config._attn_implementation = "sdpa"
    try:
        yield
    finally:
        model.config._attn_implementation = before


@torch.inference_mode()
def generate(
    model: PreTrainedModel,
    prompts: Sequence[list[int]],
    new_tokens: int,
    *,
    pad_id: int,
    past: DynamicCache | None = None,
    positions: Positions | None = None,
) -> list[list[int]]:
    """Greedily decode exactly `new_tokens` tokens after each prompt, ignoring end tokens.

    `past` caches all tokens but the last of prompts of equal length. `generate` only knows consecutive positions; a
    hook replaces them where they jump, at a cost of a few microseconds per row and token.
    """
    width = max(map(len, prompts))
    ids = torch.tensor([[pad_id] * (width - len(prompt)) + prompt for prompt in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(own)) + [1] * len(own) for own in prompts], device=model.device)
    # generate() would merge the model's own generation config, penalties for example, into any config passed to it.
    own_config, model.generation_config = (
        model.generation_config,
        GenerationConfig(max_new_tokens=new_tokens, do_sample=False, pad_token_id=pad_id),
    )
    with contextlib.ExitStack() as stack:
        stack.callback(setattr, model, "generation_config", own_config)
        stack.enter_context(usual_attention(model))
        if positions is not None:
            stack.enter_context(_jumping(model, prompts, positions))
        options = {} if past is None else {"past_key_values": past}
        written: Any = model.generate(input_ids=ids, attention_mask=mask, **options)  # type: ignore[operator]
    assert written.shape[1] == width + new_tokens, "an answer ended early"
    return written[:, width:].tolist()


@torch.inference_mode()
def read(model: Any, prompt: list[int], rows: int) -> DynamicCache:
    """The KV cache of all tokens of `prompt` but the last, repeated for `rows` rows."""
    with usual_attention(model):
        ids = torch.tensor([prompt[:-1]], device=model.device)
        past = model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values
    past.batch_repeat_interleave(rows)
    return past


@contextlib.contextmanager
def _jumping(model: Any, prompts: Sequence[list[int]], positions: Positions) -> Iterator[None]:
    places = [positions(prompt) for prompt in prompts]
    width = max(map(len, places))
    fed = False

    def before(module: Any, args: Any, arguments: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        nonlocal fed
        if fed:
            for own, tokens in zip(places, arguments["input_ids"].tolist(), strict=True):
                own[:] = positions(tokens, after=own[-1])
            rows = places
        else:
            rows = [[0] * (width - len(own)) + own for own in places]
            fed = True
        return args, {**arguments, "position_ids": torch.tensor(rows, device=model.device)}

    handle = model.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
