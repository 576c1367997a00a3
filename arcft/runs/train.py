"""One training run: choose tasks, build model and stream, train, evaluate, and show the results."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, TrainingArguments
from transformers.utils.logging import disable_progress_bar

from arcft import __version__, ranks
from arcft.checkpoints import Origin, find_checkpoints, lock_run, remove_leftovers, write_run_yaml
from arcft.config.duration import parse_duration
from arcft.config.inference import InferenceConfig
from arcft.config.lora import LoraConfig
from arcft.config.run import TrainConfig
from arcft.config.schema import ConfigError, to_dict
from arcft.config.training import TrainingConfig
from arcft.console import note, say
from arcft.errors import ArcftError
from arcft.memory import available_memory
from arcft.models.families import stored_decoder
from arcft.models.fingerprint import base_fingerprint
from arcft.models.fused_lora import fuse_lora
from arcft.models.limits import embedding_rows, position_limit, refuse_beyond
from arcft.models.load import ModelError, fast_bfloat16, load_model, load_tokenizer, resolve_dtype
from arcft.models.lora import apply_lora, load_adapter
from arcft.models.packed_attention import packs
from arcft.models.sharding import Strategy, shard
from arcft.models.vocabulary import prune_vocabulary
from arcft.protocols import DealViews, Problem, QuestionSampler
from arcft.runs.common.command import command, stopped
from arcft.runs.common.extras import extra
from arcft.runs.common.optimized_metric import check_name
from arcft.runs.common.paths import override
from arcft.runs.common.progress import progress_bar
from arcft.runs.common.signals import Stopped, resumable, stop_on_signals
from arcft.runs.common.tracking import tracked
from arcft.runs.setup.build import check_answers, choose_device, example_builder, settle_decoder, view_dealer
from arcft.runs.setup.checkpoint_config import check_base, open_checkpoint
from arcft.runs.setup.kinds import kind_of
from arcft.runs.setup.leaks import warn_trained_on
from arcft.runs.setup.tasks import CountTokens, TaskSets, task_sets
from arcft.runs.setup.vocabulary import run_tokenizer
from arcft.runs.showcase import show_showcase
from arcft.runs.training.callbacks import GenerationMetrics, ProgressBar, Recorder
from arcft.runs.training.estimate import Estimator, outlined
from arcft.runs.training.fit import fit_memory
from arcft.runs.training.messages import (
    say_model,
    say_next,
    say_skipped,
    say_tasks,
    show_estimate,
    show_first_example,
)
from arcft.runs.training.profiling import StepProfiler
from arcft.runs.training.results import TrainingResults, write_results
from arcft.runs.training.shares import Shares, shares
from arcft.text.builder import ExampleBuilder
from arcft.text.item_sampler import ItemSampler
from arcft.text.padding import choose_pad_token
from arcft.text.pruned_tokenizer import kept_tokens
from arcft.text.stream import ExampleStream, Trial
from arcft.text.tokens import Example
from arcft.tracking import NoTracker, Tracker
from arcft.training import collectives
from arcft.training.arguments import make_training_arguments
from arcft.training.chunked_loss import probe
from arcft.training.saving import Saving
from arcft.training.stopping import StopRequest
from arcft.training.trainer import ArcftTrainer

LOADED_IN_DRY_RUNS = 2**30
"""Bytes of weights up to which a dry run loads a model, to see that it can be; of larger ones it reads the config."""


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Everything that a run needs except the model."""

    tokenizer: PreTrainedTokenizerBase
    builder: ExampleBuilder
    deal_views: DealViews
    sets: TaskSets
    adapts: bool
    """With data.view=leave_one_out: tasks are learned from their demonstrations only."""

    stream: ExampleStream
    held_out_examples: list[Example]
    held_out_skipped: int
    """Held-out tests that do not fit the context, and so have no loss."""

    trial: Trial

    @property
    def tasks(self) -> dict[str, Any]:
        """Task ids by use, and the sets that share nothing with them, as run.yaml stores them."""
        return {
            "train": self.sets.train_ids,
            "held_out": [task.id for task in self.sets.held_out],
            "adapted_to": self.sets.train_ids if self.adapts else None,
            "disjoint_from": self.sets.disjoint_from,
        }


