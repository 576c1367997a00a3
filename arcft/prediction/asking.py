"""Prompts of a batch to completions, by whichever way of predicting a config names."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from arcft.config.inference import InferenceConfig
from arcft.decoding.decode import Completion, decode
from arcft.decoding.hf_generate import generate
from arcft.decoding.options import DecodingOptions, RowsChanged
from arcft.decoding.search import search
from arcft.prediction.prompts import AugmentedPrompt, derived_seed
from arcft.problems.arc.format.examples import ExampleBuilder


def complete_prompts(
    model: PreTrainedModel | PeftModel,
    builder: ExampleBuilder,
    batch: Sequence[AugmentedPrompt],
    config: InferenceConfig,
    *,
    draft_tokens: Sequence[list[int] | None] | None = None,
    on_rows_changed: RowsChanged | None = None,
    adapters: Sequence[int] | None = None,
    until: Callable[[], bool] | None = None,
) -> list[list[Completion]]:
    """Complete each prompt of `batch`, one or more; with inference=search in several ways, the likeliest first.

    A search that finds nothing above its threshold gives the greedy completion. `until` ends a search early; nothing
    else asks it. `draft_tokens`, `on_rows_changed` and `adapters` are those of `decode`.
    """
    tokenization = builder.tokenization
    prompts = [prompt.token_ids for prompt in batch]
    limits = [prompt.max_new_tokens for prompt in batch]
    options = DecodingOptions(
        end_ids=tokenization.end_ids, pad_id=tokenization.end_id, on_rows_changed=on_rows_changed, adapters=adapters
    )
    if config.name == "generate":
        return [[completion] for completion in generate(model, prompts, options, max_new_tokens=limits)]
    options = dataclasses.replace(
        options, positions=tokenization.positions, grammar=builder.grammar if config.grammar else None
    )
    if config.name == "search":
        assert config.threshold is not None  # InferenceConfig.problems
        assert config.max_nodes is not None
        found = search(
            model,
            prompts,
            dataclasses.replace(options, batch_size=config.batch_size),
            threshold=config.threshold,
            max_nodes=config.max_nodes,
            max_new_tokens=limits,
            until=until,
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
        options,
        max_new_tokens=limits,
        draft_tokens=draft_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        generator=generators,
    )
    return [[completion] for completion in completions]
