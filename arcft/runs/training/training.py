"""The training itself: from a model and its examples to the last checkpoint."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

from peft import PeftModel
from transformers import PreTrainedModel, TrainerCallback, TrainingArguments
from transformers.utils.logging import disable_progress_bar

from arcft import ranks
from arcft.checkpoints import find_checkpoints
from arcft.config.duration import parse_duration
from arcft.config.inference import InferenceConfig
from arcft.config.run import TrainConfig
from arcft.console import say
from arcft.models.limits import embedding_rows
from arcft.models.sharding import Strategy
from arcft.runs.common.command import command
from arcft.runs.common.paths import override
from arcft.runs.common.progress import Advance, progress_bar
from arcft.runs.common.signals import Stopped, stop_on_signals
from arcft.runs.setup.kinds import kind_of
from arcft.runs.training.callbacks import GenerationMetrics, ProgressBar, Recorder
from arcft.runs.training.preparation import Prepared
from arcft.runs.training.profiling import StepProfiler
from arcft.runs.training.results import TrainingResults, write_results
from arcft.text.padding import choose_pad_token
from arcft.tracking import Tracker
from arcft.training import collectives
from arcft.training.batches import Grouping
from arcft.training.saving import Saving
from arcft.training.stopping import StopRequest
from arcft.training.trainer import ArcftTrainer


def train_steps(
    config: TrainConfig,
    folder: Path,
    prepared: Prepared,
    model: PreTrainedModel | PeftModel,
    arguments: TrainingArguments,
    saving: Saving,
    tracker: Tracker,
    sharding: Strategy | None,
) -> TrainingResults | None:
    """Train to the end, with config.resume from the last checkpoint in `folder`.

    None on ranks other than 0, and where training.max_time ended the run early. Raises Stopped after a signal.
    """
    checkpoints = collectives.from_first(find_checkpoints(folder) if config.resume is not None else [])
    start = int(checkpoints[-1].name.rpartition("-")[2]) if checkpoints else 0
    max_steps = config.training.max_steps
    if checkpoints:
        say(f"resuming from {checkpoints[-1]}")
    stop = StopRequest(None if config.training.max_time is None else parse_duration(config.training.max_time))
    # transformers would draw a bar into ours whenever it saves a whole model.
    disable_progress_bar()
    # It would warn that another number of ranks has another batch size, though their steps are the same.
    logging.getLogger("transformers.trainer_utils").setLevel(logging.ERROR)
    with progress_bar("training", max_steps, start) as advance, stop_on_signals(stop.request) as received:
        generation = _generation_metrics(config, prepared, advance, stop)
        recorder = Recorder(folder, tracker)
        callbacks = _callbacks(config, folder, recorder, advance) if ranks.rank() == 0 else []
        trainer = _trainer(config, prepared, model, arguments, saving, generation, callbacks, stop, sharding)
        trainer.train(checkpoints[-1] if checkpoints else None)
        if start == max_steps and generation.tasks and not generation.predictions and not trainer.evaluation_due:
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


def _callbacks(config: TrainConfig, folder: Path, recorder: Recorder, advance: Advance) -> list[TrainerCallback]:
    training = config.training
    callbacks: list[TrainerCallback] = [recorder, ProgressBar(advance)]
    if training.profile_steps:
        callbacks.append(StepProfiler(folder, steps=training.profile_steps, max_steps=training.max_steps))
    return callbacks


def _generation_metrics(
    config: TrainConfig, prepared: Prepared, advance: Advance, stop: StopRequest
) -> GenerationMetrics:
    return GenerationMetrics(
        prepared.builder,
        prepared.deal_views,
        prepared.sets.held_out[: config.training.generation_tasks],
        _generation_config(config),
        config.selection,
        kind_of(config.data),
        advance,
        stop,
    )


def _generation_config(config: TrainConfig) -> InferenceConfig:
    """The inference config, its context capped at data.max_tokens: held-out tasks are no longer, and an untrained model
    would fill any larger one."""
    room = config.inference.max_seq_length or config.data.max_tokens
    return dataclasses.replace(config.inference, max_seq_length=room)


def _trainer(
    config: TrainConfig,
    prepared: Prepared,
    model: PreTrainedModel | PeftModel,
    arguments: TrainingArguments,
    saving: Saving,
    generation: GenerationMetrics,
    callbacks: Sequence[TrainerCallback],
    stop: StopRequest,
    sharding: Strategy | None,
) -> ArcftTrainer:
    predicts = bool(generation.tasks)
    return ArcftTrainer(
        model=model,
        args=arguments,
        train_dataset=prepared.stream,  # type: ignore[arg-type]
        eval_dataset=prepared.held_out_examples,
        grouping=Grouping(
            pad_id=choose_pad_token(prepared.tokenizer, embedding_rows(model)),
            positions=prepared.builder.tokenization.positions,
            max_batch_tokens=config.training.max_batch_tokens,
            packing=config.training.packing,
        ),
        optimizer_config=config.optimizer,
        scheduler_config=config.scheduler,
        eval_steps=config.training.eval_steps,
        saving=saving,
        compile=config.training.compile,
        more_metrics=generation if predicts else None,
        best_metric=config.training.best_metric if predicts else None,
        callbacks=list(callbacks),
        stop=stop,
        sharding=sharding,
    )