def train(config: TrainConfig, folder: Path) -> Mapping[str, float]:
    """Train as `config` says, with everything in `folder`; with config.resume, continue from its last checkpoint.

    Returns the last losses and metrics by tracker name (`train/loss`, `eval/accuracy`); empty after a dry run or if
    training.max_time ended the run early. Raises ArcftError, and Stopped after a signal.
    """
    kind = kind_of(config.data)
    check_name(config.optimized_metric, ["train/loss", "eval/loss", *(f"eval/{name}" for name in kind.metrics.names)])
    if ranks.count() > 1 and config.model.backend == "unsloth":
        raise ConfigError(["model.backend=unsloth trains in one process; use model.backend=transformers"])
    split = shares(config.training, None if config.resume is None else folder)
    prepared = prepare(config, split)
    _check_optimized_metric(config, prepared)
    say_tasks(prepared.sets, _max_tokens(config))
    warn_trained_on(kind, config.model, prepared.sets.held_out, "held-out tasks")
    say_skipped(prepared.trial, prepared.held_out_skipped, config.training.max_seq_length)
    if config.preview:
        with extra("the preview"):
            show_first_example(prepared.stream, prepared.tokenizer)
    for warning in config.scheduler.warnings(config.training.max_steps):
        note(warning)
    device = choose_device()
    config = _with_dtype(config, device)
    kept = kept_tokens(prepared.tokenizer)
    estimator = Estimator(config, prepared.stream, prepared.builder.tokenization.positions, kept, device)
    fit = fit_memory(estimator, available_memory(device))
    config = dataclasses.replace(config, training=collectives.from_first(fit.config.training))
    split = shares(config.training, None if config.resume is None else folder)
    arguments = make_training_arguments(config.training, folder, device, split.accumulation)
    sharding = _sharding(config.training)
    if config.dry_run and fit.memory is not None and fit.memory.weights > LOADED_IN_DRY_RUNS:
        model, fingerprint = outlined(config, device, kept), ""
    else:
        # The whole model may not fit on one GPU.
        model, fingerprint = build_model(config, device if sharding is None else torch.device("cpu"), kept)
    _check_vocabulary(config, prepared, model)
    refuse_beyond(
        position_limit(model.config),
        key="training.max_seq_length",
        value=config.training.max_seq_length,
        path=str(config.model.path),
    )
    packing = config.training.packing and _packs(config, model)
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
            results = _train(config, folder, prepared, model, arguments, saving, tracker, packing=packing)
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


def _sharding(training: TrainingConfig) -> Strategy | None:
    """How the model is shared out; a single process has nothing to share."""
    if training.fsdp is not None and ranks.count() == 1:
        note(f"training.fsdp={training.fsdp}: a single process keeps the whole model; start several with torchrun")
        return None
    return training.fsdp


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


def prepare(config: TrainConfig, split: Shares | None = None) -> Prepared:
    """Tokenizer, text format, task sets and the stream of examples; raises ArcftError if training is impossible.

    `split` says how many examples a step takes; None for those of a new run.
    """
    training = config.training
    kind = kind_of(config.data)
    tokenizer = run_tokenizer(
        kind,
        config.model,
        load_tokenizer(config.model),
        encoder=config.encoder,
        prompt=config.prompt,
        data=config.data,
        augmentation=config.augmentation,
    )
    builder = example_builder(
        kind,
        config.encoder,
        config.prompt,
        tokenizer,
        positions=config.model.positions,
        max_seq_length=training.max_seq_length,
        drop_demonstrations=training.drop_demonstrations,
        loss_on=training.loss_on,
    )
    questions = kind.sampler(config.augmentation, builder.format, view=config.data.view)
    sets = task_sets(config.data, _count_tokens(builder, questions, config.data.view), _max_tokens(config))
    stream = ExampleStream(
        ItemSampler(sets.train, seed=training.seed),
        questions,
        builder,
        length=training.max_steps * (split or shares(training, None)).examples,
        seed=training.seed,
        curriculum=config.training.curriculum,
    )
    if training.generation_tasks and sets.held_out:
        check_answers(builder, config.inference, config.model)
    else:
        # A model that reads both ways is refused all the same: it would learn to copy.
        stored_decoder(config.model)
    trial = stream.check()
    held_out = _held_out_examples(builder, sets.held_out)
    fitting = [example for example in held_out if example is not None]
    return Prepared(
        tokenizer=tokenizer,
        builder=builder,
        deal_views=view_dealer(kind, config.inference),
        sets=sets,
        adapts=config.data.view == "leave_one_out",
        stream=stream,
        held_out_examples=fitting,
        held_out_skipped=len(held_out) - len(fitting),
        trial=trial,
    )


def _max_tokens(config: TrainConfig) -> int | None:
    """The limit on a task's length, in tokens."""
    limits = [config.data.max_tokens, None if config.training.drop_demonstrations else config.training.max_seq_length]
    return min((limit for limit in limits if limit is not None), default=None)


def _generation_config(config: TrainConfig) -> InferenceConfig:
    """The inference config, its context capped at data.max_tokens: held-out tasks are no longer, and an untrained model
    would fill any larger one."""
    room = config.inference.max_seq_length or config.data.max_tokens
    return dataclasses.replace(config.inference, max_seq_length=room)


def _count_tokens(builder: ExampleBuilder, questions: QuestionSampler, view: str) -> CountTokens:
    """Length of a task in training, in tokens: its longest test, or its shortest leave-one-out question."""
    if view == "test":
        return builder.num_tokens

    def count(problem: Problem) -> int:
        return min(map(builder.num_tokens, questions.problems(problem, np.random.default_rng(0))))

    return count


