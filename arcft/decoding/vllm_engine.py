"""Greedy decoding by vLLM, with LoRA adapters.

Tested against a stub; not yet run on a GPU. Uses only vLLM's public interface for offline inference: `vllm.LLM`,
`vllm.SamplingParams` and `vllm.lora.request.LoRARequest`.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
from collections.abc import Callable
from typing import Any

from arcft.decoding.core.completion import Completion
from arcft.errors import ArcftError

_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""LoRA ranks that vLLM accepts as `max_lora_rank`."""

_ADAPTERS = 8
"""Maximum number of adapters in one batch: each takes GPU memory."""


class VllmError(ArcftError):
    """vLLM is not installed, or does not support the request."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """Settings that an engine starts with."""

    model: str
    """Hub id or folder of the base model."""

    dtype: str
    """auto, float32, bfloat16 or float16."""

    max_seq_length: int
    """Maximum number of tokens of prompt and completion together."""

    adapters: int
    """Number of adapters."""

    rank: int
    """The highest rank of any adapter; 0 without adapters."""

    seed: int


@dataclasses.dataclass(frozen=True)
class Request:
    """A prompt to complete, with its token limit and its end tokens."""

    token_ids: list[int]
    max_new_tokens: int
    end_ids: list[int]
    adapter: str | None = None
    """Folder of an adapter in PEFT's format; None for the base model."""


def require_vllm() -> None:
    """Raise VllmError if vLLM is not installed."""
    if importlib.util.find_spec("vllm") is None:
        raise VllmError(
            "inference=vllm needs a GPU and the extra: pip install 'arcft[vllm]'; or use inference=greedy, which needs "
            "neither"
        )


def start_vllm(settings: EngineSettings) -> Callable[[list[Request]], list[Completion]]:
    """Load the model, which takes minutes, and return a function that completes requests greedily.

    Raise VllmError if vLLM is not installed or does not support the settings.
    """
    require_vllm()
    import vllm
    from vllm.lora.request import LoRARequest

    engine = vllm.LLM(**engine_options(settings))
    numbers: dict[str, int] = {}

    def adapter(folder: str | None) -> Any:
        if folder is None:
            return None
        number = numbers.setdefault(folder, len(numbers) + 1)
        return LoRARequest(lora_name=f"adapter-{number}", lora_int_id=number, lora_path=folder)

    def complete(requests: list[Request]) -> list[Completion]:
        outputs = engine.generate(
            [{"prompt_token_ids": request.token_ids} for request in requests],
            [vllm.SamplingParams(**sampling_options(request)) for request in requests],
            use_tqdm=False,
            lora_request=[adapter(request.adapter) for request in requests] if settings.rank else None,
        )
        return [read_output(output.outputs[0], request) for output, request in zip(outputs, requests, strict=True)]

    return complete


def engine_options(settings: EngineSettings) -> dict[str, Any]:
    """Arguments of vllm.LLM. Its prefix cache is on by default. Raise VllmError for a rank that it does not support."""
    options = {
        "model": settings.model,
        # Token ids go in and come out.
        "skip_tokenizer_init": True,
        "dtype": settings.dtype,
        "max_model_len": settings.max_seq_length,
        "seed": settings.seed,
    }
    if settings.rank:
        room = next((rank for rank in _RANKS if rank >= settings.rank), None)
        if room is None:
            raise VllmError(
                f"lora.r={settings.rank}: vLLM serves adapters up to rank {_RANKS[-1]}; use inference=greedy"
            )
        options |= {"enable_lora": True, "max_lora_rank": room, "max_loras": min(settings.adapters, _ADAPTERS)}
    return options


def sampling_options(request: Request) -> dict[str, Any]:
    """Arguments of vllm.SamplingParams."""
    return {
        "temperature": 0.0,
        "max_tokens": request.max_new_tokens,
        # The end token in the model's config is not always the one that the adapter was trained with.
        "ignore_eos": True,
        "stop_token_ids": request.end_ids,
        # Log-probabilities of the chosen tokens only.
        "logprobs": 0,
        "detokenize": False,
    }


def read_output(output: Any, request: Request) -> Completion:
    """Convert a vllm.CompletionOutput. Raise VllmError for a log-probability that is missing or not finite."""
    tokens = list(output.token_ids)
    if output.cumulative_logprob is None or not math.isfinite(output.cumulative_logprob):
        raise VllmError(
            f"vLLM returned a log-probability of {output.cumulative_logprob}; the weights are damaged, or overflow in "
            "this dtype: try inference.dtype=float32"
        )
    ended = bool(tokens) and tokens[-1] in request.end_ids
    return Completion(tokens[:-1] if ended else tokens, output.cumulative_logprob, len(tokens), ended)
