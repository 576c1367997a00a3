"""The training loop: transformers' Trainer with our loss, evaluation and checkpoints."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import peft
import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import PreTrainedModel, TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_utils import TrainOutput

from arcft import checkpoints
from arcft.config.optimizer import OptimizerConfig
from arcft.config.scheduler import SchedulerConfig
from arcft.console import warn
from arcft.memory import OutOfMemoryError, is_out_of_memory, release_memory
from arcft.models.packed_attention import use_packed_attention
from arcft.models.sharding import Strategy, whole
from arcft.text.tokens import Example
from arcft.training import collectives
from arcft.training.batches import Batch, Group, Grouping, StepShare, add_idle_passes, step_share
from arcft.training.checkpoint_states import gather_states, load_optimizer
from arcft.training.compiling import compile_layers
from arcft.training.evaluation import Evaluation, MoreMetrics
from arcft.training.finite import SMALLEST_SCALE, check_finite
from arcft.training.flow import FlowCallback
from arcft.training.loss import summed_cross_entropy
from arcft.training.passes import Passes
from arcft.training.saving import STATE_FILE, LoopState, Saving, check_origin, load_weights, write_checkpoint
from arcft.training.stopping import StopRequest
from arcft.training.stream_trainer import StreamTrainer
from arcft.training.throughput import Throughput


class ArcftTrainer(StreamTrainer):
    """Trains on a stream of examples, in the stream's order.

    The loss is the mean over all supervised tokens of an optimizer step, however they are split into batches, and
    batches by `grouping` into forward passes: without dropout, the gradient of a step is the same up to rounding,
    whatever the split. A loss or gradient norm that is not finite ends the run before the step. Checkpoints are atomic,
    and resuming from one continues as if the run had never stopped: bit for bit on a CPU in float32.

    The best checkpoint has the highest `best_metric`, and of these the lowest `eval_loss`; it is saved at once and
    never rotated away.

    Several ranks, connected by torch.distributed, each take their share of the batches of a step and of an evaluation.
    They make the same steps as one process that accumulates as many batches, stop at the same step, and fail together;
    rank 0 writes.
    """

    def __init__(
        self,
        *,
        model: PreTrainedModel | peft.PeftModel,
        args: TrainingArguments,
        train_dataset: Dataset[Example],
        eval_dataset: Sequence[Example] | None,
        grouping: Grouping,
        optimizer_config: OptimizerConfig,
        scheduler_config: SchedulerConfig,
        eval_steps: int,
        saving: Saving,
        compile: bool = False,
        more_metrics: MoreMetrics | None = None,
        best_metric: str | None = None,
        callbacks: Sequence[TrainerCallback] = (),
        stop: StopRequest | None = None,
        sharding: Strategy | None = None,
    ) -> None:
        """Set up a run; nothing is trained yet.

        Args:
            model: The model with what is trainable set: all weights, or an adapter.
            args: From make_training_arguments.
            train_dataset: Enough examples for `args.max_steps`, already shuffled. Raise TrainingError otherwise.
            eval_dataset: Held-out examples for `eval_loss`; None or empty for none.
            grouping: Makes forward passes of examples. Its packing needs a model that allows it (see
                models/packed_attention.py).
            optimizer_config: Used by `create_optimizer`.
            scheduler_config: Used by `create_scheduler`.
            eval_steps: Evaluate after this many optimizer steps, and after the last one.
            saving: What goes into checkpoints.
            compile: Compile the model's layers for training; evaluations run them as written.
            more_metrics: Called in evaluations, under the trainer's autocast; its metrics are logged as `eval_NAME`.
                If it was asked to stop, the evaluation is repeated on resuming.
            best_metric: The metric of `more_metrics` that chooses the best checkpoint; None for `eval_loss` alone.
            callbacks: Additional callbacks of transformers.
            stop: Checked after each step.
            sharding: How `model` was sharded (arcft.models.sharding); None if it was not.
        """
        self.saving = saving
        self.best_metric = best_metric
        self.stop = stop or StopRequest()
        self.sharding = sharding
        self.throughput = Throughput()
        self._step_loss = 0.0
        self._untold_changes: list[str] = []
        self._best_rank: tuple[float, float] | None = None
        self._resumed_from: Path | None = None
        if compile:
            compile_layers(model)
        if grouping.packing:
            use_packed_attention(model)
        self._passes = Passes(model, grouping, args, sharding, self._note_change)
        self._evaluation = Evaluation(
            model=model,
            examples=eval_dataset or [],
            grouping=grouping,
            batch_size=args.per_device_eval_batch_size,
            more_metrics=more_metrics,
            sharding=sharding,
        )
        self._flow = FlowCallback(
            eval_steps=eval_steps,
            can_evaluate=not self._evaluation.is_empty,
            stop=self.stop,
            on_begin=self._restore_loop_state,
        )
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            grouping=grouping,
            optimizer_config=optimizer_config,
            scheduler_config=scheduler_config,
            callbacks=[*callbacks, self._flow],
        )
        if collectives.count() > 1:
            # Dropout differs from rank to rank.
            torch.manual_seed(args.seed + collectives.rank())

    @property
    def run_folder(self) -> Path:
        """Where checkpoints are written."""
        return Path(str(self.args.output_dir))

    @property
    def best_step(self) -> int | None:
        """The step of the best checkpoint so far; None before the first evaluation."""
        return self.state.best_global_step

    @property
    def evaluation_due(self) -> bool:
        """Whether the run stopped at a step whose evaluation is left for resuming."""
        return self._flow.evaluation_due

    def train(self, resume_from_checkpoint: str | Path | None = None) -> TrainOutput:  # type: ignore[override]
        """Train to `max_steps`, or until asked to stop; from the beginning, or from a checkpoint of this run.

        After a stop `state.global_step` is below `state.max_steps`, `stop.reason` says why, and the last checkpoint
        is of that step. Raise NonFiniteError, OutOfMemoryError, or CheckpointError for a
        checkpoint that is damaged or of another run.
        """
        self._resumed_from = None if resume_from_checkpoint is None else Path(resume_from_checkpoint)
        try:
            return self._train()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemoryError(
                f"out of memory after step {self.state.global_step}, outside the forward and backward passes "
                f"({release_memory(error)}); use model.quantization=nf4 or a smaller adapter, or train where there is "
                "more memory"
            ) from None

    def _train(self) -> TrainOutput:
        collectives.same_weights(self.trained_model)
        if self._resumed_from is None:
            return super().train()
        check_origin(checkpoints.read_checkpoint(self._resumed_from), self.saving.origin)
        state = TrainerState.load_from_json(str(self._resumed_from / STATE_FILE))
        loop_state = LoopState.read(self._resumed_from)
        if state.global_step < self.args.max_steps:
            try:
                return super().train(resume_from_checkpoint=str(self._resumed_from))
            except _PostponedAgain:
                return _output(state, loop_state)
        # Already finished: Trainer would take another step before it checks the limit.
        load_weights(self.trained_model, self._resumed_from)
        self.state = state
        self._restore_best_and_evaluate(loop_state)
        return _output(state, loop_state)

    # Steps

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], torch.Tensor]:
        """This rank's batches of one optimizer step, and the number of supervised tokens in those of all ranks, an
        int64 scalar on `device`."""
        batches: list[Batch] = []

        def fetch() -> StepShare:
            batches.extend(self.fetch(epoch_iterator, num_batches))
            return step_share(batches)

        shares = collectives.together(fetch)
        self._passes.begin(batches)
        self.throughput.tokens += sum(share.tokens for share in shares)
        if self.sharding is not None:
            # Every pass gathers weights from all ranks.
            add_idle_passes(batches, [share.passes for share in shares])
        return batches, torch.tensor(sum(share.supervised for share in shares), device=device)

    def training_step(  # type: ignore[override]
        self, model: nn.Module, inputs: Batch, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Forward and backward pass of a batch, group by group; returns its share of the step's loss (scalar, nats).

        With several ranks the last batch of a step returns the loss of all batches and ranks, and the others zero. If
        memory runs out, the step is repeated in smaller passes; raise OutOfMemoryError if there are none.
        """
        one_step = super().training_step
        loss = self._passes.loss(
            inputs, self.state.global_step + 1, lambda group: one_step(model, group, num_items_in_batch)
        )
        return loss if collectives.count() == 1 else self._loss_of_all(loss)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Group,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """The group's share of the mean over all supervised tokens of the step: a scalar in nats.

        Raise NonFiniteError.
        """
        total, count = summed_cross_entropy(model, inputs)
        loss = total / (count if num_items_in_batch is None else num_items_in_batch)
        if collectives.count() == 1:
            check_finite("loss", loss, self.state.global_step + 1, self.args.learning_rate)
        return loss

    def _loss_of_all(self, loss: torch.Tensor) -> torch.Tensor:
        self._step_loss += loss.item()
        if not self.accelerator.sync_gradients:
            return torch.zeros_like(loss)
        numbers = [self._step_loss, len(self._untold_changes)]
        total, changes = collectives.add_up(numbers, self.trained_model.parameters())
        self._step_loss = 0.0
        if changes:
            self._tell_changes()
        found = torch.tensor(total, dtype=torch.float64).to(loss)
        check_finite("loss", found, self.state.global_step + 1, self.args.learning_rate)
        return found

    def _note_change(self, message: str) -> None:
        """Log that a step is repeated in smaller passes; other ranks than 0 tell rank 0 after the step."""
        if collectives.rank() == 0:
            warn(message)
            self._log_passes(self._passes.max_rows, self._passes.gradient_checkpointing)
        else:
            self._untold_changes.append(message)

    def _tell_changes(self) -> None:
        found = collectives.gathered((self._untold_changes, self._passes.max_rows, self._passes.gradient_checkpointing))
        self._untold_changes = []
        for number, (messages, max_rows, checkpointed) in enumerate(found):
            if messages and collectives.rank() == 0:
                for message in messages:
                    warn(f"rank {number}: {message}")
                self._log_passes(max_rows, checkpointed)

    def _log_passes(self, max_rows: int | None, checkpointed: bool) -> None:
        self.log({"examples_per_pass": max_rows or 1, "gradient_checkpointing": float(checkpointed)})

    def _clip_grad_norm(self, model: nn.Module) -> torch.Tensor:
        norm: torch.Tensor = whole(super()._clip_grad_norm(model))
        scaler = self.accelerator.scaler
        # Under loss scaling, overflowing gradients are expected: the scaler skips the step and lowers the scale.
        if scaler is None or scaler.get_scale() < SMALLEST_SCALE:
            check_finite("gradient norm", norm, self.state.global_step + 1, self.args.learning_rate)
        return norm

    # Evaluation

    def evaluate(  # type: ignore[override]
        self, eval_dataset: None = None, ignore_keys: list[str] | None = None
    ) -> dict[str, float]:
        """Log and return `eval_loss` (nats per supervised token) and the metrics of `more_metrics`.

        Where it fails, a checkpoint is saved before the error is passed on, and resuming evaluates it again.
        """
        started = time.monotonic()
        try:
            metrics = self._evaluation.measure(self.state.global_step, self.accelerator.autocast())
        except Exception:
            target = self.run_folder / f"{checkpoints.PREFIX}{self.state.global_step}"
            if self.optimizer is not None and not collectives.from_first(target.exists()):
                self._flow.evaluation_due = True
                self._save_checkpoint(self.trained_model)
            raise
        if metrics is None:
            return self._postpone_evaluation()
        metrics["eval_seconds"] = time.monotonic() - started
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.throughput.leave_out(time.monotonic() - started)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Pass `logs` to the callbacks; with each loss also the tokens so far, and tokens per second since the last."""
        if "loss" in logs:
            logs |= self.throughput.log()
        super().log(logs, start_time)

    def _postpone_evaluation(self) -> dict[str, float]:
        self._flow.evaluation_due = True
        self.control.should_save = True
        self.control.should_training_stop = True
        return {}

    def _determine_best_metric(self, metrics: Mapping[str, float], trial: Any = None) -> bool:
        if self.evaluation_due:
            return False
        score = 0.0 if self.best_metric is None else metrics.get(f"eval_{self.best_metric}", 0.0)
        rank = (score, -metrics.get("eval_loss", 0.0))
        if self._best_rank is not None and rank <= self._best_rank:
            return False
        self._best_rank = rank
        self.state.best_metric = score
        self.state.best_global_step = self.state.global_step
        # The best weights are kept even where no checkpoint is due.
        self.control.should_save = True
        return True

    # Checkpoints

    def _save_checkpoint(self, model: nn.Module, trial: Any = None) -> None:
        states = gather_states(
            self.trained_model, *self._optimizer_and_schedule(), save_random_states=self._save_rng_state
        )
        if collectives.rank() == 0:
            write_checkpoint(
                self.run_folder,
                self.saving,
                self.trained_model,
                states,
                self.state,
                self._loop_state(),
                self._save_scaler,
            )

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_weights(self.trained_model, Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            load_optimizer(*self._optimizer_and_schedule(), Path(checkpoint))

    def _optimizer_and_schedule(self) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        return cast(torch.optim.Optimizer, self.optimizer), cast(Any, self.lr_scheduler)

    def _loop_state(self) -> LoopState:
        return LoopState(
            loss_since_log=self._tr_loss.item(),
            loss_before=self._total_loss_scalar,
            logged_step=self._globalstep_last_logged,
            tokens=self.throughput.tokens,
            best_rank=self._best_rank,
            evaluation_due=self.evaluation_due,
        )

    def _restore_loop_state(self) -> None:
        if self._resumed_from is None:
            self.throughput.begin(0)
            return
        state = LoopState.read(self._resumed_from)
        self.throughput.begin(state.tokens)
        # Trainer has just reset these: it would log the loss since resuming only.
        self._tr_loss = torch.tensor(state.loss_since_log, device=self.args.device)
        self._total_loss_scalar = state.loss_before
        self._globalstep_last_logged = state.logged_step
        self._restore_best_and_evaluate(state)
        if self.evaluation_due:
            # Trainer would take another step before it stops, and the evaluation is of this one.
            raise _PostponedAgain

    def _restore_best_and_evaluate(self, loop_state: LoopState) -> None:
        """Restore the best checkpoint so far, and make up for an evaluation that a stop prevented."""
        self._best_rank = loop_state.best_rank
        if loop_state.evaluation_due:
            self._determine_best_metric(self.evaluate())


class _PostponedAgain(Exception):  # noqa: N818 - not an error
    """A resumed run was asked to stop during the evaluation that it owed."""


def _output(state: TrainerState, loop_state: LoopState) -> TrainOutput:
    """The result of a call of `train` that takes no step."""
    return TrainOutput(state.global_step, loop_state.loss_before / state.global_step, {})
