"""Config to objects: the one place where a choice in YAML becomes something that runs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from arcft.config.augmentation import AugmentationConfig
from arcft.config.encoder import EncoderConfig
from arcft.config.inference import InferenceConfig
from arcft.config.model import LossOn, PositionsName
from arcft.config.prompt import PromptConfig
from arcft.config.schema import ConfigError
from arcft.decoding.vllm_engine import require_vllm
from arcft.problems.arc.augment.transforms import Transform, draw_transform
from arcft.problems.arc.format.encoders import build_encoder
from arcft.problems.arc.format.examples import ExampleBuilder, check_uneven_tokens
from arcft.problems.arc.format.grid_positions import check_grid_positions, grid_positions
from arcft.problems.arc.format.prompts import PromptBuilder
from arcft.problems.arc.task import Task
from arcft.text.tokens import Tokenization


def example_builder(
    encoder_config: EncoderConfig,
    prompt_config: PromptConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    positions: PositionsName,
    max_seq_length: int,
    drop_demonstrations: bool = False,
    loss_on: LossOn = "completion",
) -> ExampleBuilder:
    """Build encoder, prompt and tokenisation; raise ArcftError where the tokenizer merges cells, or where `positions`
    do not fit the text. `positions` are those of ModelConfig."""
    encoder = build_encoder(encoder_config.grid)
    check_uneven_tokens(
        tokenizer, encoder, allow=encoder_config.allow_uneven_tokens, name=str(tokenizer.name_or_path) or "tokenizer"
    )
    prompts = PromptBuilder(prompt_config, encoder)
    tokenization = Tokenization(
        tokenizer,
        chat_template=prompt_config.chat_template,
        loss_on=loss_on,
        positions=grid_positions(tokenizer) if positions == "grid" else None,
    )
    if positions == "grid":
        check_grid_positions(prompts, tokenization)
    return ExampleBuilder(
        prompts,
        tokenization,
        max_seq_length=max_seq_length,
        drop_demonstrations=drop_demonstrations,
        cells_are_tokens=not encoder_config.allow_uneven_tokens,
    )


def check_answers(builder: ExampleBuilder, inference: InferenceConfig, positions: PositionsName) -> None:
    """Raise ArcftError where the prompts of `builder` can't be answered as `inference` says: by a model of such
    positions, under a grammar, or on this machine."""
    problems = list(inference.problems_with(positions))
    if problems:
        raise ConfigError(problems)
    if inference.name == "vllm":
        require_vllm()
    if inference.grammar:
        builder.grammar()


def transform_drawer(config: AugmentationConfig) -> Callable[[Task, np.random.Generator], Transform]:
    """The function that draws an example's augmentation."""
    return partial(
        draw_transform,
        geometric=config.geometric,
        colors=config.colors,
        permute_background=config.permute_background,
        pair_order=config.pair_order,
        swap_train_test=config.swap_train_test,
        composition=config.composition,
        composition_weights=config.composition_weights,
    )


def choose_device() -> torch.device:
    """The first CUDA GPU, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
