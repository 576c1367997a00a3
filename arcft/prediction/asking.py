"""Prompts of a batch to completions, by whichever way of predicting a config names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from arcft.config.inference import InferenceConfig
from arcft.decoding.core.batch import Route
from arcft.decoding.decode import Completion, decode
from arcft.decoding.hf_generate import generate
from arcft.decoding.search import search
from arcft.prediction.prompts import AugmentedPrompt, derived_seed
from arcft.problems.arc.format.examples import ExampleBuilder


def complete_prompts(
    model: PreTrainedModel | PeftModel,
    builder: ExampleBuilder,
    batch: Sequence[AugmentedPrompt],
    config: InferenceConfig,
    *,
    guesses: Sequence[list[int] | None] | None = None,
    route: Route | None = None,
    adapters: Sequence[int] | None = None,
    until: Callable[[], bool] | None = None,
) -> list[list[Completion]]:
    """Complete each prompt of `batch`, one or more; with inference=search in several ways, the likeliest first.

    A search that finds nothing above its threshold gives the greedy completion. `until` ends a search early; nothing
    else asks it. `route` and `adapters` are those of `decode`.
    """
    tokenization = builder.tokenization
    prompts = [prompt.token_ids for prompt in batch]
    common: dict[str, Any] = {
        "max_new_tokens": [prompt.max_new_tokens for prompt in batch],
        "end_ids": tokenization.end_ids,
        "pad_id": tokenization.end_id,  # padding is masked, so any token will do
        "route": route,
    }
    if config.name == "generate":
        return [[completion] for completion in generate(model, prompts, **common)]
    common |= {
        "positions": tokenization.positions,
        "grammar": builder.grammar if config.grammar else None,
        "adapters": adapters,
    }
    if config.name == "search":
        assert config.threshold is not None  # InferenceConfig.problems
        assert config.max_nodes is not None
        found = search(
            model,
            prompts,
            threshold=config.threshold,
            max_nodes=config.max_nodes,
            batch_size=config.batch_size,
            until=until,
            **common,
        )
        return [one.completions or [one.greedy] for one in found]
    generators = None
    if config.name == "sample":
        generators = [
            torch.Generator().manual_seed(derived_seed(config.seed, *prompt.test, prompt.number)) for prompt in batch
        ]
    completions = decode(
        model,
        prompts,
        temperature=config.temperature,
        top_p=config.top_p,
        generator=generators,
        guesses=guesses,
        **common,
    )
    return [[completion] for completion in completions]
