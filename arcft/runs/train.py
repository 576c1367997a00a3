"""One training run: choose tasks, build model and stream, train, evaluate, and show the results."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel, TrainerCallback, TrainingArguments
from transformers.utils.logging import disable_progress_bar

from arcft import __version__, ranks
from arcft.checkpoints import Origin, find_checkpoints, lock_run, remove_leftovers, write_run_yaml
from arcft.config.duration import parse_duration
from arcft.config.inference import InferenceConfig
from arcft.config.run import TrainConfig
from arcft.config.schema import ConfigError, to_dict
from arcft.console import note, say
from arcft.errors import ArcftError
from arcft.memory import available_memory
from arcft.models.limits import embedding_rows, position_limit, refuse_beyond
from arcft.models.sharding import shard
from arcft.runs.common.command import command, stopped
from arcft.runs.common.extras import extra
from arcft.runs.common.optimized_metric import check_name
from arcft.runs.common.paths import override
from arcft.runs.common.progress import progress_bar
from arcft.runs.common.signals import Stopped, resumable, stop_on_signals
from arcft.runs.common.tracking import tracked
from arcft.runs.setup.build import choose_device
from arcft.runs.setup.kinds import kind_of
from arcft.runs.setup.leaks import warn_trained_on
from arcft.runs.showcase import show_showcase
from arcft.runs.training.callbacks import GenerationMetrics, ProgressBar, Recorder
from arcft.runs.training.estimate import Estimator, outlined
from arcft.runs.training.fit import Fit, fit_memory
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
from arcft.runs.training.profiling import StepProfiler
from arcft.runs.training.results import TrainingResults, write_results
from arcft.runs.training.shares import Shares, shares
from arcft.text.padding import choose_pad_token
from arcft.text.pruned_tokenizer import kept_tokens
from arcft.tracking import NoTracker, Tracker
from arcft.training import collectives
from arcft.training.arguments import make_training_arguments
from arcft.training.chunked_loss import probe
from arcft.training.saving import Saving
from arcft.training.stopping import StopRequest
from arcft.training.trainer import ArcftTrainer

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
    if ranks.count() > 1 and config.model.backend == "unsloth":
        raise ConfigError(["model.backend=unsloth trains in one process; use model.backend=transformers"])
    resumed = None if config.resume is None else folder
    prepared = prepare(config, shares(config.training, resumed))
    _check_optimized_metric(config, prepared)
    _announce(config, prepared)
    device = choose_device()
    config = with_dtype(config, device)
    fit = _fit(config, prepared, device)
    config = fit.config
    split = shares(config.training, resumed)
    arguments = make_training_arguments(config.training, folder, device, split.accumulation)
    sharding = chosen_sharding(config.training)
    # The whole model may not fit on one GPU.
    model, fingerprint = _load(config, prepared, fit, device if sharding is None else torch.device("cpu"))
    config = with_packing(config, model)
    say_model(config, model, device)
    if config.dry_run:
        show_estimate(fit, model)
        return {}
    values = to_dict(dataclasses.replace(config, resume=None))
    saving = _saving(config, values, prepared, fingerprint, split)
    _check_same(saving)
    with _recorded(config, values, folder, saving) as tracker, resumable(stopped("train", folder)):
        if sharding is not None:
            probe(model)
            shard(model, sharding, device)
        with collectives.lost_ranks_in_words(
            f"another of the {ranks.count()} processes has ended, so the run stops; what was saved is complete. "
            f"Resume with: {command('train')} {override('resume', folder)}"
        ):
            results = _train(config, folder, prepared, model, arguments, saving, tracker)
        collectives.leave()
        if results is None or ranks.rank() > 0:
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


def _fit(config: TrainConfig, prepared: Prepared, device: torch.device) -> Fit:
    """What the run needs, and its config with numbers in place of `auto`: rank 0's, on all ranks."""
    kept = kept_tokens(prepared.tokenizer)
    estimator = Estimator(config, prepared.stream, prepared.builder.tokenization.positions, kept, device)
    fit = fit_memory(estimator, available_memory(device))
    training = collectives.from_first(fit.config.training)
    return dataclasses.replace(fit, config=dataclasses.replace(config, training=training))


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


@contextlib.contextmanager
def _recorded(config: TrainConfig, values: Mapping[str, Any], folder: Path, saving: Saving) -> Iterator[Tracker]:
    """Hold the lock of the run's folder, with the tracker of the run; both are rank 0's."""
    if ranks.rank() > 0:
        yield NoTracker()
        return
    with lock_run(folder), tracked(config.tracking, values, folder, job="train") as tracker:
        remove_leftovers(folder)
        write_run_yaml(folder, saving.run_config)
        yield tracker


def _check_same(saving: Saving) -> None:
    """Raise ConfigError where ranks have other tasks or another base model, as on nodes with files of their own."""
    first, *others = collectives.gathered(saving.origin)
    for number, origin in enumerate(others, 1):
        if origin != first:
            raise ConfigError([f"rank {number} reads other tasks or another base model than rank 0; give it the same"])


