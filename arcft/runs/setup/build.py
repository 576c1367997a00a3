"""Config to objects: the one place where a choice in YAML becomes something that runs."""

from __future__ import annotations

from typing import Any, Literal

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from arcft import ranks
from arcft.config.inference import GenerateConfig, InferenceConfig, SearchConfig, VllmConfig
from arcft.config.model import ModelConfig
from arcft.config.recommended import LossOn
from arcft.config.schema import ConfigError
from arcft.console import note
from arcft.decoding.probe import decoder_for
from arcft.decoding.vllm_engine import require_vllm
from arcft.errors import ModelError
from arcft.models.families import CANNOT_SEARCH, Decoder, stored_decoder
from arcft.protocols import DealViews, Kind
from arcft.text.builder import ExampleBuilder
from arcft.text.pruned_tokenizer import kept_tokens
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
    kept = kept_tokens(tokenizer)
    tokenization = Tokenization(
        tokenizer,
        chat_template=template,
        loss_on=loss_on,
        positions=jumping,
        num_kept=None if kept is None else len(kept),
    )
    kind.check_positions(format, tokenization, positions)
    return ExampleBuilder(format, tokenization, max_seq_length=max_seq_length, drop_demonstrations=drop_demonstrations)


def check_answers(builder: ExampleBuilder, inference: InferenceConfig, model: ModelConfig) -> None:
    """Raise ArcftError where the prompts of `builder` can't be answered as `inference` says: by this model, under a
    grammar, or on this machine. The model is not loaded."""
    problems = list(inference.problems_with(model.positions))
    if problems:
        raise ConfigError(problems)
    if isinstance(inference, VllmConfig):
        require_vllm()
    else:
        decoder = stored_decoder(model)
        _check_decoder(decoder, inference, model)
        _say_generate(decoder, inference, model)
    if inference.uses_grammar:
        builder.grammar()


def settle_decoder(
    loaded: PreTrainedModel | PeftModel, inference: InferenceConfig, model: ModelConfig, *, context: int | None
) -> None:
    """Find out what completes the prompts of a loaded model, if its architecture is not known to `check_answers`.

    `model` is its config, and `context` the most tokens of prompt and answer, or None. Raise ModelError where nothing
    can, or not in the way of `inference`.
    """
    try:
        decoder = decoder_for(loaded, context=context)
    except ModelError as error:
        raise ModelError(f"model.path={model.path}: {error}") from error
    _check_decoder(decoder, inference, model)
    if decoder is Decoder.GENERATE and stored_decoder(model) is None:
        _say_generate(decoder, inference, model)


def _check_decoder(decoder: Decoder | None, inference: InferenceConfig, model: ModelConfig) -> None:
    if decoder is Decoder.GENERATE and isinstance(inference, SearchConfig):
        raise ModelError(f"model.path={model.path}: {CANNOT_SEARCH}")
    if decoder is Decoder.GENERATE and model.positions != "none":
        raise ModelError(
            f"model.positions={model.positions}: the model at {model.path} is decoded by transformers' generate, which "
            "only counts positions; use model.positions=none"
        )


def _say_generate(decoder: Decoder | None, inference: InferenceConfig, model: ModelConfig) -> None:
    if decoder is Decoder.GENERATE and not isinstance(inference, GenerateConfig):
        note(f"{model.path} is decoded by transformers' generate, which is slower than arcft's decoder")


def view_dealer(kind: Kind, inference: InferenceConfig) -> DealViews:
    """Deals the augmentations of prompts that `inference` names."""
    names = kind.augmentations if inference.augmentations == "all" else inference.augmentations
    return kind.deal_views(names)


def choose_device() -> torch.device:
    """The first CUDA GPU, or that of this rank; without any, the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", ranks.local_rank()) if ranks.launched() > 1 else torch.device("cuda")
