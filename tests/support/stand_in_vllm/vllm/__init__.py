"""A stub of vLLM: the public names that arcft uses, implemented by transformers on a CPU.

It shows that arcft calls these names as documented and reads what they return. It does not show that vLLM works: that
was not yet run on a GPU.

If the environment variable STAND_IN_DIES names a file that does not exist, the process creates it and dies at the
second call.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from vllm.lora.request import LoRARequest


class SamplingParams:
    def __init__(
        self,
        *,
        temperature: float = 1.0,
        max_tokens: int | None = 16,
        ignore_eos: bool = False,
        stop_token_ids: list[int] | None = None,
        logprobs: int | None = None,
        detokenize: bool = True,
    ) -> None:
        assert temperature == 0
        assert ignore_eos
        assert not detokenize
        self.max_tokens, self.stop_token_ids, self.logprobs = max_tokens, stop_token_ids or [], logprobs


class CompletionOutput:
    def __init__(self, token_ids: list[int], cumulative_logprob: float | None, finish_reason: str) -> None:
        self.token_ids, self.cumulative_logprob, self.finish_reason = token_ids, cumulative_logprob, finish_reason


class RequestOutput:
    def __init__(self, outputs: list[CompletionOutput]) -> None:
        self.outputs = outputs


class LLM:
    def __init__(
        self,
        model: str,
        *,
        skip_tokenizer_init: bool = False,
        dtype: str = "auto",
        seed: int = 0,
        max_model_len: int | None = None,
        enable_lora: bool = False,
        max_lora_rank: int = 16,
        max_loras: int = 1,
    ) -> None:
        assert skip_tokenizer_init
        self.model: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        self.max_model_len, self.enable_lora, self.max_lora_rank = max_model_len, enable_lora, max_lora_rank
        self.calls = 0

    def generate(
        self,
        prompts: Sequence[dict[str, list[int]]],
        sampling_params: Sequence[SamplingParams],
        *,
        use_tqdm: bool = True,
        lora_request: Sequence[LoRARequest | None] | None = None,
    ) -> list[RequestOutput]:
        dies = os.environ.get("STAND_IN_DIES")
        self.calls += 1
        if dies and self.calls == 2 and not Path(dies).exists():
            Path(dies).touch()
            os._exit(1)
        requests = lora_request or [None] * len(prompts)
        return [
            RequestOutput([self._written(prompt["prompt_token_ids"], parameters, request)])
            for prompt, parameters, request in zip(prompts, sampling_params, requests, strict=True)
        ]

    def _written(self, prompt: list[int], parameters: SamplingParams, request: LoRARequest | None) -> CompletionOutput:
        assert self.max_model_len is None or len(prompt) + (parameters.max_tokens or 0) <= self.max_model_len
        ids, logprob = list(prompt), 0.0
        for _ in range(parameters.max_tokens or 0):
            with torch.inference_mode():
                scores = self._adapted(request)(torch.tensor([ids])).logits[0, -1].log_softmax(dim=-1)
            ids.append(int(scores.argmax()))
            logprob += float(scores.max())
            if ids[-1] in parameters.stop_token_ids:
                break
        written = ids[len(prompt) :]
        reason = "stop" if written[-1] in parameters.stop_token_ids else "length"
        return CompletionOutput(written, None if parameters.logprobs is None else logprob, reason)

    def _adapted(self, request: LoRARequest | None) -> Any:
        if request is None:
            assert not isinstance(self.model, PeftModel)
            return self.model
        assert self.enable_lora
        if not isinstance(self.model, PeftModel):
            self.model = PeftModel.from_pretrained(self.model, request.lora_path, adapter_name=request.lora_name)
        if request.lora_name not in self.model.peft_config:
            self.model.load_adapter(request.lora_path, adapter_name=request.lora_name)
        assert self.model.peft_config[request.lora_name].r <= self.max_lora_rank
        self.model.set_adapter(request.lora_name)
        return self.model.eval()