def _saving(
    config: TrainConfig, values: Mapping[str, Any], prepared: Prepared, fingerprint: str, split: Shares
) -> Saving:
    """What checkpoints hold beside the weights; `values` is the config as plain data."""
    return Saving(
        tokenizer=prepared.tokenizer,
        run_config={
            "arcft": __version__,
            "job": "train",
            "ranks": split.started_with,
            "config": values,
            "tasks": prepared.tasks,
        },
        origin=Origin(
            base_model=str(config.model.path),
            base_fingerprint=fingerprint,
            data_fingerprint=kind_of(config.data).fingerprint(
                item for _, items in prepared.sets.train for item in items
            ),
            seed=config.training.seed,
        ),
        save_total_limit=config.training.save_total_limit,
    )


def _check_optimized_metric(config: TrainConfig, prepared: Prepared) -> None:
    """Raise ConfigError if the run would end without the metric that `optimized_metric` names."""
    name = config.optimized_metric
    if name is None or name == "train/loss":
        return
    if not prepared.held_out_examples:
        raise ConfigError([f"optimized_metric={name}: no task is held out; add data.held_out=8, or use train/loss"])
    if name != "eval/loss" and not config.training.generation_tasks:
        raise ConfigError([f"optimized_metric={name} needs predictions, and training.generation_tasks=0; raise it"])


def _generation_config(config: TrainConfig) -> InferenceConfig:
    """The inference config, its context capped at data.max_tokens: held-out tasks are no longer, and an untrained model
    would fill any larger one."""
    room = config.inference.max_seq_length or config.data.max_tokens
    return dataclasses.replace(config.inference, max_seq_length=room)


def _train(
    config: TrainConfig,
    folder: Path,
    prepared: Prepared,
    model: PreTrainedModel | PeftModel,
    arguments: TrainingArguments,
    saving: Saving,
    tracker: Tracker,
) -> TrainingResults | None:
    """Train to the end; None where training.max_time ended it early. Raises Stopped after a signal."""
    checkpoints = collectives.from_first(find_checkpoints(folder) if config.resume is not None else [])
    start = int(checkpoints[-1].name.rpartition("-")[2]) if checkpoints else 0
    max_steps = config.training.max_steps
    if checkpoints:
        say(f"resuming from {checkpoints[-1]}")
    stop = StopRequest(None if config.training.max_time is None else parse_duration(config.training.max_time))
    # transformers would draw a bar into ours whenever it saves a whole model.
    disable_progress_bar()
    with progress_bar("training", max_steps, start) as advance, stop_on_signals(stop.request) as received:
        generation = GenerationMetrics(
            prepared.builder,
            prepared.deal_views,
            prepared.sets.held_out[: config.training.generation_tasks],
            _generation_config(config),
            config.selection,
            kind_of(config.data),
            advance,
            stop,
        )
        recorder = Recorder(folder, tracker)
        callbacks = [recorder, ProgressBar(advance)] if ranks.rank() == 0 else []
        if config.training.profile_steps and ranks.rank() == 0:
            callbacks.append(StepProfiler(folder, steps=config.training.profile_steps, max_steps=max_steps))
        trainer = _trainer(config, prepared, model, arguments, saving, generation, callbacks, stop)
        trainer.train(checkpoints[-1] if checkpoints else None)
        if start == max_steps and generation.tasks and not generation.predictions:
            # Nothing was left to train: predict again for the final table, without recording it twice.
            if ranks.rank() == 0:
                trainer.remove_callback(recorder)
            trainer.evaluate()
    if trainer.state.global_step < max_steps or trainer.evaluation_due:
        message = (
            f"stopped at step {trainer.state.global_step} of {max_steps} ({stop.reason}) and saved; resume with: "
            f"{command('train')} {override('resume', folder)}"
        )
        if received:
            raise Stopped(received[0], message)
        say(message)
        return None
    if ranks.rank() > 0:
        return None
    return write_results(config, folder, generation, trainer, tracker)


def _trainer(
    config: TrainConfig,
    prepared: Prepared,
    model: PreTrainedModel | PeftModel,
    arguments: TrainingArguments,
    saving: Saving,
    generation: GenerationMetrics,
    callbacks: Sequence[TrainerCallback],
    stop: StopRequest,
) -> ArcftTrainer:
    predicts = bool(generation.tasks)
    return ArcftTrainer(
        model=model,
        args=arguments,
        train_dataset=prepared.stream,  # type: ignore[arg-type]
        eval_dataset=prepared.held_out_examples,
        pad_id=choose_pad_token(prepared.tokenizer, embedding_rows(model)),
        optimizer_config=config.optimizer,
        scheduler_config=config.scheduler,
        eval_steps=config.training.eval_steps,
        saving=saving,
        max_batch_tokens=config.training.max_batch_tokens,
        packing=config.training.packing,
        compile=config.training.compile,
        more_metrics=generation if predicts else None,
        best_metric=config.training.best_metric if predicts else None,
        callbacks=list(callbacks),
        stop=stop,
        positions=prepared.builder.tokenization.positions,
        sharding=config.training.fsdp if ranks.count() > 1 else None,
    )
