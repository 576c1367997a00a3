"""Config to objects: the one place where a choice in YAML becomes something that runs."""

from __future__ import annotations

from typing import Any, Literal

import torch
from transformers import PreTrainedTokenizerBase

from arcft.config.inference import InferenceConfig, VllmConfig
from arcft.config.recommended import LossOn
from arcft.config.schema import ConfigError
from arcft.decoding.vllm_engine import require_vllm
from arcft.protocols import DealViews, Kind
from arcft.text.builder import ExampleBuilder
from arcft.text.tokens import Tokenization


def example_builder(
    kind: Kind,
    encoder_config: Any,
    prompt_config: Any,
    tokenizer: PreTrainedTokenizerBase,
    *,
    positions: str,
    max_seq_length: int,
    drop_demonstrations: bool = False,
    loss_on: LossOn = "completion",
) -> ExampleBuilder:
    """Build format and tokenisation; raise ArcftError where the tokenizer does not suit the format, or where
    `positions`, those of ModelConfig, do not fit the text. The configs are None for kinds without such a group."""
    format, jumping = kind.format(encoder_config, prompt_config, tokenizer, positions=positions)
    template: Literal["auto", "never"] = "auto" if prompt_config is None else prompt_config.chat_template
    tokenization = Tokenization(tokenizer, chat_template=template, loss_on=loss_on, positions=jumping)
    kind.check_positions(format, tokenization, positions)
    return ExampleBuilder(format, tokenization, max_seq_length=max_seq_length, drop_demonstrations=drop_demonstrations)


def check_answers(builder: ExampleBuilder, inference: InferenceConfig, positions: str) -> None:
    """Raise ArcftError where the prompts of `builder` can't be answered as `inference` says: by a model of such
    positions, under a grammar, or on this machine."""
    problems = list(inference.problems_with(positions))
    if problems:
        raise ConfigError(problems)
    if isinstance(inference, VllmConfig):
        require_vllm()
    if inference.uses_grammar:
        builder.grammar()


def view_dealer(kind: Kind, inference: InferenceConfig) -> DealViews:
    """Deals the augmentations of prompts that `inference` names."""
    names = kind.augmentations if inference.augmentations == "all" else inference.augmentations
    return kind.deal_views(names)


def choose_device() -> torch.device:
    """The first CUDA GPU, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
