"""One training run: choose tasks, build model and stream, train, evaluate, and show the results."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from arcft import ranks
from arcft.config.run import TrainConfig
from arcft.config.schema import ConfigError, to_dict
from arcft.console import note
from arcft.errors import ArcftError
from arcft.memory import reset_peak
from arcft.models.limits import position_limit, refuse_beyond
from arcft.models.sharding import shard
from arcft.runs.common.command import stopped
from arcft.runs.common.extras import extra
from arcft.runs.common.optimized_metric import check_name
from arcft.runs.common.signals import resumable
from arcft.runs.setup.build import choose_device
from arcft.runs.setup.kinds import kind_of
from arcft.runs.setup.leaks import warn_trained_on
from arcft.runs.showcase import show_showcase
from arcft.runs.training.estimate import Estimator, outlined
from arcft.runs.training.faults import faults_in_words
from arcft.runs.training.fit import Fit, fit_memory, least_available
from arcft.runs.training.messages import (
    say_model,
    say_next,
    say_skipped,
    say_tasks,
    show_estimate,
    show_first_example,
)
from arcft.runs.training.model import build_model, check_vocabulary, chosen_sharding, with_dtype, with_packing
from arcft.runs.training.preparation import Prepared, max_tokens, prepare
from arcft.runs.training.recording import make_saving, recorded
from arcft.runs.training.step_plan import StepPlan, plan_steps
from arcft.runs.training.training import train_steps
from arcft.text.pruned_tokenizer import kept_tokens
from arcft.training import collectives
from arcft.training.arguments import make_training_arguments
from arcft.training.chunked_loss import probe

LOADED_IN_DRY_RUNS = 2**30
"""Bytes of weights up to which a dry run loads a model that fits, to see that it can be; otherwise it reads the
config."""


def train(config: TrainConfig, folder: Path) -> Mapping[str, float]:
    """Train as `config` says, with everything in `folder`; with config.resume, continue from its last checkpoint.

    Returns the last losses and metrics by tracker name (`train/loss`, `eval/accuracy`); empty after a dry run or if
    training.max_time ended the run early. Raises ArcftError, and Stopped after a signal.
    """
    names = kind_of(config.data).metrics.names
    check_name(config.optimized_metric, ["train/loss", "eval/loss", *(f"eval/{name}" for name in names)])
    if ranks.launched() > 1 and config.model.backend == "unsloth":
        raise ConfigError(["model.backend=unsloth trains in one process; use model.backend=transformers"])
    with faults_in_words(config, folder):
        return _train(config, folder)


def _train(config: TrainConfig, folder: Path) -> Mapping[str, float]:
    plan = plan_steps(config.training, None if config.resume is None else folder)
    prepared = prepare(config, plan)
    _check_optimized_metric(config, prepared)
    _announce(config, prepared)
    device = choose_device()
    # Jobs of a multirun follow each other in one process.
    reset_peak(device)
    config = with_dtype(config, device)
    fit = _fit(config, plan, prepared, device)
    config = dataclasses.replace(config, training=fit.training)
    arguments = make_training_arguments(plan.of_rank(config.training), folder, device)
    sharding = chosen_sharding(config.training)
    # The whole model may not fit on one GPU.
    model, fingerprint = _load(config, prepared, fit, device if sharding is None else torch.device("cpu"))
    config = with_packing(config, model)
    say_model(config, model, device)
    if config.dry_run:
        show_estimate(config, fit, model)
        collectives.leave()
        return {}
    values = to_dict(dataclasses.replace(config, resume=None))
    saving = make_saving(config, values, prepared, fingerprint, plan)
    with recorded(config, values, folder, saving) as tracker, resumable(stopped("train", folder)):
        if sharding is not None:
            probe(model)
            shard(model, sharding, device)
        results = train_steps(config, folder, prepared, model, arguments, saving, tracker, sharding)
        collectives.leave()
        if results is None:
            return {}
        # The showcase loads the checkpoint, and a large model does not fit into memory twice.
        del model
        try:
            show_showcase(config, folder, prepared.builder.num_tokens, tracker)
        except ArcftError:
            # The training itself is complete, and its checkpoint saved.
            say_next(folder, results.kept)
            raise
        say_next(folder, results.kept)
    return results.metrics


def _announce(config: TrainConfig, prepared: Prepared) -> None:
    """Say what is trained on, show the first example, and note what deserves a second look."""
    say_tasks(prepared.sets, max_tokens(config))
    warn_trained_on(kind_of(config.data), config.model, prepared.sets.held_out, "held-out tasks")
    say_skipped(prepared.trial, prepared.held_out_skipped, config.training.max_seq_length)
    if config.preview:
        with extra("the preview"):
            show_first_example(prepared.stream, prepared.tokenizer)
    for warning in config.scheduler.warnings(config.training.max_steps):
        note(warning)


def _fit(config: TrainConfig, plan: StepPlan, prepared: Prepared, device: torch.device) -> Fit:
    """What the run needs, and numbers in place of `auto`: estimated by rank 0 for the rank with the least memory."""
    available = least_available(device)

    def estimated() -> Fit | None:
        if ranks.rank() > 0:
            return None
        kept = kept_tokens(prepared.tokenizer)
        estimator = Estimator(config, prepared.stream, prepared.builder.tokenization.positions, kept, device)
        return fit_memory(estimator, plan, available)

    fit, *_ = collectives.together(estimated)
    assert fit is not None
    return fit


def _is_loaded_in_dry_runs(fit: Fit) -> bool:
    return fit.memory is None or (fit.fits and fit.memory.weights <= LOADED_IN_DRY_RUNS)


def _load(
    config: TrainConfig, prepared: Prepared, fit: Fit, device: torch.device
) -> tuple[PreTrainedModel | PeftModel, str]:
    """The model to train and its base's fingerprint; in a dry run of a large one, its outline
    without weights."""
    kept = kept_tokens(prepared.tokenizer)
    if config.dry_run and not _is_loaded_in_dry_runs(fit):
        model, fingerprint = outlined(config, device, kept), ""
    else:
        model, fingerprint = build_model(config, device, kept)
    check_vocabulary(config, prepared, model)
    refuse_beyond(
        position_limit(model.config),
        key="training.max_seq_length",
        value=config.training.max_seq_length,
        path=str(config.model.path),
    )
    return model, fingerprint


def _check_optimized_metric(config: TrainConfig, prepared: Prepared) -> None:
    """Raise ConfigError if the run would end without the metric that `optimized_metric` names."""
    name = config.optimized_metric
    if name is None or name == "train/loss":
        return
    if not prepared.held_out_examples:
        raise ConfigError([f"optimized_metric={name}: no task is held out; add data.held_out=8, or use train/loss"])
    if name != "eval/loss" and not config.training.generation_tasks:
        raise ConfigError([f"optimized_metric={name} needs predictions, and training.generation_tasks=0; raise it"])
