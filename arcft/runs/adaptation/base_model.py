"""The starting point of test-time fine-tuning: the base model with the adapter that every unit starts from."""

from __future__ import annotations

import dataclasses

import peft
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from arcft.checkpoints import CheckpointError, Origin
from arcft.config.lora import LoraConfig
from arcft.config.model import ModelConfig
from arcft.config.recommended import LossOn
from arcft.config.run import EvaluateConfig, TrainConfig
from arcft.models.fingerprint import base_fingerprint
from arcft.models.limits import embedding_rows
from arcft.models.load import ModelError, load_model, load_tokenizer, resolve_dtype
from arcft.models.lora import apply_lora, load_adapter
from arcft.models.vocabulary import prune_vocabulary
from arcft.runs.setup.build import choose_device, example_builder, settle_decoder
from arcft.runs.setup.checkpoint_config import check_base
from arcft.runs.setup.kinds import kind_of
from arcft.runs.setup.restore import base_model, restored_tokenizer
from arcft.runs.setup.tasks import default_data
from arcft.runs.setup.ttft_settings import TtftSettings
from arcft.runs.setup.vocabulary import run_tokenizer
from arcft.text.builder import ExampleBuilder
from arcft.text.padding import choose_pad_token
from arcft.text.pruned_tokenizer import kept_tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaptationBase:
    """A model with the adapter to start from, in the dtypes of arcft.models.lora."""

    adapted: peft.PeftModel
    pad_id: int
    tokenizer: PreTrainedTokenizerBase
    base: ModelConfig
    fingerprint: str
    """Fingerprint of the base model."""

    def origin(self, data_fingerprint: str, seed: int) -> Origin:
        """The origin that the manifest of an adapter trained from here records."""
        return Origin(
            base_model=str(self.base.path),
            base_fingerprint=self.fingerprint,
            data_fingerprint=data_fingerprint,
            seed=seed,
        )


def load_start(settings: TtftSettings) -> AdaptationBase:
    """Load base model and adapter; raises ArcftError where one is missing, or the adapter is another model's."""
    config, run = settings.config, settings.run
    device = choose_device()
    base = start_model(settings)
    model = _load_base(settings, base, _dtype(settings, device), device)
    settle_decoder(model, config.inference, base, context=config.inference.max_seq_length)
    fingerprint = base_fingerprint(base, model)
    tokenizer = start_tokenizer(settings)
    kept = kept_tokens(tokenizer)
    if kept is not None:
        prune_vocabulary(model, kept, trains_rows=bool(base.train_modules))
    if run is not None and isinstance(run.config.lora, LoraConfig):
        check_base(run, fingerprint, str(base.path))
    rows = embedding_rows(model)
    if run is not None and settings.ttft.start == "trained":
        adapted = load_adapter(model, run.checkpoint.path, trainable=True)
    else:
        adapted = apply_lora(model, settings.lora, base.train_modules, seed=settings.ttft.seed)
    return AdaptationBase(
        adapted=adapted,
        pad_id=choose_pad_token(tokenizer, rows),
        tokenizer=tokenizer,
        base=base,
        fingerprint=fingerprint,
    )


def start_model(settings: TtftSettings) -> ModelConfig:
    """The base model under the adapters, loaded by transformers; a whole-model checkpoint is one itself."""
    run, model = settings.run, settings.config.model
    if run is None:
        assert model is not None  # EvaluateConfig.problems
        return dataclasses.replace(model, backend="transformers")
    # Modules that the run's model recommends to train beside an adapter are trained beside a fresh one too.
    return dataclasses.replace(base_model(run), backend="transformers", train_modules=run.config.model.train_modules)


def start_tokenizer(settings: TtftSettings) -> PreTrainedTokenizerBase:
    """The checkpoint's tokenizer, or the model's; with the ids of a pruned vocabulary, if the model has one."""
    run, config, model = settings.run, settings.config, start_model(settings)
    form: EvaluateConfig | TrainConfig = run.config if run else config
    data = form.data if config.data.is_held_out else config.data
    return run_tokenizer(
        kind_of(config.data),
        model,
        restored_tokenizer(run) if run else load_tokenizer(model),
        encoder=form.encoder,
        prompt=form.prompt,
        data=default_data() if data.is_held_out else data,
        augmentation=config.augmentation,
    )


def learning_rate(settings: TtftSettings) -> float:
    """The peak learning rate: ttft.learning_rate, or the model's recommendation."""
    model = settings.run.config.model if settings.run else settings.config.model
    assert model is not None  # EvaluateConfig.problems
    return settings.ttft.learning_rate or model.recommended.ttft_learning_rate


def learn_builder(settings: TtftSettings, tokenizer: PreTrainedTokenizerBase) -> ExampleBuilder:
    """The builder of training examples: as in training, but demonstrations are dropped to fit.

    Examples may be longer than in training if inference.max_seq_length is.
    """
    length, loss_on = _training_format(settings)
    return builder(settings, tokenizer, max(length, settings.config.inference.max_seq_length or 0), loss_on)


def ask_builder(settings: TtftSettings, tokenizer: PreTrainedTokenizerBase) -> ExampleBuilder:
    """The builder of prompts, the same as in an evaluation without ttft."""
    length, loss_on = _training_format(settings)
    return builder(settings, tokenizer, settings.config.inference.max_seq_length or length, loss_on)


def builder(
    settings: TtftSettings, tokenizer: PreTrainedTokenizerBase, max_seq_length: int, loss_on: LossOn
) -> ExampleBuilder:
    """A builder in the format of the checkpoint or model that drops demonstrations to fit."""
    form: EvaluateConfig | TrainConfig = settings.run.config if settings.run else settings.config
    assert form.model is not None  # EvaluateConfig.problems: there is a checkpoint or a model
    return example_builder(
        kind_of(form.data),
        form.encoder,
        form.prompt,
        tokenizer,
        positions=form.model.positions,
        max_seq_length=max_seq_length,
        drop_demonstrations=True,
        loss_on=loss_on,
    )


def _training_format(settings: TtftSettings) -> tuple[int, LossOn]:
    if settings.run is not None:
        return settings.run.config.training.max_seq_length, settings.run.config.training.loss_on
    model = start_model(settings)
    return model.recommended.training.max_seq_length, model.recommended.training.loss_on


def _dtype(settings: TtftSettings, device: torch.device) -> torch.dtype:
    """The dtype of the arithmetic; on a cluster's GPU not what was chosen for a head node without one."""
    chosen = settings.arithmetic
    if chosen is None or (settings.ttft.workers == "ray" and chosen.device != device.type):
        return resolve_dtype(settings.config.inference.dtype, device)
    return resolve_dtype(chosen.dtype, device)


def _load_base(settings: TtftSettings, base: ModelConfig, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    try:
        return load_model(base, dtype=dtype, device=device)
    except ModelError as error:
        if settings.run is None or not isinstance(settings.run.config.lora, LoraConfig):
            raise
        raise CheckpointError(
            f"{settings.run.checkpoint.path}: its base model can't be loaded: {error}. If it lies elsewhere now: "
            "base_model=DIR"
        ) from error