def _held_out_examples(builder: ExampleBuilder, problems: Sequence[Problem]) -> list[Example | None]:
    questions = [
        builder.format.question(problem, index)
        for problem in problems
        for index, answer in enumerate(problem.answers)
        if answer is not None
    ]
    return [builder.example(question) for question in questions]


def _with_dtype(config: TrainConfig, device: torch.device) -> TrainConfig:
    """`config` with the dtype that training.dtype=auto stands for here, so that the run's files keep it."""
    if config.training.dtype != "auto":
        return config
    dtype = resolve_dtype("auto", device)
    recommends = config.model.recommended.training.cpu_dtype == "auto"
    if device.type == "cpu" and isinstance(config.lora, LoraConfig) and recommends and fast_bfloat16():
        dtype = torch.bfloat16
        note("training.dtype=auto: bfloat16, which this CPU multiplies fast; training.dtype=float32 rounds less")
    name: Any = str(dtype).removeprefix("torch.")
    return dataclasses.replace(config, training=dataclasses.replace(config.training, dtype=name))


def build_model(
    config: TrainConfig, device: torch.device, kept: Sequence[int] | None = None
) -> tuple[PreTrainedModel | PeftModel, str]:
    """The model to train, and the fingerprint of its base weights. `kept` are the tokens of a pruned vocabulary."""
    # Trained weights are float32; frozen ones have the dtype of the arithmetic.
    arithmetic = resolve_dtype(config.training.dtype, device)
    base = load_model(
        config.model,
        dtype=arithmetic if isinstance(config.lora, LoraConfig) else torch.float32,
        device=device,
        autocast=arithmetic,
        max_seq_length=config.training.max_seq_length,
    )
    settle_decoder(base, config.inference, config.model, context=config.training.max_seq_length)
    fingerprint = base_fingerprint(config.model, base)
    if kept is not None:
        trains_rows = bool(config.model.train_modules) or not isinstance(config.lora, LoraConfig)
        prune_vocabulary(base, kept, trains_rows=trains_rows)
    if not isinstance(config.lora, LoraConfig):
        return base, fingerprint
    if config.lora.start is not None:
        start = open_checkpoint(Path(config.lora.start).expanduser())
        check_base(start, fingerprint, str(config.model.path))
        adapted = load_adapter(base, start.checkpoint.path, trainable=True)
    else:
        adapted = apply_lora(
            base, config.lora, config.model.train_modules, seed=config.training.seed, backend=config.model.backend
        )
    if config.model.backend == "transformers":
        fuse_lora(adapted)
    return adapted, fingerprint


def _packs(config: TrainConfig, model: PreTrainedModel | PeftModel) -> bool:
    """Whether the model allows training.packing; otherwise note why examples are padded."""
    if packs(model):
        return True
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    assert isinstance(base, PreTrainedModel)
    if base.config._attn_implementation == "eager":
        reason = "packed ones need an attention other than eager"
    else:
        reason = f"packed ones would see each other in a model of type {base.config.model_type}"
    note(f"training.packing=true: examples are padded instead, because {reason}")
    return False


def _check_vocabulary(config: TrainConfig, prepared: Prepared, model: PreTrainedModel | PeftModel) -> None:
    """Raise ModelError where the tokenizer belongs to another model: it writes tokens without an embedding.

    Checks only the tokens in use: some tokenizers have more tokens, for images, than their model has embeddings.
    """
    rows = embedding_rows(model)
    highest = max(*prepared.stream[0].input_ids, *prepared.builder.tokenization.end_ids)
    if highest >= rows:
        raise ModelError(
            f"model.tokenizer={config.model.tokenizer or config.model.path}: writes token {highest}, but the model at "
            f"{config.model.path} has embeddings for {rows} tokens only; give the tokenizer that belongs to it"
        )


def _train(
    config: TrainConfig,
    folder: Path,
    prepared: Prepared,
    model: PreTrainedModel | PeftModel,
    arguments: TrainingArguments,
    saving: Saving,
    tracker: Tracker,
    *,
    packing: bool,
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
        trainer = _trainer(config, prepared, model, arguments, saving, generation, callbacks, stop, packing=packing)
        trainer.train(checkpoints[-1] if checkpoints else None)
        if start == max_steps and generation.tasks and not generation.predictions:
            # Nothing was left to train: predict again for the final table, without recording it twice.
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
    *,
    packing: bool,
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
        packing=packing,
        compile=config.training.compile,
        more_metrics=generation if predicts else None,
        best_metric=config.training.best_metric if predicts else None,
        callbacks=list(callbacks),
        stop=stop,
        positions=prepared.builder.tokenization.positions,
        sharding=config.training.fsdp if ranks.count() > 1 else None,
    )
